//! Records what the passes of a step were given, sequence by sequence.

use pagedraft_block_manager::BlockId;
use pagedraft_model::StepInputs;

use super::GroupStep;

/// Collects the inputs of each pass by the rows of the step, so that the record shows what ran. The buffers are kept.
#[derive(Default)]
pub(super) struct PassLog {
    /// The inputs of each row of the step.
    rows: Vec<Logged>,
}

/// What the passes so far were given for one sequence.
#[derive(Default)]
struct Logged {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<i64>,
    /// The block table in its last pass. The tables of earlier passes were beginnings of it.
    table: Vec<BlockId>,
    /// The number of tokens in the group before its first pass.
    context: u32,
    /// The number of tokens in the group after its last pass.
    len: u32,
}

impl PassLog {
    /// Begins a step with this many rows.
    pub fn begin(&mut self, rows: usize) {
        if self.rows.len() < rows {
            self.rows.resize_with(rows, Logged::default);
        }
        for row in &mut self.rows {
            row.tokens.clear();
            row.positions.clear();
            row.slots.clear();
            row.table.clear();
        }
    }

    /// Notes a pass. `owners` gives, for each row of the pass, the row of the step it belongs to.
    pub fn note(&mut self, inputs: &StepInputs, owners: &[usize]) {
        let metadata = inputs.metadata();
        for (m, &owner) in owners.iter().enumerate() {
            let Some(row) = self.rows.get_mut(owner) else { continue };
            let fed = metadata.query_start_loc[m] as usize..metadata.query_start_loc[m + 1] as usize;
            if row.tokens.is_empty() {
                row.context = metadata.context_lens[m];
            }
            row.len = metadata.seq_lens[m];
            row.tokens.extend_from_slice(&inputs.tokens[fed.clone()]);
            row.positions.extend_from_slice(&inputs.positions[fed.clone()]);
            row.slots.extend_from_slice(&metadata.slot_mapping[fed]);
            row.table.clear();
            row.table.extend_from_slice(metadata.block_tables.get(m).unwrap_or_default());
        }
    }

    /// Writes the record of the step. `rows` lists the step's rows in the order wanted; those that were fed
    /// no token are left out. `plan_rows` has the plan row of every row of the step.
    pub fn write(&self, rows: impl Iterator<Item = usize>, plan_rows: &[u32], record: &mut GroupStep) {
        record.plan_rows.clear();
        record.input_tokens.clear();
        record.input_positions.clear();
        record.query_start_loc.clear();
        record.query_start_loc.push(0);
        record.slot_mapping.clear();
        record.seq_lens.clear();
        record.context_lens.clear();
        let mut written = 0;
        for (at, row) in rows.filter_map(|at| Some((at, self.rows.get(at)?))) {
            if row.tokens.is_empty() {
                continue;
            }
            record.plan_rows.push(plan_rows[at]);
            record.input_tokens.extend_from_slice(&row.tokens);
            record.input_positions.extend_from_slice(&row.positions);
            record.query_start_loc.push(record.input_tokens.len() as u32);
            record.slot_mapping.extend_from_slice(&row.slots);
            record.seq_lens.push(row.len);
            record.context_lens.push(row.context);
            if record.block_tables.len() == written {
                record.block_tables.push(Vec::new());
            }
            let table = &mut record.block_tables[written];
            table.clear();
            table.extend_from_slice(&row.table);
            written += 1;
        }
        record.block_tables.truncate(written);
    }
}
