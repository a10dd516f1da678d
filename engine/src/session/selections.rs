//! Reads which keys the indexers of a model with sparse attention chose in a step.

use pagedraft_attention::sparse::KeepScores;
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::{Device, Runner};
use pagedraft_scheduler::PlanRow;
use pagedraft_workloads::trace::DsaRows;

use super::options::EngineOptions;
use super::request::Request;
use super::sequence::sequence_of;
use super::token_rows::{TokenRow, segment_rows};
use super::{IndexerTopk, Session};
use crate::error::{EngineError, Result, bail, ensure};
use crate::memory_need::ensure_fits;

/// What the engine has to keep of its indexers' choices; `None` if nothing. A model that is cut behind `cuts` has no records in a trace: each
/// of them has one block table, and such a model has several.
///
/// # Errors
///
/// The options ask for it, and the model has no indexer, or there is no memory for it.
pub(super) fn wanted(
    options: &EngineOptions,
    config: &ModelConfig,
    cuts: &[u16],
) -> Result<Option<KeepScores>> {
    let traces = (options.trace.is_some() || options.attaches_trace)
        && options.trace_dsa.rows != DsaRows::Off
        && cuts.is_empty();
    if !options.return_indexer_topk && (!traces || config.dsa.is_none()) {
        return Ok(None);
    }
    let Some(dsa) = &config.dsa else {
        return Err(EngineError::input(format!(
            "--return-indexer-topk: the model {} has no indexer, because its attention is not sparse",
            options.model
        )));
    };
    let keep = match (traces, options.trace_dsa.store_scores) {
        (false, _) => KeepScores::Nothing,
        (true, false) => KeepScores::Stats,
        (true, true) => KeepScores::Each,
    };
    let rows = options.max_num_batched_tokens;
    let arrays = if keep == KeepScores::Each { 2 } else { 1 };
    let bytes = arrays * IndexerTopk::bytes(u64::from(rows), dsa.indexer_layers().count(), dsa.index_topk);
    ensure_fits(&format!("keeping what indexers choose (--max-num-batched-tokens {rows})"), bytes)?;
    Ok(Some(keep))
}

/// The layers with an indexer, and the keys that each chooses at most.
pub(super) fn shape<D: Device>(runner: &Runner<D>) -> (usize, usize) {
    (runner.indexer_layers().len(), runner.model().selected_keys())
}

impl Session {
    /// Whether a request may ask for what it asks for, and whether there is room for it.
    pub(super) fn check_selections(&self, request: &Request) -> Result<()> {
        if !request.return_indexer_topk {
            return Ok(());
        }
        let Some((layers, k)) = self.indexer_topk_shape else {
            bail!("it asks for what the indexers chose, and the engine was not opened for that");
        };
        let most = (request.prompt.len() as u64 + u64::from(request.max_tokens))
            .min(u64::from(self.info.max_model_len));
        // The array, its file, and the text of the file are there at once.
        let bytes = 3 * IndexerTopk::bytes(most * u64::from(request.n), layers, k);
        ensure_fits("what the indexers choose for it", bytes)?;
        Ok(())
    }

    /// Hands each request that asked for it what the indexers chose for its tokens in the last step. Drafts
    /// that were rejected are left out. Behind a layer that drops tokens, keys are told by their positions too.
    pub(super) fn collect_selections(&mut self) -> Result<()> {
        let Some((layers, _)) = self.indexer_topk_shape else { return Ok(()) };
        let runner = self.executor.runner();
        let mut positions = Vec::new();
        for segment in 0..runner.model().num_segments() {
            // The layers of the segment, and those with an indexer among all that have one.
            let run = self.pruning.as_ref().map_or(0..u16::MAX, |pruning| pruning.layers_of(segment));
            let before = |layer: u16| runner.indexer_layers().partition_point(|&own| own < layer);
            let places = before(run.start)..before(run.end).min(layers);
            let (sequences, by_key) = (&self.sequences, &self.by_key);
            let reach = |request| {
                let sequence = by_key.get(request).and_then(|&id| sequences.get(id.0));
                sequence.and_then(|sequence| sequence.reach(run.start))
            };
            let told = |row: &PlanRow, position| match reach(row.request) {
                Some(reach) if reach.compact => reach.position(position),
                _ => position,
            };
            let rows = segment_rows(&self.plan, &self.outcome, segment, told);
            let rows: Vec<TokenRow> = rows.filter(|row| row.kept).collect();
            for row in rows {
                let request = self.plan.rows[row.plan_row].request;
                for place in places.clone() {
                    let chosen = runner.selected_keys(place, row.token)?;
                    ensure!(chosen.is_some(), "the model does not keep what its indexers choose");
                    let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, request) else {
                        continue;
                    };
                    positions.clear();
                    let reach = sequence.reach(run.start);
                    let position = |&key: &u32| reach.as_ref().map_or(key, |reach| reach.position(key));
                    positions.extend(chosen.unwrap_or_default().iter().map(position));
                    let Some(topk) = sequence.indexer_topk() else { continue };
                    topk.set(row.position, place, &positions);
                }
            }
        }
        Ok(())
    }
}
