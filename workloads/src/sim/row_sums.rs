use pagedraft_scheduler::{Kind, PlanRow};

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
    /// Adds a row and its drafts, whose queries have `context` tokens before them (averaged over the
    /// layers). Batch expansion makes rows of one token of it, each of which reads its own context.
    #[inline]
    pub(super) fn add(&mut self, row: &PlanRow, context: u32, drafts: u16, expands: bool) {
        let (start, new, drafts) = (u64::from(context), row.tokens.len() as u32, u32::from(drafts));
        let queries = new + drafts;
        let n = u64::from(queries);
        let pairs = n * start + n * n.saturating_sub(1) / 2;
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
