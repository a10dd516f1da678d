/// How many seconds are kept apart at a time. Reports of several engines are in the order of their ends to
/// well within this.
const KEPT: usize = 64;

/// Counts tokens by second of the run, of which only the greatest count is asked for.
#[derive(Clone, Debug)]
pub(super) struct TokensPerSecond {
    /// Second and tokens. A second is kept at its number modulo the length of the list.
    seconds: [(u64, u64); KEPT],
    greatest: u64,
}

impl TokensPerSecond {
    pub(super) fn new() -> Self {
        Self { seconds: [(0, 0); KEPT], greatest: 0 }
    }

    pub(super) fn add(&mut self, ns: u64, tokens: u64) {
        let second = ns / 1_000_000_000;
        let kept = &mut self.seconds[(second % KEPT as u64) as usize];
        if second > kept.0 {
            *kept = (second, 0);
        }
        if second == kept.0 {
            kept.1 = kept.1.saturating_add(tokens);
            self.greatest = self.greatest.max(kept.1);
        }
    }

    pub(super) fn greatest(&self) -> u64 {
        self.greatest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_second_is_found_though_reports_overtake_each_other() {
        let mut tokens = TokensPerSecond::new();
        let second = 1_000_000_000;
        for (ns, n) in
            [(0, 5), (second, 3), (second - 1, 4), (200 * second, 1), (2 * second - 1, 7), (second * 72, 9)]
        {
            tokens.add(ns, n);
        }
        // Seconds 0 and 1 had 9 and 10 tokens. Second 72 has the same place as second 200, which came
        // first, so its tokens are not counted.
        assert_eq!(tokens.greatest(), 10);
    }
}
