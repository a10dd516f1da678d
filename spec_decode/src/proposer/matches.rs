//! Where the last tokens of a sequence occurred before in it.

use std::ops::ControlFlow;

/// Compares the last tokens of sequences with what came before them. Its buffer is kept from one sequence to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Matches {
    /// At index i, how many of the last tokens recur i tokens earlier, up to the most that is asked for.
    overlaps: Vec<usize>,
}

impl Matches {
    /// Calls `each` with every shift from 1 on, and with how many of the last tokens, `most` at most, recur so many tokens earlier. It
    /// goes backwards, from the latest place to the first token, and ends early if `each` breaks.
    ///
    /// It takes one pass over the tokens, whatever `most` is: this is the Z algorithm (Gusfield 1997) over the tokens read backwards. Its
    /// values are cut at `most`, so a buffer of that size suffices.
    pub fn each(
        &mut self,
        tokens: &[u32],
        most: usize,
        mut each: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) {
        let len = tokens.len();
        // No match is longer than the sequence, so a greater `most` must take neither memory nor time.
        let most = most.min(len);
        let back = |i: usize| tokens[len - 1 - i];
        self.overlaps.clear();
        self.overlaps.resize(most, 0);
        // This is the match, of those found so far, that reaches back furthest. It starts at `left` and ends before
        // `right`.
        let (mut left, mut right) = (0, 0);
        for shift in 1..len {
            let mut n = 0;
            if shift < right {
                n = self.overlaps[shift - left].min(right - shift);
            }
            if shift + n >= right {
                while n < most && shift + n < len && back(n) == back(shift + n) {
                    n += 1;
                }
                (left, right) = (shift, shift + n);
            }
            if let Some(overlap) = self.overlaps.get_mut(shift) {
                *overlap = n;
            }
            if each(shift, n).is_break() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_beyond_the_sequence_take_no_memory() {
        let mut matches = Matches::default();
        let mut found = Vec::new();
        matches.each(&[1, 2, 9, 1, 2], usize::MAX, |shift, n| {
            found.push((shift, n));
            ControlFlow::Continue(())
        });
        assert_eq!(found, [(1, 0), (2, 0), (3, 2), (4, 0)]);
        assert!(matches.overlaps.capacity() < 64);
    }
}
