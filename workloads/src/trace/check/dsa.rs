//! Proves the records of sparse attention from the tables of their steps.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::fault::Fault;
use super::rows::query_len;
use super::rule::Rule;
use super::trace_config::TraceConfig;
use crate::Error;
use crate::json_fault;
use crate::run::{LineFormat, LineReader};
use crate::trace::{
    DSA_STEM, DsaFacts, DsaRow, DsaTopkRecord, DsaTraceConfig, RowKind, SUMMARY_FILE, StepRecord, prefix_key,
};

/// The records of a trace, read beside its steps.
pub(super) struct DsaCheck {
    config: DsaTraceConfig,
    block_size: u32,
    delta: bool,
    lines: Option<LineReader>,
    /// Whether the run came to its end, so that no record may be missing.
    whole: bool,
    /// The records of a stopped run may end before its steps do.
    ended: bool,
    requests: HashMap<String, Known>,
    /// How many records were proved.
    pub(super) records: u64,
}

/// What the steps say about a request since its admission.
#[derive(Default)]
struct Known {
    table: Vec<i64>,
    /// `None` until the first row after its admission.
    cached_blocks: Option<u32>,
    /// Its first tokens, as far as it computed them from the first one on before it was preempted.
    tokens: Vec<u32>,
    /// After a preemption, what a prefill row computes may be generated tokens.
    was_preempted: bool,
    /// The key that its records had first.
    key: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    DsaTopk(Box<DsaTopkRecord>),
}

/// A query token that must have a record for each layer.
struct Token {
    row: usize,
    position: u32,
}

impl DsaCheck {
    /// Opens the records of a trace; `None` if its configuration says that there are none.
    pub(super) fn open(directory: &Path, config: &TraceConfig) -> Result<Option<Self>, Error> {
        let Some(dsa) = config.dsa.clone() else { return Ok(None) };
        let path = LineFormat::Jsonl.file(directory, DSA_STEM);
        let lines = path.exists().then(|| LineReader::open(&path, LineFormat::Jsonl)).transpose()?;
        Ok(Some(Self {
            config: dsa,
            block_size: config.block_size,
            delta: config.delta,
            lines,
            whole: directory.join(SUMMARY_FILE).exists(),
            ended: false,
            requests: HashMap::new(),
            records: 0,
        }))
    }

    /// Proves the records of a step, which keeps the other rules.
    pub(super) fn check_step(&mut self, step: &StepRecord, owners: &[usize]) -> Result<(), Fault> {
        let tokens = self.note(step, owners);
        for token in tokens {
            self.check_token(step, &token)?;
        }
        for id in &step.finished {
            self.requests.remove(id);
        }
        Ok(())
    }

    /// Checks that nothing follows the records of the last step.
    pub(super) fn check_end(&mut self) -> Result<(), Fault> {
        match self.next()? {
            Some(record) if self.whole => {
                Err(self.fault(&record.request_id, "belongs to no row of the steps".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Takes in what a step says about its requests. Returns the query tokens that must have records.
    fn note(&mut self, step: &StepRecord, owners: &[usize]) -> Vec<Token> {
        for id in &step.preempted {
            if let Some(known) = self.requests.get_mut(id) {
                known.table.clear();
                (known.cached_blocks, known.was_preempted) = (None, true);
            }
        }
        let mut tokens = Vec::new();
        let starts = &step.metadata.query_start_loc;
        for (m, &owner) in owners.iter().enumerate() {
            let row = &step.rows[owner];
            let size = self.block_size.max(1);
            let known = self.requests.entry(row.request_id.clone()).or_default();
            known.cached_blocks.get_or_insert(row.num_computed / size);
            let table = step.metadata.block_tables[m].as_deref().unwrap_or_default();
            if !(self.delta && table.is_empty()) {
                known.table = table.to_vec();
            }
            let kind = kind_of(row.kind);
            for at in starts[m] as usize..starts[m + 1] as usize {
                let position = step.input_positions[at];
                if position as usize == known.tokens.len()
                    && known.tokens.len() < self.config.prefix_key_tokens as usize
                    && row.kind == RowKind::Prefill
                    && !known.was_preempted
                {
                    known.tokens.push(step.input_tokens[at]);
                }
                let has = kind.is_some_and(|kind| self.config.rows.has(kind));
                if has && self.config.samples(&row.request_id, position) {
                    tokens.push(Token { row: owner, position });
                }
            }
        }
        tokens
    }

    fn check_token(&mut self, step: &StepRecord, token: &Token) -> Result<(), Fault> {
        let row = &step.rows[token.row];
        let id = row.request_id.as_str();
        let outcome = &step.outcome[token.row];
        let own = query_len(step, token.row) - u64::from(outcome.num_drafts);
        let kept = u64::from(row.num_computed) + own + u64::from(outcome.num_accepted);
        let Some(kind) = kind_of(row.kind) else { return Ok(()) };
        let mut chosen: Vec<(u16, Vec<u32>)> = Vec::new();
        for layer in 0..self.config.layers {
            let Some(selection_layer) = self.config.selection_layer(layer) else { continue };
            let Some(record) = self.next()? else {
                if self.whole && !self.ended {
                    let what = format!("position {} of layer {layer} has no record", token.position);
                    return Err(self.fault(id, what));
                }
                self.ended = true;
                return Ok(());
            };
            let most = u64::from(self.config.index_topk).min(u64::from(token.position) + 1);
            if record.selected_token_pos.len() as u64 != most {
                let what = format!("{} keys are chosen, and not {most}", record.selected_token_pos.len());
                return Err(self.fault(id, what));
            }
            match chosen.iter().find(|(own, _)| *own == selection_layer) {
                Some((_, keys)) if *keys != record.selected_token_pos => {
                    let what = format!("layer {layer} does not use the choice of layer {selection_layer}");
                    return Err(self.fault(id, what));
                }
                Some(_) => {}
                None => chosen.push((selection_layer, record.selected_token_pos.clone())),
            }
            let proved = {
                let Some(known) = self.requests.get_mut(id) else { return Ok(()) };
                let key = known.key.get_or_insert_with(|| record.prefix.prefix_key.clone());
                let facts = DsaFacts {
                    request_id: id,
                    layer_id: layer,
                    selection_layer,
                    step: step.step,
                    step_idx: token.position,
                    row: kind,
                    accepted: (kind == DsaRow::Verify).then(|| u64::from(token.position) < kept),
                    selected: &record.selected_token_pos,
                    block_size: self.block_size,
                    latent_bytes: self.config.latent_bytes,
                    cached_blocks: known.cached_blocks.unwrap_or(0),
                    prefix_key: key,
                };
                let table = &known.table;
                DsaTopkRecord::of(facts, |place| u32::try_from(*table.get(place as usize)?).ok())
            };
            let mut proved = proved.map_err(|what| self.fault(id, what))?;
            if record.kv_fetch.hbm.latency_us.is_some() {
                let block_bytes = self.config.latent_bytes.saturating_mul(u64::from(self.block_size));
                record.kv_fetch.check(&proved.kv_fetch, block_bytes).map_err(|what| self.fault(id, what))?;
                proved.kv_fetch.clone_from(&record.kv_fetch);
            }
            self.compare(&proved, &record)?;
            self.records += 1;
        }
        self.check_key(id)
    }

    /// Checks the key of a request whose first tokens are known, and as many as the key stands for.
    fn check_key(&self, id: &str) -> Result<(), Fault> {
        let Some(known) = self.requests.get(id) else { return Ok(()) };
        let (Some(key), most) = (&known.key, self.config.prefix_key_tokens) else { return Ok(()) };
        if known.tokens.len() < most as usize {
            return Ok(());
        }
        let own = prefix_key(&known.tokens, most);
        if own != *key {
            return Err(self.fault(id, format!("prefix_key is {key:?}, the tokens give {own:?}")));
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<DsaTopkRecord>, Fault> {
        let Some(lines) = &mut self.lines else { return Ok(None) };
        let number = lines.number() + 1;
        let bad = |what: String| Fault::new(Rule::DsaTopk, format!("line {number} of {DSA_STEM}: {what}"));
        match lines.next_line().map_err(|error| bad(error.to_string()))? {
            None => Ok(None),
            Some(line) => {
                let Line::DsaTopk(record) =
                    json_fault::parse(line).map_err(|error| bad(error.to_string()))?;
                Ok(Some(*record))
            }
        }
    }

    /// Names the first field in which a record differs from what was proved.
    fn compare(&self, proved: &DsaTopkRecord, record: &DsaTopkRecord) -> Result<(), Fault> {
        if proved == record {
            return Ok(());
        }
        let value = |of| serde_json::to_value(of).unwrap_or_default();
        let (should, is) = (value(proved), value(record));
        let fields = should.as_object().into_iter().flatten();
        let differs = fields.into_iter().find(|(name, should)| is.get(name.as_str()) != Some(*should));
        let what = match differs {
            Some((name, should)) => {
                let is = is.get(name.as_str()).cloned().unwrap_or_default();
                format!("{name} is {is}, the step gives {should}")
            }
            None => "it differs from what the step gives".to_owned(),
        };
        Err(self.fault(&proved.request_id, what))
    }

    fn fault(&self, id: &str, what: String) -> Fault {
        let line = self.lines.as_ref().map_or(0, LineReader::number);
        Fault::of(Rule::DsaTopk, id, format!("line {line} of {DSA_STEM}: {what}"))
    }
}

fn kind_of(kind: RowKind) -> Option<DsaRow> {
    match kind {
        RowKind::Prefill => Some(DsaRow::Prefill),
        RowKind::Decode => Some(DsaRow::Decode),
        RowKind::Verify => Some(DsaRow::Verify),
        RowKind::Denoise => None,
    }
}
