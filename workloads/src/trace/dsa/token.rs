//! What the layers chose for one query token.

use super::{DsaFacts, DsaRow, DsaScores, DsaTiers, DsaTopkRecord, DsaTraceConfig};

/// What one indexer chose for a query token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DsaSelection {
    /// The positions of the keys, ascending.
    pub positions: Vec<u32>,
    /// Figures of their scores, if they were scored.
    pub scores: Option<DsaScores>,
    /// Each score, if that is kept; empty otherwise.
    pub each_score: Vec<f32>,
}

/// A query token, and what each indexer chose for it: what the records of all its layers are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct DsaToken {
    /// The request.
    pub request_id: String,
    /// The engine's step.
    pub step: u64,
    /// Its position.
    pub step_idx: u32,
    /// The kind of row.
    pub row: DsaRow,
    /// Whether the token of a verify row belongs to the sequence.
    pub accepted: Option<bool>,
    /// How many of the request's first blocks came from the prefix cache.
    pub cached_blocks: u32,
    /// See [`prefix_key`](super::prefix_key).
    pub prefix_key: String,
    /// The request's block table in this step.
    pub table: Vec<u32>,
    /// For each layer with an indexer, in their order, what it chose.
    pub selections: Vec<DsaSelection>,
    /// For each layer, where the blocks of its choice were; empty without tiers.
    pub tiers: Vec<DsaTiers>,
}

impl Default for DsaToken {
    fn default() -> Self {
        Self {
            request_id: String::new(),
            step: 0,
            step_idx: 0,
            row: DsaRow::Decode,
            accepted: None,
            cached_blocks: 0,
            prefix_key: String::new(),
            table: Vec::new(),
            selections: Vec::new(),
            tiers: Vec::new(),
        }
    }
}

impl DsaToken {
    /// The record of a layer; `None` if no indexer chose for it.
    ///
    /// # Errors
    ///
    /// What is wrong with the choice.
    pub fn record(
        &self,
        config: &DsaTraceConfig,
        block_size: u32,
        layer: u16,
    ) -> Option<Result<DsaTopkRecord, String>> {
        let place = config.indexer_layers.iter().rposition(|&own| own <= layer)?;
        let selection = self.selections.get(place)?;
        let facts = DsaFacts {
            request_id: &self.request_id,
            layer_id: layer,
            selection_layer: config.indexer_layers[place],
            step: self.step,
            step_idx: self.step_idx,
            row: self.row,
            accepted: self.accepted,
            selected: &selection.positions,
            scores: selection.scores,
            each_score: &selection.each_score,
            block_size,
            latent_bytes: config.latent_bytes,
            cached_blocks: self.cached_blocks,
            prefix_key: &self.prefix_key,
        };
        let block = |place: u32| self.table.get(place as usize).copied();
        let mut record = DsaTopkRecord::of(facts, block);
        if let (Ok(record), Some(tiers)) = (&mut record, self.tiers.get(usize::from(layer))) {
            let block_bytes = config.latent_bytes.saturating_mul(u64::from(block_size));
            record.kv_fetch = std::mem::take(&mut record.kv_fetch).from_tiers(tiers, block_bytes);
        }
        Some(record)
    }
}
