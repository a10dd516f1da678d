//! What is run to be measured: some requests that decode, and one that comes in between.

/// Steps that a request decodes before the next one comes, at least.
pub const DECODES: u32 = 16;
/// Prompts of the requests of an episode have so many tokens together, at most.
const MOST_TOKENS: f64 = 12_288.0;
/// The longest prompt.
const LONGEST: f64 = 8192.0;

/// Some requests at once, and one that comes while they decode, so that there are steps of both kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode {
    /// Requests at once.
    pub requests: u32,
    /// Tokens of each prompt, about.
    pub prompt: u32,
    /// Tokens of the prompt that comes in between; 0: none does.
    pub late: u32,
    /// Tokens that each gives.
    pub output: u32,
}

/// What an engine can hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Sequences in a step.
    pub sequences: u32,
    /// Length of a sequence, and of a prompt where it has to fit a step.
    pub tokens: u32,
    pub prompt: u32,
    /// Tokens in the pool.
    pub pool: u64,
}

impl Episode {
    /// The corners of what will be seen: one request and as many as there can be, short prompts and long ones.
    pub fn corners(bounds: &Bounds) -> Vec<Self> {
        let of = |requests, prompt, late| Self { requests, prompt, late, output: DECODES };
        let corners = [
            of(1, 32, 16),
            of(8, 128, 64),
            of(1, 1024, 0),
            of(2, 512, 2000),
            of(32, 64, 256),
            of(u32::MAX, 16, 32),
            of(1, 4096, 0),
        ];
        corners.into_iter().filter_map(|corner| corner.within(bounds)).collect()
    }

    /// One at random: requests and lengths spread evenly over their orders of magnitude, as loads are. `uniform` draws
    /// from 0 to 1.
    pub fn draw(bounds: &Bounds, mut uniform: impl FnMut() -> f64) -> Option<Self> {
        // Few requests are more likely, as an engine that keeps up has few.
        let requests = f64::from(bounds.sequences.min(256)).powf(uniform() * uniform().max(0.3)).round();
        let longest = (MOST_TOKENS / requests).clamp(16.0, LONGEST);
        let prompt = 8.0 * (longest / 8.0).powf(uniform());
        let late = if uniform() < 0.6 { 8.0 * (LONGEST / 16.0).powf(uniform()) } else { 0.0 };
        let (requests, prompt, late) = (requests as u32, prompt as u32, late as u32);
        Self { requests, prompt, late, output: DECODES + (uniform() * 32.0) as u32 }.within(bounds)
    }

    /// The same, as far as the engine can hold it.
    fn within(self, bounds: &Bounds) -> Option<Self> {
        let requests = self.requests.min(bounds.sequences).max(1);
        // Lengths differ by up to a quarter; drafts need room.
        let room = (bounds.pool / (u64::from(requests) + 1)).min(u64::from(bounds.tokens)) as u32;
        let output = self.output.min(room / 4);
        let longest = (room.saturating_sub(output + 16) / 5 * 4).min(bounds.prompt / 5 * 4);
        let (prompt, late) = (self.prompt.min(longest), self.late.min(longest));
        (prompt > 0 && output > 0).then_some(Self { requests, prompt, late, output })
    }

    /// Tokens that it computes, about.
    pub fn tokens(&self) -> u64 {
        u64::from(self.requests) * u64::from(self.prompt + self.output) + u64::from(self.late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn episodes_fit_the_engine_they_are_for() {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let engines = [
            Bounds { sequences: 256, tokens: 32_768, prompt: 32_768, pool: 300_000 },
            Bounds { sequences: 4, tokens: 512, prompt: 512, pool: 1024 },
            Bounds { sequences: 64, tokens: 4096, prompt: 300, pool: 4096 },
            Bounds { sequences: 1, tokens: 64, prompt: 64, pool: 64 },
            Bounds { sequences: u32::MAX, tokens: u32::MAX, prompt: u32::MAX, pool: u64::MAX },
            Bounds { sequences: u32::MAX, tokens: 4096, prompt: 4096, pool: 65_536 },
        ];
        for bounds in engines {
            let drawn: Vec<_> = (0..500).filter_map(|_| Episode::draw(&bounds, &mut uniform)).collect();
            assert!(!drawn.is_empty(), "{bounds:?}");
            for episode in drawn.into_iter().chain(Episode::corners(&bounds)) {
                let longest = episode.prompt.max(episode.late) * 5 / 4;
                assert!(episode.requests <= bounds.sequences && longest <= bounds.prompt, "{episode:?}");
                assert!(longest + episode.output <= bounds.tokens, "{episode:?} in {bounds:?}");
                let all = (u64::from(episode.requests) + 1) * u64::from(longest + episode.output);
                assert!(all <= bounds.pool, "{episode:?} in {bounds:?}");
            }
        }
        assert_eq!(Episode::draw(&Bounds { sequences: 1, tokens: 8, prompt: 8, pool: 8 }, uniform), None);
    }
}
