//! Describes what is run to be measured: streams of requests, as replays have them.

/// The number of tokens that each request of a corner decodes.
const DECODES: u32 = 16;
/// The most tokens that the prompts in flight have together.
const MOST_TOKENS: f64 = 12_288.0;
/// The greatest mean length of prompts.
const LONGEST: f64 = 6144.0;

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// This many requests are in flight.
    Closed(u32),
    /// Poisson arrivals at a rate that would keep an engine busy for this share of the time if it served
    /// one request at a time.
    Open(f64),
}

/// A stream of requests of the same kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    pub load: Load,
    /// The mean number of prompt tokens. Each prompt has from half to one and a half times as many.
    pub prompt: u32,
    /// The mean number of tokens that a request generates, which varies in the same way.
    pub output: u32,
    /// The share of a prompt with which all prompts of the stream begin.
    pub shared: f64,
}

/// What an engine can hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most sequences in a step.
    pub sequences: u32,
    /// The greatest length of a sequence, and of a prompt, which may have to fit in one step.
    pub tokens: u32,
    pub prompt: u32,
    /// The number of tokens that the pool holds.
    pub pool: u64,
}

impl Phase {
    /// The extreme kinds of streams: one request and as many as possible, with short and with long prompts.
    pub fn corners(bounds: &Bounds) -> Vec<Self> {
        let of = |seats, prompt| Self { load: Load::Closed(seats), prompt, output: DECODES, shared: 0.0 };
        let corners =
            [of(1, 32), of(8, 128), of(1, 1024), of(3, 512), of(32, 64), of(u32::MAX, 16), of(1, 4096)];
        corners.into_iter().filter_map(|corner| corner.within(bounds)).collect()
    }

    /// Draws a stream. Loads and lengths are spread evenly over their orders of magnitude. `uniform` draws
    /// numbers from 0 to 1.
    pub fn draw(bounds: &Bounds, mut uniform: impl FnMut() -> f64) -> Option<Self> {
        let shared = if uniform() < 0.3 { 0.25 + 0.5 * uniform() } else { 0.0 };
        let log = |from: f64, to: f64, at: f64| from * (to / from).powf(at);
        let drawn = if uniform() < 0.5 {
            // Few requests are more likely, because an engine that keeps up has few.
            let seats = f64::from(bounds.sequences.min(256)).powf(uniform() * uniform().max(0.3)).round();
            let longest = (MOST_TOKENS / seats).clamp(16.0, LONGEST);
            let (prompt, output) = (log(8.0, longest, uniform()), log(4.0, 128.0, uniform()));
            Self { load: Load::Closed(seats as u32), prompt: prompt as u32, output: output as u32, shared }
        } else {
            let (prompt, output) = (log(32.0, 2048.0, uniform()), log(8.0, 256.0, uniform()));
            let load = Load::Open(0.15 + 0.65 * uniform());
            Self { load, prompt: prompt as u32, output: output as u32, shared }
        };
        drawn.within(bounds)
    }

    /// The same stream, reduced to what the engine can hold.
    fn within(self, bounds: &Bounds) -> Option<Self> {
        let load = match self.load {
            // Each request must have room for at least 40 tokens.
            Load::Closed(seats) => {
                let room = (bounds.pool / 40).min(u64::from(u32::MAX)) as u32;
                Load::Closed(seats.min(bounds.sequences).min(room).max(1))
            }
            open @ Load::Open(_) => open,
        };
        let seats = match load {
            Load::Closed(seats) => seats,
            Load::Open(_) => bounds.sequences.min(8),
        };
        // This leaves room for drafts.
        let room = (bounds.pool / (u64::from(seats) + 1)).min(u64::from(bounds.tokens)) as u32;
        let output = self.output.min(room / 6);
        let longest = room.saturating_sub(output / 2 * 3 + 16).min(bounds.prompt);
        let prompt = self.prompt.min(longest / 3 * 2);
        (prompt > 0 && output > 0).then_some(Self { load, prompt, output, ..self })
    }

    /// The number of requests that suffice for a measurement that may take `lasting` seconds, if one
    /// request alone takes `service` seconds.
    pub fn requests(&self, lasting: f64, service: f64) -> u32 {
        let fit = match self.load {
            Load::Closed(seats) => return seats + seats / 2 + 1,
            Load::Open(load) => lasting * load / service,
        };
        (fit as u32).clamp(2, 4096)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_fit_the_engine_they_are_for() {
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
            let drawn: Vec<_> = (0..500).filter_map(|_| Phase::draw(&bounds, &mut uniform)).collect();
            assert!(!drawn.is_empty(), "{bounds:?}");
            for phase in drawn.into_iter().chain(Phase::corners(&bounds)) {
                let longest = (phase.prompt + phase.prompt / 2, phase.output + phase.output / 2);
                assert!(longest.0 <= bounds.prompt && longest.0 + longest.1 <= bounds.tokens, "{phase:?}");
                if let Load::Closed(seats) = phase.load {
                    let all = u64::from(seats) * u64::from(longest.0 + longest.1);
                    assert!(seats <= bounds.sequences && all <= bounds.pool, "{phase:?} in {bounds:?}");
                }
            }
        }
        assert_eq!(Phase::draw(&Bounds { sequences: 1, tokens: 8, prompt: 8, pool: 8 }, uniform), None);
    }
}
