use pagedraft_scheduler::{Kind, PlanRow};

use super::StepShape;

/// The parts of a step's shape that are sums over its rows.
#[derive(Debug, Default)]
pub(super) struct RowSums {
    pub(super) metadata_rows: u32,
    pub(super) token_rows: u32,
    pub(super) logit_rows: u32,
    pub(super) context_reads: u64,
    pub(super) single_reads: u64,
    pub(super) context_pairs: u64,
    pub(super) prefill_pairs: u64,
    pub(super) prefills: u32,
    pub(super) max_query_len: u32,
    pub(super) prefill_tokens: u32,
    pub(super) decode_rows: u32,
}

impl RowSums {
    /// A row and its drafts. `reads` says how many tokens a query behind so many reads, averaged over the layers. Batch expansion makes
    /// rows of one token of it, each of which reads its own context.
    #[inline]
    pub(super) fn add(&mut self, row: &PlanRow, reads: impl Fn(u32) -> u32, drafts: u16, expands: bool) {
        let (new, drafts) = (row.tokens.len() as u32, u32::from(drafts));
        let queries = new + drafts;
        let pairs = StepShape::pairs(row.tokens.start, queries, &reads);
        let start = u64::from(reads(row.tokens.start));
        self.token_rows += queries;
        self.context_pairs += pairs;
        if expands && drafts > 0 {
            self.metadata_rows += queries;
            self.context_reads += pairs;
            self.max_query_len = self.max_query_len.max(1);
        } else {
            self.metadata_rows += 1;
            self.context_reads += start;
            self.single_reads += if queries == 1 { start } else { 0 };
            self.max_query_len = self.max_query_len.max(queries);
        }
        if row.samples {
            self.logit_rows += 1 + drafts;
        }
        match row.kind {
            Kind::Prefill => {
                self.prefill_tokens += new;
                self.prefill_pairs += pairs;
                self.prefills += 1;
            }
            _ => self.decode_rows += 1,
        }
    }
}
