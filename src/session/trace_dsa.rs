//! Writes what the layers of a model with sparse attention attended to, beside the steps of a trace.

use std::collections::HashMap;

use anyhow::{anyhow, ensure};
use pagedraft_block_manager::{KvGroup, PartKind};
use pagedraft_model::tiers::{Fetch, TierId, Tiers};
use pagedraft_model::{Device, Runner};
use pagedraft_scheduler::{Kind, KvView, RequestKey, Scheduler, StepOutcome, StepPlan};
use pagedraft_spec_decode::ExecutionRecord;
use pagedraft_workloads::trace::{
    DsaFacts, DsaRow, DsaTopkRecord, DsaTraceConfig, StepNames, TraceWriter, prefix_key,
};

use super::options::DsaTraceOptions;
use super::token_rows::token_rows;

/// What is known about a request from its admission on.
struct Prefix {
    /// How many of its first blocks came from the prefix cache.
    cached_blocks: u32,
    key: String,
}

/// What records are made of from step to step.
pub(super) struct TraceDsa {
    config: DsaTraceConfig,
    block_size: u32,
    prefixes: HashMap<RequestKey, Prefix>,
}

/// What `config.json` says about the records of a trace. `None` of a model without sparse attention, and
/// where none are asked for.
pub(super) fn config(
    options: &DsaTraceOptions,
    groups: &[KvGroup],
    index_topk: usize,
) -> Option<DsaTraceConfig> {
    let parts = &groups.first()?.parts;
    let part = |kind: PartKind| parts.iter().find(|part| part.kind == kind);
    let (latents, keys) = (part(PartKind::Latent)?, part(PartKind::IndexKeys)?);
    options.rows.has(DsaRow::Decode).then(|| DsaTraceConfig {
        rows: options.rows,
        sample_rate: options.sample_rate,
        prefix_key_tokens: options.prefix_key_tokens,
        index_topk: u32::try_from(index_topk).unwrap_or(u32::MAX),
        layers: u16::try_from(latents.layers.len()).unwrap_or(u16::MAX),
        indexer_layers: keys.layers.iter().collect(),
        latent_bytes: latents.bytes_per_token as u64,
    })
}

/// What a step fetched for each layer of each token row.
struct Fetched {
    fetches: HashMap<(u16, u32), Vec<Fetch>>,
    found: HashMap<(u16, u32), f64>,
}

impl Fetched {
    /// `None` without tiers.
    fn of(tiers: Option<&mut Tiers>) -> Option<Self> {
        let (fetches, waited) = tiers?.fetches();
        let mut fetched = Self { fetches: HashMap::new(), found: HashMap::new() };
        for &fetch in fetches {
            fetched.fetches.entry((fetch.layer, fetch.token)).or_default().push(fetch);
        }
        fetched.found.extend(waited.iter().map(|waited| ((waited.layer, waited.token), waited.us)));
        Some(fetched)
    }

    /// Notes in a record where its blocks were. A block that two token rows chose was fetched for the first of them, unless that one
    /// is a row which stored into it; host memory of last resort counts as the local pool.
    fn note(&self, record: &mut DsaTopkRecord, row: (u16, u32), block_bytes: u64) {
        let of = |remote: bool| -> Vec<(u32, f64)> {
            let own = self.fetches.get(&row).into_iter().flatten();
            let own = own.filter(|fetch| (fetch.tier == TierId::RemotePool) == remote);
            let chosen = own.filter(|fetch| record.selected_block_ids.contains(&fetch.block));
            let mut blocks: Vec<(u32, f64)> = Vec::new();
            for fetch in chosen {
                match blocks.iter_mut().find(|(block, _)| *block == fetch.block) {
                    // A row that needs more blocks than tier 0 holds may fetch one twice.
                    Some((_, us)) => *us += fetch.us,
                    None => blocks.push((fetch.block, fetch.us)),
                }
            }
            blocks
        };
        let (local, mut remote) = (of(false), of(true));
        remote.retain(|(block, _)| local.iter().all(|(other, _)| other != block));
        let found = self.found.get(&row).copied().unwrap_or(0.0);
        record.kv_fetch =
            std::mem::take(&mut record.kv_fetch).from_tiers(&local, &remote, block_bytes, found);
    }
}

impl TraceDsa {
    pub fn new(config: DsaTraceConfig, block_size: u32) -> Self {
        Self { config, block_size, prefixes: HashMap::new() }
    }

    /// Writes the records of the last step, after its line.
    ///
    /// # Errors
    ///
    /// The disk or the device has a fault.
    pub fn step<D: Device>(
        &mut self,
        (plan, outcome): (&StepPlan, &StepOutcome<ExecutionRecord>),
        runner: &mut Runner<D>,
        scheduler: &Scheduler,
        names: &dyn StepNames,
        writer: &mut TraceWriter,
    ) -> anyhow::Result<()> {
        self.note(plan, scheduler);
        let fetched = Fetched::of(runner.device_mut().tiers());
        let step = writer.first_step().saturating_add(plan.id.0);
        let tables = &outcome.record.inputs.metadata().block_tables;
        for token in token_rows(plan, outcome) {
            let row = &plan.rows[token.plan_row];
            let kind = match row.kind {
                Kind::Prefill => DsaRow::Prefill,
                Kind::Decode => DsaRow::Decode,
                Kind::Verify => DsaRow::Verify,
                Kind::Denoise { .. } => continue,
            };
            let request_id = names.request_id(row.request);
            if !self.config.rows.has(kind) || !self.config.samples(request_id, token.position) {
                continue;
            }
            let Some(prefix) = self.prefixes.get(&row.request) else { continue };
            let table = tables.get(token.metadata_row).unwrap_or_default();
            for layer in 0..self.config.layers {
                let source = self.config.selection_layer(layer);
                let place = source
                    .and_then(|source| self.config.indexer_layers.iter().position(|&own| own == source));
                let (Some(selection_layer), Some(place)) = (source, place) else { continue };
                let selected = runner.selected_keys(place, token.token)?;
                ensure!(selected.is_some(), "the model does not keep what its indexers choose");
                let facts = DsaFacts {
                    request_id,
                    layer_id: layer,
                    selection_layer,
                    step,
                    step_idx: token.position,
                    row: kind,
                    accepted: token.verified.then_some(token.kept),
                    selected: selected.unwrap_or_default(),
                    block_size: self.block_size,
                    latent_bytes: self.config.latent_bytes,
                    cached_blocks: prefix.cached_blocks,
                    prefix_key: &prefix.key,
                };
                let block = |place: u32| table.get(place as usize).map(|block| block.0);
                let mut record = DsaTopkRecord::of(facts, block).map_err(|what| {
                    anyhow!("layer {layer}, request {request_id:?}, position {}: {what}", token.position)
                })?;
                if let Some(fetched) = &fetched {
                    let bytes = self.config.latent_bytes.saturating_mul(u64::from(self.block_size));
                    fetched.note(&mut record, (layer, token.token as u32), bytes);
                }
                writer.write_dsa(&record)?;
            }
        }
        Ok(())
    }

    /// Takes note of the requests that were admitted with the step: its first row begins behind the blocks
    /// that it found in the prefix cache.
    fn note(&mut self, plan: &StepPlan, scheduler: &Scheduler) {
        for request in plan.preempted.iter().chain(&plan.finished) {
            self.prefixes.remove(request);
        }
        for row in &plan.rows {
            if self.prefixes.contains_key(&row.request) {
                continue;
            }
            let prompt = scheduler.request(row.request).map_or(0, |info| info.num_prompt_tokens as usize);
            let tokens = scheduler.tokens(row.request);
            let key = prefix_key(&tokens[..prompt.min(tokens.len())], self.config.prefix_key_tokens);
            let cached_blocks = row.tokens.start / self.block_size.max(1);
            self.prefixes.insert(row.request, Prefix { cached_blocks, key });
        }
    }
}
