//! Decides whether a run gave what the plain eager run gave: tokens, hidden states and logits, bit by bit.

use std::sync::Arc;

use anyhow::{Context, ensure};
use pagedraft::session::{Emitted, Session};
use serde::Serialize;

use super::batch::Observe;

/// What the plain eager run generated, and the states from which it was chosen.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    rows: Vec<ReferenceRow>,
}

/// One sequence: its tokens, and the final hidden state and the logits of each token, one after the other.
#[derive(Clone, Debug, Default)]
struct ReferenceRow {
    tokens: Vec<u32>,
    hidden: Vec<f32>,
    logits: Vec<f32>,
}

/// The states that a step kept for a sequence, with one row per token.
struct States {
    hidden: Vec<Vec<f32>>,
    logits: Vec<Vec<f32>>,
}

fn take_states(session: &mut Session, news: &Emitted) -> anyhow::Result<States> {
    let (mut hidden, mut logits) = (session.take_hidden(news.id), session.take_logits(news.id));
    let kept = news.tokens.len();
    ensure!(
        hidden.len() >= kept && logits.len() >= kept,
        "{kept} tokens were kept with {} hidden states and {} rows of logits",
        hidden.len(),
        logits.len()
    );
    // If a run of accepted drafts was cut off, more states were kept than tokens.
    hidden.truncate(kept);
    logits.truncate(kept);
    Ok(States { hidden, logits })
}

impl Reference {
    pub fn new(rows: usize) -> Self {
        Self { rows: vec![ReferenceRow::default(); rows] }
    }

    /// The bytes that the states of a batch take.
    pub fn bytes(rows: u32, output_len: u32, vocab: usize, hidden: usize) -> u128 {
        u128::from(rows) * u128::from(output_len) * (vocab as u128 + hidden as u128) * 4
    }

    /// The tokens of each sequence.
    pub fn recorded(&self) -> Vec<Arc<[u32]>> {
        self.rows.iter().map(|row| Arc::from(row.tokens.as_slice())).collect()
    }
}

impl Observe for Reference {
    fn emitted(&mut self, session: &mut Session, row: usize, news: &Emitted) -> anyhow::Result<()> {
        let States { hidden, logits } = take_states(session, news)?;
        let row = self.rows.get_mut(row).context("there is no such sequence")?;
        row.tokens.extend(&news.tokens);
        row.hidden.extend(hidden.iter().flatten());
        row.logits.extend(logits.iter().flatten());
        Ok(())
    }
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Hidden,
    Logits,
    Token,
}

/// The first difference of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The index of the sequence in the batch.
    pub row: usize,
    /// The index of the generated token.
    pub output_index: usize,
    /// What differs there. If the token differs it is `Token`, whatever else differs.
    pub what: What,
}

/// How far one sequence has been compared.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    compared: usize,
    /// The first generated token at which anything differs.
    first: Option<(usize, What)>,
    /// Whether a token has differed. Nothing is compared after it, because what follows depends on it.
    diverged: bool,
}

/// The comparison of one run with the reference.
#[derive(Clone, Debug)]
pub struct Parity {
    rows: Vec<Progress>,
    max_hidden: f64,
    max_logit: f64,
    /// The number of timed batches compared (their tokens only), and of those that differed.
    pub timed: u32,
    pub timed_different: u32,
}

impl Parity {
    pub fn new(rows: usize) -> Self {
        Self {
            rows: vec![Progress::default(); rows],
            max_hidden: 0.0,
            max_logit: 0.0,
            timed: 0,
            timed_different: 0,
        }
    }

    fn note(&mut self, row: usize, at: usize, what: What) {
        let progress = &mut self.rows[row];
        if progress.first.is_none_or(|(first, _)| at < first) {
            progress.first = Some((at, what));
        }
    }

    /// Compares the next position of a sequence.
    fn position(&mut self, reference: &Reference, row: usize, token: u32, hidden: &[f32], logits: &[f32]) {
        let (theirs, at) = (&reference.rows[row], self.rows[row].compared);
        if self.rows[row].diverged {
            return;
        }
        self.rows[row].compared += 1;
        let hidden = difference(piece(&theirs.hidden, at, hidden.len()), hidden);
        let logits = difference(piece(&theirs.logits, at, logits.len()), logits);
        self.max_hidden = self.max_hidden.max(hidden);
        self.max_logit = self.max_logit.max(logits);
        if theirs.tokens.get(at) != Some(&token) {
            self.note(row, at, What::Token);
            self.rows[row].diverged = true;
        } else if hidden > 0.0 {
            self.note(row, at, What::Hidden);
        } else if logits > 0.0 {
            self.note(row, at, What::Logits);
        }
    }

    /// Compares the tokens of a timed batch.
    pub fn timed(&mut self, reference: &Reference, tokens: &[Vec<u32>]) {
        self.timed += 1;
        let mut equal = true;
        for (row, (theirs, ours)) in reference.rows.iter().zip(tokens).enumerate() {
            if theirs.tokens == *ours {
                continue;
            }
            equal = false;
            let same = theirs.tokens.iter().zip(ours).take_while(|(a, b)| a == b).count();
            self.note(row, same, What::Token);
        }
        self.timed_different += u32::from(!equal);
    }

    /// An observer that compares the run as it proceeds.
    pub fn observer<'a>(&'a mut self, reference: &'a Reference) -> Comparing<'a> {
        Comparing { parity: self, reference }
    }

    /// Whether every token and every bit is the same.
    pub fn is_equal(&self) -> bool {
        self.rows.iter().all(|row| row.first.is_none())
    }

    pub fn requests(&self) -> usize {
        self.rows.len()
    }

    /// The number of requests whose tokens and states are all the same.
    pub fn requests_equal(&self) -> usize {
        self.rows.iter().filter(|row| row.first.is_none()).count()
    }

    /// The number of positions whose token and states were compared.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.compared).sum()
    }

    /// The first difference of each sequence that has one, in the order of the batch.
    pub fn row_differences(&self) -> impl Iterator<Item = Difference> + '_ {
        self.rows.iter().enumerate().filter_map(|(row, progress)| {
            progress.first.map(|(output_index, what)| Difference { row, output_index, what })
        })
    }

    /// The earliest difference; if several are at the same position, that of the first sequence.
    pub fn first_difference(&self) -> Option<Difference> {
        self.row_differences().min_by_key(|difference| (difference.output_index, difference.row))
    }

    /// The indices of sequences in which anything differs, in ascending order.
    pub fn rows_different(&self) -> Vec<usize> {
        self.row_differences().map(|difference| difference.row).collect()
    }

    /// The greatest difference of a hidden state. It is 0 exactly if every bit was the same.
    pub fn max_abs_hidden_diff(&self) -> f64 {
        self.max_hidden
    }

    /// The greatest difference of a logit. It is 0 exactly if every bit was the same.
    pub fn max_abs_logit_diff(&self) -> f64 {
        self.max_logit
    }
}

/// A [`Parity`] while its run proceeds.
pub struct Comparing<'a> {
    parity: &'a mut Parity,
    reference: &'a Reference,
}

impl Observe for Comparing<'_> {
    fn emitted(&mut self, session: &mut Session, row: usize, news: &Emitted) -> anyhow::Result<()> {
        let States { hidden, logits } = take_states(session, news)?;
        for ((&token, hidden), logits) in news.tokens.iter().zip(&hidden).zip(&logits) {
            self.parity.position(self.reference, row, token, hidden, logits);
        }
        Ok(())
    }
}

fn piece(rows: &[f32], at: usize, width: usize) -> &[f32] {
    rows.get(at * width..(at + 1) * width).unwrap_or(&[])
}

/// The greatest absolute difference. It is 0 if all bits are the same, and only then. Zeroes of opposite
/// sign count as the least positive number. A NaN or an infinity against another number counts as the
/// greatest number, and so does another length.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::from(f32::MAX);
    }
    let mut greatest = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        if a.to_bits() == b.to_bits() {
            continue;
        }
        let distance = (f64::from(*a) - f64::from(*b)).abs();
        let distance = if distance.is_finite() {
            distance.max(f64::from(f32::from_bits(1)))
        } else {
            f64::from(f32::MAX)
        };
        greatest = greatest.max(distance);
    }
    greatest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(tokens: &[&[u32]]) -> Reference {
        let rows = tokens.iter().map(|tokens| ReferenceRow {
            tokens: tokens.to_vec(),
            hidden: tokens.iter().map(|&t| t as f32).collect(),
            logits: tokens.iter().flat_map(|&t| [t as f32, 1.0]).collect(),
        });
        Reference { rows: rows.collect() }
    }

    fn same(parity: &mut Parity, reference: &Reference, row: usize, token: u32) {
        let state = token as f32;
        parity.position(reference, row, token, &[state], &[state, 1.0]);
    }

    #[test]
    fn equal_means_every_bit() {
        assert_eq!(difference(&[1.0, -0.0], &[1.0, -0.0]), 0.0);
        assert!(difference(&[0.0], &[-0.0]) > 0.0);
        assert_eq!(difference(&[f32::NAN], &[f32::NAN]), 0.0);
        assert_eq!(difference(&[f32::NAN], &[1.0]), f64::from(f32::MAX));
        assert_eq!(difference(&[f32::INFINITY], &[f32::NEG_INFINITY]), f64::from(f32::MAX));
        assert_eq!(difference(&[1.0, 2.0], &[1.5, 2.0]), 0.5);
        assert!(difference(&[1.0], &[]) > 0.0);
    }

    #[test]
    fn an_equal_run_has_no_difference() {
        let reference = reference(&[&[1, 2], &[3, 4]]);
        let mut parity = Parity::new(2);
        for (row, token) in [(0, 1), (1, 3), (0, 2), (1, 4)] {
            same(&mut parity, &reference, row, token);
        }
        parity.timed(&reference, &[vec![1, 2], vec![3, 4]]);
        assert!(parity.is_equal());
        assert_eq!((parity.requests_equal(), parity.tokens()), (2, 4));
        assert_eq!((parity.first_difference(), parity.rows_different()), (None, vec![]));
        assert_eq!((parity.max_abs_hidden_diff(), parity.max_abs_logit_diff()), (0.0, 0.0));
    }

    #[test]
    fn nothing_behind_a_differing_token_is_compared() {
        let reference = reference(&[&[1, 2, 3], &[4, 5, 6]]);
        let mut parity = Parity::new(2);
        same(&mut parity, &reference, 0, 1);
        same(&mut parity, &reference, 1, 4);
        parity.position(&reference, 1, 9, &[5.0], &[5.0, 1.0]);
        parity.position(&reference, 1, 6, &[100.0], &[6.0, 1.0]);
        assert_eq!(parity.tokens(), 3);
        assert_eq!(parity.max_abs_hidden_diff(), 0.0);
        let first = Difference { row: 1, output_index: 1, what: What::Token };
        assert_eq!((parity.first_difference(), parity.rows_different()), (Some(first), vec![1]));
    }

    #[test]
    fn states_can_differ_where_tokens_do_not() {
        let reference = reference(&[&[1, 2], &[3, 4]]);
        let mut parity = Parity::new(2);
        parity.position(&reference, 1, 3, &[3.0], &[3.25, 1.0]);
        parity.position(&reference, 0, 1, &[1.5], &[1.0, 1.0]);
        let first = parity.first_difference().unwrap();
        assert_eq!((first.row, first.output_index, first.what), (0, 0, What::Hidden));
        assert_eq!(parity.rows_different(), [0, 1]);
        assert_eq!((parity.max_abs_hidden_diff(), parity.max_abs_logit_diff()), (0.5, 0.25));
        assert_eq!(parity.requests_equal(), 0);
    }

    #[test]
    fn a_timed_batch_with_another_token_is_a_difference() {
        let reference = reference(&[&[1, 2], &[3, 4]]);
        let mut parity = Parity::new(2);
        parity.timed(&reference, &[vec![1, 2], vec![3, 9]]);
        assert_eq!((parity.timed, parity.timed_different), (1, 1));
        assert_eq!(parity.rows_different(), [1]);
        assert_eq!(parity.first_difference().map(|d| d.output_index), Some(1));
    }
}
