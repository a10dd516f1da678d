//! Writes what the layers of a model with sparse attention attended to, beside the steps of a trace.

use std::collections::{BTreeMap, HashMap, HashSet};

use pagedraft_block_manager::{KvGroup, PartKind};
use pagedraft_model::tiers::{Fetch, TierId, Tiers};
use pagedraft_model::{Device, Runner};
use pagedraft_scheduler::{Kind, KvView, RequestKey, Scheduler, StepOutcome, StepPlan};
use pagedraft_spec_decode::ExecutionRecord;
use pagedraft_workloads::trace::{
    DsaFetched, DsaFormat, DsaRow, DsaScores, DsaSelection, DsaTiers, DsaToken, DsaTraceConfig, StepNames,
    TraceWriter, prefix_key,
};

use super::options::DsaTraceOptions;
use super::token_rows::token_rows;
use crate::error::{Result, ensure};

/// What is known about a request from its admission on.
#[derive(Clone)]
struct Prefix {
    request_id: String,
    /// How many of its first blocks came from the prefix cache.
    cached_blocks: u32,
    key: String,
}

/// What records are made of from step to step.
#[derive(Clone)]
pub(super) struct TraceDsa {
    config: DsaTraceConfig,
    format: DsaFormat,
    block_size: u32,
    prefixes: HashMap<RequestKey, Prefix>,
    /// The token that is being written. Its memory is used again.
    token: DsaToken,
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

    /// Where the chosen `blocks` of a layer's token row were. A block that two token rows chose was fetched for the first of them, unless
    /// that one is a row which stored into it; host memory of last resort counts as the local pool.
    fn tiers(&self, row: (u16, u32), blocks: &HashSet<u32>) -> DsaTiers {
        let of = |remote: bool| -> BTreeMap<u32, f64> {
            let own = self.fetches.get(&row).into_iter().flatten();
            let own = own.filter(|fetch| (fetch.tier == TierId::RemotePool) == remote);
            let mut fetched = BTreeMap::new();
            for fetch in own.filter(|fetch| blocks.contains(&fetch.block)) {
                // A row that needs more blocks than tier 0 holds may fetch one twice.
                *fetched.entry(fetch.block).or_insert(0.0) += fetch.us;
            }
            fetched
        };
        let (local, mut remote) = (of(false), of(true));
        remote.retain(|block, _| !local.contains_key(block));
        let fetched = |from: BTreeMap<u32, f64>| DsaFetched {
            us: from.values().sum(),
            blocks: from.into_keys().collect(),
        };
        let found_us = self.found.get(&row).copied().unwrap_or(0.0);
        DsaTiers { found_us, local: fetched(local), remote: fetched(remote) }
    }
}

impl TraceDsa {
    /// `None` of a model without sparse attention, and where no records are asked for.
    pub fn new(
        options: &DsaTraceOptions,
        groups: &[KvGroup],
        index_topk: usize,
        block_size: u32,
    ) -> Option<Self> {
        let parts = &groups.first()?.parts;
        let part = |kind: PartKind| parts.iter().find(|part| part.kind == kind);
        let (latents, keys) = (part(PartKind::Latent)?, part(PartKind::IndexKeys)?);
        let config = options.rows.has(DsaRow::Decode).then(|| DsaTraceConfig {
            rows: options.rows,
            sample_rate: options.sample_rate,
            prefix_key_tokens: options.prefix_key_tokens,
            store_scores: options.store_scores,
            index_topk: u32::try_from(index_topk).unwrap_or(u32::MAX),
            layers: u16::try_from(latents.layers.len()).unwrap_or(u16::MAX),
            indexer_layers: keys.layers.iter().collect(),
            latent_bytes: latents.bytes_per_token as u64,
        })?;
        let selections = vec![DsaSelection::default(); config.indexer_layers.len()];
        Some(Self {
            config,
            format: options.format,
            block_size,
            prefixes: HashMap::new(),
            token: DsaToken { selections, ..DsaToken::default() },
        })
    }

    /// What `config.json` says about the records.
    pub fn config(&self) -> &DsaTraceConfig {
        &self.config
    }

    /// Opens the file of the records.
    ///
    /// # Errors
    ///
    /// It can't be opened.
    pub fn open(&self, writer: &mut TraceWriter) -> Result<()> {
        Ok(writer.keep_dsa(&self.config, self.block_size, self.format)?)
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
    ) -> Result<()> {
        self.note(plan, scheduler, names, writer);
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
            let own = &mut self.token;
            request_id.clone_into(&mut own.request_id);
            own.prefix_key.clone_from(&prefix.key);
            (own.step, own.step_idx, own.row) = (step, token.position, kind);
            own.accepted = token.verified.then_some(token.kept);
            own.cached_blocks = prefix.cached_blocks;
            own.table.clear();
            let table = tables.get(token.metadata_row).unwrap_or_default();
            own.table.extend(table.iter().map(|block| block.0));
            for (place, selection) in own.selections.iter_mut().enumerate() {
                let kept = runner.selected_scores(place, token.token)?;
                selection.scores = kept.map(|of| DsaScores { min: of.min, mean: of.mean, max: of.max });
                selection.each_score.clear();
                selection.each_score.extend_from_slice(kept.map_or(&[], |of| of.each));
                let selected = runner.selected_keys(place, token.token)?;
                ensure!(selected.is_some(), "the model does not keep what its indexers choose");
                selection.positions.clear();
                selection.positions.extend_from_slice(selected.unwrap_or_default());
            }
            own.tiers.clear();
            if let Some(fetched) = &fetched {
                for layer in 0..self.config.layers {
                    let place = self.config.indexer_layers.iter().rposition(|&indexer| indexer <= layer);
                    let positions = place.map_or(&[][..], |place| &own.selections[place].positions);
                    let block =
                        |position: &u32| own.table.get((position / self.block_size) as usize).copied();
                    let blocks: HashSet<u32> = positions.iter().filter_map(block).collect();
                    own.tiers.push(fetched.tiers((layer, token.token as u32), &blocks));
                }
            }
            writer.write_dsa(own)?;
        }
        Ok(())
    }

    /// Takes note of the requests that were admitted with the step: its first row begins behind the blocks
    /// that it found in the prefix cache.
    fn note(
        &mut self,
        plan: &StepPlan,
        scheduler: &Scheduler,
        names: &dyn StepNames,
        writer: &mut TraceWriter,
    ) {
        for request in plan.preempted.iter().chain(&plan.finished) {
            if let Some(prefix) = self.prefixes.remove(request) {
                writer.forget_dsa(&prefix.request_id);
            }
        }
        for row in &plan.rows {
            if self.prefixes.contains_key(&row.request) {
                continue;
            }
            let prompt = scheduler.request(row.request).map_or(0, |info| info.num_prompt_tokens as usize);
            let tokens = scheduler.tokens(row.request);
            let key = prefix_key(&tokens[..prompt.min(tokens.len())], self.config.prefix_key_tokens);
            let cached_blocks = row.tokens.start / self.block_size.max(1);
            let request_id = names.request_id(row.request).to_owned();
            self.prefixes.insert(row.request, Prefix { request_id, cached_blocks, key });
        }
    }
}
