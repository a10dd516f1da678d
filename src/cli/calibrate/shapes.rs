//! Describes the work of a session's step in the terms of a cost model.

use std::collections::HashMap;

use pagedraft::session::Session;
use pagedraft_model::Ran;
use pagedraft_scheduler::{Kind, RequestKey};
use pagedraft_workloads::sim::StepShape;

/// Follows a session step by step, because what a proposer must catch up with depends on earlier steps.
#[derive(Debug, Default)]
pub struct Shapes {
    /// For each request, the number of tokens whose KV the proposer has.
    drafted: HashMap<RequestKey, u32>,
    drafts: Vec<u32>,
}

/// The drafts of a row that was or could have been given some, and how many were accepted.
#[derive(Clone, Copy, Debug)]
pub struct Drafts {
    pub given: u32,
    pub accepted: u32,
}

impl Shapes {
    /// The shape of the last step. `accepted` has the number of accepted drafts of each plan row. `rows` is
    /// called with the drafts of each row that was asked for some. `keeps_kv` and `catch_up` describe the
    /// proposer.
    pub fn of_last(
        &mut self,
        session: &Session,
        keeps_kv: bool,
        catch_up: u32,
        accepted: impl Fn(usize) -> u32,
        mut told: impl FnMut(Drafts),
    ) -> StepShape {
        let (plan, record) = session.last_step();
        let metadata = record.inputs.metadata();
        let mut shape = StepShape {
            plan_rows: plan.rows.len() as u32,
            metadata_rows: metadata.num_rows() as u32,
            token_rows: record.inputs.tokens.len() as u32,
            prefills: plan.rows.iter().filter(|row| row.kind == Kind::Prefill).count() as u32,
            replayed: record.is_replayed(),
            pad_rows: match &record.ran {
                Ran::Graph(key) => key.token_rows.saturating_sub(record.inputs.tokens.len() as u32),
                Ran::Eager(_) => 0,
            },
            ..StepShape::default()
        };
        self.drafts.clear();
        self.drafts.extend(plan.rows.iter().map(|row| 0u32.wrapping_sub(row.tokens.len() as u32)));
        for (i, &row) in record.plan_rows.iter().enumerate() {
            let queries = metadata.query_start_loc[i + 1] - metadata.query_start_loc[i];
            let context = metadata.context_lens[i];
            let pairs = StepShape::pairs(context, queries, |len| session.context_read(len));
            shape.context_reads += u64::from(session.context_read(context));
            shape.context_pairs += pairs;
            shape.prefill_pairs += match plan.rows[row as usize].kind {
                Kind::Prefill => pairs,
                _ => 0,
            };
            let drafts = &mut self.drafts[row as usize];
            *drafts = drafts.wrapping_add(queries);
        }
        let single =
            plan.rows.iter().zip(&self.drafts).filter(|(row, drafts)| row.tokens.len() == 1 && **drafts == 0);
        shape.single_reads = single.map(|(row, _)| u64::from(session.context_read(row.tokens.start))).sum();
        for key in &plan.finished {
            self.drafted.remove(key);
        }
        let mut left = catch_up;
        for (i, row) in plan.rows.iter().enumerate() {
            let given = self.drafts[i];
            if row.samples {
                shape.logit_rows += 1 + given;
            }
            if row.drafts_max == 0 {
                continue;
            }
            let (len, accepted) = (row.tokens.end, accepted(i).min(given));
            told(Drafts { given, accepted });
            if !keeps_kv {
                (0..given.max(1) as usize).for_each(|depth| shape.add_draft_row(depth, 0, 1));
                continue;
            }
            let drafted = self.drafted.entry(row.request).or_default();
            let start = (*drafted).min(len.saturating_sub(1));
            let lacks = len - 1 - start;
            let mut fed = len;
            if lacks > 1 {
                let taken = lacks.min(left);
                left -= taken;
                if taken < lacks {
                    fed = start + taken;
                }
            }
            if fed > start {
                shape.add_draft_row(0, start, fed - start);
            }
            (1..given).for_each(|depth| shape.add_draft_row(depth as usize, fed + depth - 1, 1));
            *drafted = (fed + given.saturating_sub(1)).min(len + accepted);
        }
        shape
    }
}
