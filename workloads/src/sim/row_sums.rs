use std::ops::Range;

use pagedraft_scheduler::{Kind, PlanRow};

use super::{SegmentShape, StepShape};

/// The parts of a step's shape that are sums over its rows, in one segment of the model.
#[derive(Clone, Debug, Default)]
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
    /// A row and its drafts in a segment, whose known tokens are `span` among those that the segment holds of the request. `reads` says how
    /// many tokens a query behind so many reads, averaged over the layers. Batch expansion makes rows of one token of it, each of which
    /// reads its own context.
    #[inline]
    pub(super) fn add(
        &mut self,
        (row, span): (&PlanRow, Range<u32>),
        reads: impl Fn(u32) -> u32,
        drafts: u16,
        expands: bool,
    ) {
        let drafts = u32::from(drafts);
        let queries = span.len() as u32 + drafts;
        let pairs = StepShape::pairs(span.start, queries, &reads);
        let start = u64::from(reads(span.start));
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
        if row.kind == Kind::Prefill {
            self.prefill_pairs += pairs;
        }
    }

    /// What a row adds whatever the number of segments that it runs through.
    #[inline]
    pub(super) fn add_once(&mut self, row: &PlanRow, drafts: u16) {
        if row.samples {
            self.logit_rows += 1 + u32::from(drafts);
        }
        match row.kind {
            Kind::Prefill => {
                self.prefill_tokens += row.tokens.len() as u32;
                self.prefills += 1;
            }
            _ => self.decode_rows += 1,
        }
    }

    /// Writes the sums of a step into its shape. `segments` has each segment with its share of the model's work; sums over segments are
    /// averaged by these shares.
    pub(super) fn shape(segments: &[Self], share: impl Fn(u16) -> f64, shape: &mut StepShape) {
        shape.segments.clear();
        let [one] = segments else {
            shape.segments.extend(
                (0..)
                    .zip(segments)
                    .map(|(at, sums)| SegmentShape { share: share(at), token_rows: sums.token_rows }),
            );
            let mean = |of: &dyn Fn(&Self) -> f64| -> f64 {
                shape.segments.iter().zip(segments).map(|(segment, sums)| segment.share * of(sums)).sum()
            };
            shape.token_rows = mean(&|sums| f64::from(sums.token_rows)).ceil() as u32;
            shape.metadata_rows = mean(&|sums| f64::from(sums.metadata_rows)).ceil() as u32;
            shape.context_reads = mean(&|sums| sums.context_reads as f64).round() as u64;
            shape.single_reads = mean(&|sums| sums.single_reads as f64).round() as u64;
            shape.context_pairs = mean(&|sums| sums.context_pairs as f64).round() as u64;
            shape.prefill_pairs = mean(&|sums| sums.prefill_pairs as f64).round() as u64;
            return;
        };
        shape.token_rows = one.token_rows;
        shape.metadata_rows = one.metadata_rows;
        shape.context_reads = one.context_reads;
        shape.single_reads = one.single_reads;
        shape.context_pairs = one.context_pairs;
        shape.prefill_pairs = one.prefill_pairs;
    }
}
