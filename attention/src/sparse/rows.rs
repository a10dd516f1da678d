//! The token rows of a step, and the keys that each sees.

use std::ops::Range;

use crate::error::AttentionError;
use crate::kernel::work::checked_row;
use crate::metadata::AttentionMetadata;
use crate::window::NO_WINDOW;

/// A query token of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseRow {
    /// Its row in q and in the output.
    pub token: u32,
    /// The metadata row that it belongs to, whose block table says where the keys are.
    pub row: u32,
    /// It sees the keys of index 0 up to and without this one.
    pub visible: u32,
}

/// The most rows of a run.
pub(crate) const RUN: usize = 8;

/// The query tokens of a step: one list serves all layers of a KV group. The memory is reused from step to step.
///
/// Planning checks all that the kernels rely on: tables reach the end of their sequences and name blocks that exist.
#[derive(Debug, Default)]
pub struct SparseRows {
    rows: Vec<SparseRow>,
    /// The end of each run in `rows`: up to [`RUN`] rows of one metadata row, whose keys are read once.
    runs: Vec<u32>,
    tokens: usize,
    geometry: Option<(u32, u32)>,
}

impl SparseRows {
    /// No rows.
    #[must_use]
    pub fn new() -> SparseRows {
        SparseRows::default()
    }

    /// The rows, in the order of their tokens. Pad rows have none.
    #[must_use]
    pub fn rows(&self) -> &[SparseRow] {
        &self.rows
    }

    /// Becomes some of the rows of `whole`, of the same step: calls may be made for a part of it at a time.
    pub fn clone_part(&mut self, whole: &SparseRows, part: Range<usize>) {
        self.rows.clear();
        self.rows.extend_from_slice(whole.rows.get(part.clone()).unwrap_or_default());
        let within = |&end: &u32| (end as usize).clamp(part.start, part.end.max(part.start)) - part.start;
        self.runs.clear();
        self.runs.extend(whole.runs.iter().map(within).filter(|&end| end > 0).map(|end| end as u32));
        self.runs.dedup();
        (self.tokens, self.geometry) = (whole.tokens, whole.geometry);
    }

    /// How many runs there are.
    pub(crate) fn num_runs(&self) -> usize {
        self.runs.len()
    }

    /// The rows of a run, none of which sees fewer keys than the one before; empty beyond the last run.
    pub(crate) fn run(&self, index: usize) -> &[SparseRow] {
        let end = |run: usize| self.runs.get(run).map_or(0, |&end| end as usize);
        let first = index.checked_sub(1).map_or(0, end);
        self.rows.get(first..end(index)).unwrap_or(&[])
    }

    /// The run that a row is in, and the number of its first row; the last run beyond the last row.
    pub(crate) fn run_around(&self, row: usize) -> (usize, &[SparseRow]) {
        let index = self.runs.partition_point(|&end| end as usize <= row);
        let first =
            index.checked_sub(1).and_then(|before| self.runs.get(before)).map_or(0, |&end| end as usize);
        (first, self.run(index))
    }

    /// How many query tokens the step has, those of pad rows included.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Block size and number of blocks that the rows were planned for.
    pub(crate) fn geometry(&self) -> Option<(u32, u32)> {
        self.geometry
    }

    /// Lists the query tokens of a step over a cache of `num_blocks` blocks of `block_size` tokens.
    ///
    /// # Errors
    ///
    /// [`AttentionError::Inconsistent`] (a window, or lengths that disagree), [`AttentionError::ShortTable`],
    /// [`AttentionError::NoSuchBlock`]; the list is empty then.
    pub fn plan(
        &mut self,
        metadata: &AttentionMetadata,
        block_size: u32,
        num_blocks: u32,
    ) -> Result<(), AttentionError> {
        self.clear();
        self.tokens = 0;
        for row in 0..metadata.num_rows() {
            let queries = checked_row(metadata, row, block_size, num_blocks).inspect_err(|_| self.clear())?;
            let Some(queries) = queries else { continue };
            if queries.window != NO_WINDOW {
                self.clear();
                return Err(AttentionError::Inconsistent {
                    field: "window",
                    index: row,
                    found: i64::from(queries.window),
                    expected: i64::from(NO_WINDOW),
                });
            }
            for i in 0..queries.len {
                if (i as usize).is_multiple_of(RUN) && !self.rows.is_empty() {
                    self.runs.push(self.rows.len() as u32);
                }
                self.rows.push(SparseRow {
                    token: queries.token + i,
                    row: row as u32,
                    visible: queries.first_visible + i * queries.visible_step,
                });
            }
        }
        if !self.rows.is_empty() {
            self.runs.push(self.rows.len() as u32);
        }
        self.tokens = metadata.num_tokens();
        self.geometry = Some((block_size, num_blocks));
        Ok(())
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.runs.clear();
    }
}
