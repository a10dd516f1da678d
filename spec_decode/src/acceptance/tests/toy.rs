//! Toy models, whose logits are a seeded hash of all tokens before, and generation with them.

use super::*;

pub const VOCAB: usize = 8;

/// Logits from a hash of the tokens.
#[derive(Clone, Copy)]
pub struct Toy {
    pub seed: u64,
    /// The factor of its own logits; those of `shared` have the factor 2.5.
    pub own: f64,
    /// Another toy whose logits are added: a draft that resembles its target.
    pub shared: Option<u64>,
}

impl Toy {
    pub fn logits(&self, tokens: &[u32], logits: &mut Vec<f32>) {
        let bell = |hash: u64, token: usize| {
            let bits = mix(hash ^ (token as u64) << 32);
            [0, 21, 42]
                .map(|shift| (bits >> shift & 0x1f_ffff) as f64 / 2_097_152.0 - 0.5)
                .iter()
                .sum::<f64>()
        };
        let hash = |seed: u64| tokens.iter().fold(seed, |hash, &t| mix(hash ^ u64::from(t + 1)));
        let (own, shared) = (hash(self.seed), self.shared.map(hash));
        logits.extend((0..VOCAB).map(|token| {
            let shared = shared.map_or(0.0, |shared| 2.5 * bell(shared, token));
            (self.own * bell(own, token) + shared) as f32
        }));
    }
}

/// SplitMix64's finaliser.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub const TARGET: Toy = Toy { seed: 11, own: 2.5, shared: None };
pub const DRAFT: Toy = Toy { seed: 22, own: 1.5, shared: Some(11) };

/// How drafts are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    /// The draft model draws with the target's noise, and its probabilities are stated.
    SharedNoise,
    /// The draft model draws with noise of its own, and its probabilities are stated.
    OwnNoise,
    /// The draft model draws with the target's noise, and no probabilities are stated.
    Unstated,
    /// Drafts are a function of the tokens, as an n-gram look-up would give.
    Lookup,
}

/// Generates text with the toy models. It holds only buffers.
pub struct Generator {
    pub verifier: Verifier,
    sampler: Sampler,
    logits: Vec<f32>,
    q: Vec<f64>,
    row: Vec<f64>,
}

impl Generator {
    pub fn new(rule: Acceptance) -> Self {
        Self {
            verifier: Verifier::new(rule),
            sampler: Sampler::default(),
            logits: Vec::new(),
            q: Vec::new(),
            row: Vec::new(),
        }
    }

    /// Generates at least `count` tokens from an empty prompt, by verify steps with `k` drafts each.
    pub fn run(&mut self, params: &SamplingParams, source: Source, k: usize, count: usize) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(count + k);
        let mut known = Vec::with_capacity(count + 2 * k);
        while tokens.len() < count {
            known.clone_from(&tokens);
            self.q.clear();
            for _ in 0..k {
                let draft = self.draft(params, source, &known);
                known.push(draft);
            }
            self.logits.clear();
            for end in tokens.len()..=known.len() {
                TARGET.logits(&known[..end], &mut self.logits);
            }
            let row = VerifyRow {
                params,
                position: tokens.len() as u32,
                drafts: &known[tokens.len()..],
                probabilities: matches!(source, Source::SharedNoise | Source::OwnNoise)
                    .then_some(self.q.as_slice()),
                logits: &self.logits,
            };
            self.verifier.verify(row, &mut tokens).unwrap();
        }
        tokens
    }

    fn draft(&mut self, params: &SamplingParams, source: Source, known: &[u32]) -> u32 {
        if source == Source::Lookup {
            return known.iter().fold(3, |hash, &t| mix(hash ^ u64::from(t))) as u32 % VOCAB as u32;
        }
        self.logits.clear();
        DRAFT.logits(known, &mut self.logits);
        self.sampler.distribution_into(&self.logits, params, &mut self.row).unwrap();
        self.q.extend_from_slice(&self.row);
        if source != Source::OwnNoise {
            return self.sampler.choose(&self.logits, params, known.len() as u32).unwrap();
        }
        let mut rest = Noise::new(params, known.len() as u32).uniform(Purpose::Proposal, 0);
        let passed = |p: &f64| {
            rest -= p;
            rest < 0.0
        };
        self.row.iter().position(passed).unwrap_or(VOCAB - 1) as u32
    }
}

/// The tokens without speculation, by the definition of the choice.
pub fn plain(params: &SamplingParams, count: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut sampler = Sampler::default();
    for position in 0..count {
        let mut logits = Vec::new();
        TARGET.logits(&tokens, &mut logits);
        tokens.push(sampler.choose(&logits, params, position as u32).unwrap());
    }
    tokens
}

/// The parameters of the tests: no filter, and all of them.
pub fn open_and_filtered() -> [SamplingParams; 2] {
    let filtered =
        SamplingParams { temperature: 0.8, top_k: Some(6), top_p: 0.95, min_p: 0.04, ..Default::default() };
    [SamplingParams::default(), filtered]
}

/// The joint distribution of the target's first three tokens, `[vocab^3]`.
pub fn joint(params: &SamplingParams) -> Vec<f64> {
    let next = |tokens: &[u32]| {
        let mut logits = Vec::new();
        TARGET.logits(tokens, &mut logits);
        distribution(&logits, params).unwrap()
    };
    let all = || 0..VOCAB as u32;
    let mut joint = Vec::new();
    let first = next(&[]);
    for a in all() {
        let second = next(&[a]);
        for b in all() {
            let third = next(&[a, b]);
            joint.extend(third.iter().map(|p| first[a as usize] * second[b as usize] * p));
        }
    }
    joint
}
