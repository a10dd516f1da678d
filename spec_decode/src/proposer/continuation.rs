//! What most often followed the last tokens of a sequence where they occurred before.

/// A place at which some last tokens of a sequence occurred.
#[derive(Clone, Copy, Debug)]
pub(super) struct Occurrence<'a> {
    /// How many of the last tokens occurred there.
    pub matched: usize,
    /// What came behind them.
    pub behind: &'a [u32],
}

/// Tokens that may follow.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Continuation {
    pub tokens: Vec<u32>,
    /// How many of them are expected to be right: the sum over them of the share of occurrences that agree with all up to that one.
    pub expected: f64,
}

/// Places that are looked at, at most: those of the longest matches.
const MOST_PLACES: usize = 64;
/// A token is proposed if at least this share of the occurrences had it and all before it.
const LEAST_SHARE: f64 = 0.1;

impl Continuation {
    /// The best continuation of at most `max` tokens. `places` are the occurrences, the latest first.
    ///
    /// For each length of match the tokens are those that most occurrences of that length at least had, one after another; of equally
    /// frequent ones, that of the longest match, and of those the latest. There are no more of them than the match is long. The length
    /// whose continuation has the most tokens to expect wins, the longest one if there are several (SuffixDecoding, Oliaro et al. 2025, whose tree
    /// is cut to a path here).
    pub fn best(mut places: Vec<Occurrence<'_>>, max: usize) -> Self {
        places.sort_by_key(|place| std::cmp::Reverse(place.matched));
        places.truncate(MOST_PLACES);
        let mut best = Self::default();
        let mut end = 0;
        while let Some(place) = places.get(end) {
            let matched = place.matched;
            end += places[end..].iter().take_while(|place| place.matched == matched).count();
            let found = Self::of(&places[..end], max.min(matched));
            if found.expected > best.expected {
                best = found;
            }
        }
        best
    }

    /// The tokens that most of these occurrences had, one after another.
    fn of(places: &[Occurrence<'_>], max: usize) -> Self {
        let mut found = Self::default();
        let mut agreeing: Vec<&[u32]> = places.iter().map(|place| place.behind).collect();
        let mut counts: Vec<(u32, usize)> = Vec::new();
        while found.tokens.len() < max {
            let at = found.tokens.len();
            counts.clear();
            for &token in agreeing.iter().filter_map(|behind| behind.get(at)) {
                match counts.iter_mut().find(|(known, _)| *known == token) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((token, 1)),
                }
            }
            // The first of equal ones, so that ties go to the order of the places.
            let Some(&(token, count)) = counts.iter().rev().max_by_key(|(_, count)| *count) else { break };
            let share = count as f64 / places.len() as f64;
            if share < LEAST_SHARE {
                break;
            }
            agreeing.retain(|behind| behind.get(at) == Some(&token));
            found.tokens.push(token);
            found.expected += share;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(matched: usize, behind: &[u32]) -> Occurrence<'_> {
        Occurrence { matched, behind }
    }

    #[test]
    fn the_tokens_that_most_occurrences_had_are_taken_and_no_more_than_the_match_is_long() {
        let found =
            Continuation::best(vec![place(3, &[7, 8, 9, 1]), place(3, &[7, 5]), place(3, &[7, 8])], 8);
        assert_eq!(found.tokens, [7, 8, 9]);
        assert!((found.expected - (1.0 + 2.0 / 3.0 + 1.0 / 3.0)).abs() < 1e-12);
        assert_eq!(Continuation::best(vec![place(3, &[7, 8, 9, 1])], 2).tokens, [7, 8]);
        assert_eq!(Continuation::best(vec![place(1, &[7, 8])], 8).tokens, [7]);
    }

    #[test]
    fn a_long_match_wins_over_many_short_ones_and_the_latest_of_equals() {
        // Four places say 5 behind one token; the only one behind two tokens says 6, 7.
        let mut places = vec![place(1, &[5, 5]); 4];
        places.insert(2, place(2, &[6, 7]));
        assert_eq!(Continuation::best(places, 8), Continuation { tokens: vec![6, 7], expected: 2.0 });
        assert_eq!(Continuation::best(vec![place(1, &[2]), place(1, &[1])], 8).tokens, [2]);
        assert_eq!(Continuation::best(Vec::new(), 8), Continuation::default());
        assert!(Continuation::best(vec![place(4, &[])], 8).tokens.is_empty());
    }

    #[test]
    fn rare_continuations_are_not_proposed() {
        let tokens: Vec<[u32; 1]> = (0..11).map(|token| [token]).collect();
        let places = |n: usize| tokens[..n].iter().map(|token| place(1, token)).collect();
        assert_eq!(Continuation::best(places(10), 8).tokens, [0]);
        assert!(Continuation::best(places(11), 8).tokens.is_empty());
    }
}
