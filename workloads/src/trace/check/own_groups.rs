//! Checks the KV groups of a step that have rows of their own.

use std::collections::HashSet;

use super::fault::Fault;
use super::lives::Lives;
use super::own_group::{GroupCall, OwnGroup};
use super::rule::Rule;
use super::slots::used_table;
use super::tables::blocks_of;
use crate::trace::{GroupRecord, StepRecord};

impl Lives {
    /// Checks every group of the step that has rows of its own. Returns the number of slots that were
    /// re-derived. The outcome's tokens are known already, but requests that it ends are still there.
    pub(super) fn check_own_groups(&mut self, step: &StepRecord, inputs: &[Vec<u32>]) -> Result<u64, Fault> {
        let mut slots = 0;
        for (name, group) in step.groups.iter().flatten() {
            let Some(plan_rows) = &group.plan_rows else { continue };
            let named = |fault: Fault| Fault { what: format!("group {name:?}: {}", fault.what), ..fault };
            let owners = check_rows(step, group, plan_rows).map_err(named)?;
            let tables = self.own_tables(step, name, group, &owners).map_err(named)?;
            let call = GroupCall { step, group, inputs, owners, tables, caching: self.caching };
            let block_size = self.block_size;
            let own = self.own_groups.entry(name.clone()).or_insert_with(|| OwnGroup::new(block_size));
            slots += own.check(&call, &mut self.live, block_size).map_err(named)?;
        }
        Ok(slots)
    }

    fn own_tables(
        &mut self,
        step: &StepRecord,
        name: &str,
        group: &GroupRecord,
        owners: &[usize],
    ) -> Result<Vec<Vec<u32>>, Fault> {
        let num_blocks = blocks_of(step, name).unwrap_or(u64::from(u32::MAX));
        let mut tables = Vec::with_capacity(owners.len());
        for (m, &owner) in owners.iter().enumerate() {
            let id = step.rows[owner].request_id.as_str();
            let bad = |rule: Rule, what: String| Fault::of(rule, id, what);
            let (length, size) = (group.seq_lens[m], self.block_size);
            let written = self.written_table(id, name, group.block_tables[m].as_deref());
            let table = used_table(written, length, size, num_blocks, (0, None));
            let table = table.map_err(|(rule, what)| bad(rule, what))?;
            let mut seen = HashSet::with_capacity(table.len());
            if let Some(block) = table.iter().find(|&block| !seen.insert(block)) {
                return Err(bad(Rule::BlockTable, format!("block {block} is twice in its table")));
            }
            tables.push(table);
        }
        Ok(tables)
    }
}

/// The plan row of each row, after checking that the lists fit each other.
fn check_rows(step: &StepRecord, group: &GroupRecord, plan_rows: &[u64]) -> Result<Vec<usize>, Fault> {
    let (rows, tokens) = (plan_rows.len(), group.input_tokens.len());
    let lengths = [
        ("input_positions", group.input_positions.len(), tokens),
        ("slot_mapping", group.slot_mapping.len(), tokens),
        ("seq_lens", group.seq_lens.len(), rows),
        ("context_lens", group.context_lens.len(), rows),
        ("block_tables", group.block_tables.len(), rows),
        ("query_start_loc", group.query_start_loc.len(), rows + 1),
    ];
    for (name, is, should) in lengths {
        if is != should {
            let what = format!("{name} has {is} entries, should have {should}");
            return Err(Fault::new(Rule::Lengths, what));
        }
    }
    let loc = &group.query_start_loc;
    let sums = loc[0] == 0
        && loc[rows] == tokens as u64
        && (0..rows).all(|m| {
            let query = loc[m + 1].checked_sub(loc[m]);
            let own = query.and_then(|query| group.context_lens[m].checked_add(query));
            // The queries of a canvas may have keys behind them.
            let bidirectional = group.mask_kinds.get(m).is_some_and(|mask| mask == "bidirectional");
            own.is_some_and(|own| own == group.seq_lens[m] || bidirectional && own < group.seq_lens[m])
        });
    if !sums {
        let what = format!(
            "query_start_loc {loc:?}, context_lens {:?}, seq_lens {:?} and {tokens} input tokens don't add up",
            group.context_lens, group.seq_lens
        );
        return Err(Fault::new(Rule::Lengths, what));
    }
    let mut owners = Vec::with_capacity(rows);
    for &row in plan_rows {
        let owner = usize::try_from(row).ok().filter(|&row| row < step.rows.len());
        match owner {
            Some(owner) if !owners.contains(&owner) => owners.push(owner),
            _ => {
                let what = format!("plan_rows names row {row} twice, or there is none");
                return Err(Fault::new(Rule::MetadataRows, what));
            }
        }
    }
    Ok(owners)
}
