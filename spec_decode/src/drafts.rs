//! The drafts of a step.

use std::ops::Range;

/// The draft tokens of several rows. A row has as many as the proposer gave it, often none. The buffers are kept from
/// step to step.
#[derive(Clone, Debug, Default)]
pub struct Drafts {
    tokens: Vec<u32>,
    rows: Vec<Range<usize>>,
    /// For each draft, the distribution it was drawn from, `[tokens, vocab]`. It is empty if the proposer has none.
    probabilities: Vec<f64>,
    vocab: usize,
}

impl Drafts {
    /// Forgets the drafts of the step before and makes `rows` rows without drafts.
    pub fn begin(&mut self, rows: usize) {
        self.tokens.clear();
        self.probabilities.clear();
        self.vocab = 0;
        self.rows.clear();
        self.rows.resize(rows, 0..0);
    }

    /// Gives a row its drafts. This may be called once for each row.
    pub fn set(&mut self, row: usize, drafts: &[u32]) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(drafts);
        self.rows[row] = start..self.tokens.len();
    }

    /// Gives a row its drafts and the distribution that each of them was drawn from: `[drafts.len(), vocab]`,
    /// row-major. Within a step, either all rows with drafts come with distributions or none does.
    pub fn set_with_probabilities(&mut self, row: usize, drafts: &[u32], probabilities: &[f64]) {
        self.set(row, drafts);
        self.probabilities.extend_from_slice(probabilities);
        if let Some(vocab) = probabilities.len().checked_div(drafts.len()) {
            self.vocab = vocab;
        }
    }

    /// The drafts of a row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u32] {
        self.rows.get(row).map_or(&[], |range| &self.tokens[range.clone()])
    }

    /// The distributions of a row's drafts, `[drafts, vocab]`, row-major. `None` if the proposer has none.
    #[must_use]
    pub fn probabilities(&self, row: usize) -> Option<&[f64]> {
        if self.vocab == 0 {
            return None;
        }
        let Range { start, end } = self.rows.get(row)?.clone();
        self.probabilities.get(start * self.vocab..end * self.vocab)
    }

    /// The number of drafts in all rows.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The number of rows, those without drafts included.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// The number of drafts of the row with the most.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).max().unwrap_or(0)
    }
}
