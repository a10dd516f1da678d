//! Proves the records of sparse attention from the tables of their steps.

use std::collections::HashMap;
use std::path::Path;

use super::dsa_fields::{self, Stated};
use super::fault::Fault;
use super::rows::query_len;
use super::rule::Rule;
use super::trace_config::TraceConfig;
use crate::Error;
use crate::trace::{
    DSA_STEM, DsaRecords, DsaRow, DsaTopkRecord, DsaTraceConfig, RowKind, SUMMARY_FILE, StepRecord,
    prefix_key,
};

/// The records of a trace, read beside its steps.
pub(super) struct DsaCheck {
    config: DsaTraceConfig,
    block_size: u32,
    delta: bool,
    records_there: Option<DsaRecords>,
    /// A record that was read before its step.
    held: Option<DsaTopkRecord>,
    /// What is wrong if the run was not stopped here and resumed: records are missing.
    gap: Option<Fault>,
    /// Whether the run came to its end, so that no record may be missing.
    whole: bool,
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

/// A query token that must have a record for each layer.
struct Token {
    row: usize,
    position: u32,
}

impl DsaCheck {
    /// Opens the records of a trace; `None` if its configuration says that there are none.
    pub(super) fn open(directory: &Path, config: &TraceConfig) -> Result<Option<Self>, Error> {
        let Some(dsa) = config.dsa.clone() else { return Ok(None) };
        Ok(Some(Self {
            config: dsa,
            block_size: config.block_size,
            delta: config.delta,
            records_there: DsaRecords::open(directory)?,
            held: None,
            gap: None,
            whole: directory.join(SUMMARY_FILE).exists(),
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

    /// A new engine goes on with the run. The one that was stopped may have left fewer records than steps.
    pub(super) fn resume(&mut self) {
        self.requests.clear();
        self.gap = None;
    }

    /// Checks that nothing follows the records of the last step.
    pub(super) fn check_end(&mut self) -> Result<(), Fault> {
        if let Some(gap) = self.gap.take_if(|_| self.whole) {
            return Err(gap);
        }
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
        let mut chosen: Vec<DsaTopkRecord> = Vec::new();
        let missing = |layer: u16| format!("position {} of layer {layer} has no record", token.position);
        for layer in 0..self.config.layers {
            let Some(selection_layer) = self.config.selection_layer(layer) else { continue };
            let record = self.next()?.filter(|record| {
                let later = record.step > step.step;
                if later {
                    self.held = Some(record.clone());
                }
                !later
            });
            let Some(record) = record else {
                let gap = self.fault(id, missing(layer));
                self.gap.get_or_insert(gap);
                return Ok(());
            };
            if let Some(gap) = self.gap.take() {
                return Err(gap);
            }
            let proved = {
                let Some(known) = self.requests.get_mut(id) else { return Ok(()) };
                let key = known.key.get_or_insert_with(|| record.prefix.prefix_key.clone());
                let stated = Stated {
                    request_id: id,
                    layer,
                    selection_layer,
                    step: step.step,
                    position: token.position,
                    row: kind,
                    accepted: (kind == DsaRow::Verify).then(|| u64::from(token.position) < kept),
                    table: &known.table,
                    block_size: self.block_size,
                    cached_blocks: known.cached_blocks.unwrap_or(0),
                    prefix_key: key,
                };
                dsa_fields::check(&record, &self.config, &stated)
            };
            proved.map_err(|what| self.fault(id, what))?;
            let choice =
                |of: &DsaTopkRecord| (of.selected_token_pos.clone(), of.scores_stats, of.scores_topk.clone());
            match chosen.iter().find(|own| own.layer_id == selection_layer) {
                Some(own) if choice(own) != choice(&record) => {
                    let what = format!("layer {layer} does not use the choice of layer {selection_layer}");
                    return Err(self.fault(id, what));
                }
                Some(_) => {}
                None => chosen.push(record),
            }
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
        if let Some(record) = self.held.take() {
            return Ok(Some(record));
        }
        let Some(records) = &mut self.records_there else { return Ok(None) };
        records.next_record().map_err(|error| Fault::new(Rule::DsaTopk, error.to_string()))
    }

    fn fault(&self, id: &str, what: String) -> Fault {
        let number = self.records_there.as_ref().map_or(0, DsaRecords::number);
        Fault::of(Rule::DsaTopk, id, format!("record {number} of {DSA_STEM}: {what}"))
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
