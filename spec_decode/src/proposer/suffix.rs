//! Suffix look-up: proposes what most often followed the last tokens, in the request and in past outputs.

use std::collections::HashMap;
use std::ops::ControlFlow;

use pagedraft_scheduler::RequestKey;

use super::continuation::{Continuation, Occurrence};
use super::matches::Matches;
use super::past_outputs::PastOutputs;
use super::{ProposeRow, Proposer, Proposing};
use crate::drafts::Drafts;
use crate::error::ExecuteError;

/// The longest match that is told from longer ones, in tokens, as in vLLM.
const LONGEST: usize = 24;

/// Proposes what most often followed the request's last tokens where they occurred before: in its prompt, in its output, and, if
/// there is a store, in the outputs of requests that ended (SuffixDecoding, Oliaro et al. 2025). N-gram look-up takes the latest place alone; here
/// the places vote, and how long the drafts are depends on how long the match is and on how well the places agree.
///
/// What is looked up in the request takes one pass over its tokens, as n-gram look-up does. A store is read at the places of
/// the last three tokens alone. Of the request and the store, the one from which more right tokens are to be expected proposes; the request if
/// they are equal.
///
/// With a store, drafts depend on what ran before. Under coupled acceptance no draft changes a token of the output. What a preempted request has
/// put out is stored then, and once more when it ends.
#[derive(Debug)]
pub struct SuffixProposer {
    matches: Matches,
    past: PastOutputs,
    /// The outputs so far of the requests that run, if there is a store.
    running: HashMap<RequestKey, Vec<u32>>,
}

impl SuffixProposer {
    /// Looks tokens up in the request, and in up to `store` tokens of past outputs.
    #[must_use]
    pub fn new(store: usize) -> Self {
        Self { matches: Matches::default(), past: PastOutputs::new(store), running: HashMap::new() }
    }

    /// The drafts after `tokens`, at most `max`. Empty if no token is likely to follow.
    #[must_use]
    pub fn look_up(&mut self, tokens: &[u32], max: usize) -> Vec<u32> {
        let mut places = Vec::new();
        self.matches.each(tokens, LONGEST, |shift, matched| {
            if matched > 0 {
                places.push(Occurrence { matched, behind: &tokens[tokens.len() - shift..] });
            }
            ControlFlow::Continue(())
        });
        let own = Continuation::best(places, max);
        let past = Continuation::best(self.past.occurrences(tokens, LONGEST), max);
        if past.expected > own.expected { past.tokens } else { own.tokens }
    }

    /// Notes what the row's output has become.
    fn note(&mut self, row: &ProposeRow<'_>) {
        let known = self.running.entry(row.request).or_default();
        let from = row.registered.prompt_len as usize + known.len();
        known.extend_from_slice(row.tokens.get(from..).unwrap_or_default());
    }
}

impl Proposer for SuffixProposer {
    fn name(&self) -> &'static str {
        "suffix"
    }

    fn propose(&mut self, step: &Proposing<'_>, drafts: &mut Drafts) -> Result<(), ExecuteError> {
        for i in 0..step.len() {
            let row = step.row(i)?;
            if self.past.is_on() {
                self.note(&row);
            }
            drafts.set(i, &self.look_up(row.tokens, row.max));
        }
        Ok(())
    }

    fn forget(&mut self, request: RequestKey) {
        if let Some(output) = self.running.remove(&request) {
            self.past.push(&output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_continuation_is_proposed_and_not_the_latest() {
        let mut suffix = SuffixProposer::new(0);
        // 1, 2 was followed by 3, 4 twice, and then by 9.
        assert_eq!(suffix.look_up(&[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 9, 1, 2], 4), [3, 4]);
        assert_eq!(suffix.look_up(&[5, 6, 7, 8, 5, 6, 7], 4), [8, 5, 6]);
        assert!(suffix.look_up(&[1, 2, 3, 4], 4).is_empty());
        assert!(suffix.look_up(&[], 4).is_empty() && suffix.look_up(&[1], 4).is_empty());
    }

    #[test]
    fn past_outputs_are_asked_where_the_request_has_nothing_better() {
        let mut suffix = SuffixProposer::new(100);
        suffix.past.push(&[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(suffix.look_up(&[9, 2, 3, 4], 8), [5, 6, 7]);
        // The request itself has a match as long, which is asked first.
        assert_eq!(suffix.look_up(&[2, 3, 4, 8, 8, 8, 2, 3, 4], 8), [8, 8, 8]);
        // Two tokens are no place of a store.
        assert!(suffix.look_up(&[9, 9, 3, 4], 8).is_empty());
    }
}
