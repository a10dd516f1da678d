//! How many tokens of a prompt stay behind each prune point, and which stay whatever their scores.

use super::spec::{PruneMode, PruneSpec};

impl PruneSpec {
    /// How many of a prompt's tokens always stay where `n` of them reach a layer.
    ///
    /// Those at the end of the prompt are the last ones among any `n` as well, because no layer drops them.
    fn always(&self, n: u32, prompt_len: u32) -> u32 {
        (0..prompt_len).filter(|&position| self.stays(position, n, prompt_len)).count().min(n as usize) as u32
    }

    /// How many of the prompt's last tokens always stay where `n` of its tokens reach a layer.
    #[must_use]
    pub fn tail(&self, n: u32) -> u32 {
        self.min_tail_tokens.max((f64::from(n) * self.min_tail_ratio).floor() as u32).min(n)
    }

    /// Whether the token at `position` of the prompt always stays where `n` of its tokens reach a layer.
    #[must_use]
    pub fn stays(&self, position: u32, n: u32, prompt_len: u32) -> bool {
        position < self.min_head_tokens
            || position >= prompt_len.saturating_sub(self.tail(n))
            || self.protect.iter().any(|&(from, to)| (from..to).contains(&position))
    }

    /// How many of a prompt's tokens go on behind a layer that keeps the share `ratio` and is reached by `n` of them.
    #[must_use]
    pub fn count(&self, ratio: f64, n: u32, prompt_len: u32) -> u32 {
        if ratio == 1.0 {
            return n;
        }
        let base = match self.mode {
            PruneMode::PerLayer => n,
            PruneMode::Prompt => prompt_len,
        };
        let share = (f64::from(base) * ratio).floor() as u32;
        share.min(n).max(self.always(n, prompt_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn spec(json: &str) -> PruneSpec {
        PruneSpec::from_json(serde_json::from_str(json).unwrap(), Path::new("")).unwrap()
    }

    #[test]
    fn counts_are_floors_of_shares_and_never_fewer_than_what_always_stays() {
        let plain = spec(r#"{"layers": [1], "keep_ratio": 0.7, "scorer": "random"}"#);
        // 4 at the head and 16 at the tail always stay.
        for (n, kept) in
            [(1, 1), (4, 4), (16, 16), (17, 17), (20, 20), (21, 20), (64, 44), (150, 105), (301, 210)]
        {
            assert_eq!(plain.count(0.7, n, n), kept, "{n}");
        }
        // A tenth of 400 is 40.
        assert_eq!(plain.count(0.05, 400, 400), 44);
        let prompt = spec(r#"{"layers": [1], "keep_ratio": 0.6, "mode": "prompt", "scorer": "random"}"#);
        assert_eq!((prompt.count(0.6, 57, 64), prompt.count(0.9, 30, 64)), (38, 30));
    }

    #[test]
    fn protected_ranges_count_once_where_they_overlap_what_stays_anyway() {
        let spec = spec(
            r#"{"layers": [1], "keep_ratio": 0.1, "scorer": "random", "protect": [[2, 8], [6, 10], [95, 200]]}"#,
        );
        // Positions 0..10 and 84..100.
        assert_eq!(spec.count(0.1, 100, 100), 26);
    }
}
