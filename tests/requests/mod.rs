//! Requests that are drawn from a seed, and a small engine for them.

use std::path::Path;

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::prune::{PruneChoice, PruneSpec};
use pagedraft::session::{
    DraftLength, DraftRef, EngineOptions, LoadFormat, ModelRef, Request, SpeculationOptions,
};
use pagedraft::spec_decode::Scorer;
use pagedraft::spec_decode::sampling::{LogitChanges, SamplingParams};

/// A counter-based stream of numbers, so that a failure is reproduced by its printed seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub fn options(model: &ModelRef, dtype: Dtype, isa: Isa) -> EngineOptions {
    let load_format = match model {
        ModelRef::Builtin(_) => LoadFormat::Auto,
        ModelRef::Directory(_) => LoadFormat::Dummy,
    };
    EngineOptions {
        load_format,
        num_blocks: Some(256),
        max_num_seqs: 64,
        max_num_batched_tokens: 512,
        max_model_len: Some(512),
        enable_prefix_caching: false,
        dtype: Some(dtype),
        isa: Some(isa),
        seed: 7,
        ..EngineOptions::new(model.clone())
    }
}

pub fn requests(seed: u64, count: usize, vocab: usize, longest: u64) -> Vec<Request> {
    let mut random = Random(seed);
    let shared: Vec<u32> = (0..longest).map(|_| random.below(vocab as u64) as u32).collect();
    (0..count)
        .map(|i| {
            let len = 1 + random.below(longest) as usize;
            // Some prompts begin alike, so that they hit each other's prefixes.
            let same = if i % 3 == 0 { len * 3 / 4 } else { 0 };
            let own = (same..len).map(|_| random.below(vocab as u64) as u32);
            let prompt = shared[..same].iter().copied().chain(own).collect();
            let sampling = match i % 3 {
                0 => SamplingParams::greedy(),
                1 => SamplingParams { temperature: 0.8, seed: random.next(), ..SamplingParams::default() },
                _ => SamplingParams {
                    temperature: 1.1,
                    top_k: Some(20),
                    top_p: 0.9,
                    min_p: 0.01,
                    seed: random.next(),
                    ..SamplingParams::default()
                },
            };
            let changes = LogitChanges {
                bias: vec![((37 * i % vocab) as u32, 5.0)],
                presence: 0.5,
                frequency: 0.7,
                repetition: 1.2,
                ..LogitChanges::default()
            };
            let changes = (i % 4 == 1).then(|| Box::new(changes));
            let sampling = SamplingParams { changes, ..sampling };
            let (max_tokens, priority) = (4 + random.below(20) as u32, random.below(3) as i32);
            let request = Request::new(i.to_string(), prompt, max_tokens);
            // Of some, fewer drafts may be made than of others.
            let num_speculative_tokens = (i % 4 == 2).then_some(i as u32 % 3);
            Request { sampling, ignore_eos: true, priority, num_speculative_tokens, ..request }
        })
        .collect()
}

/// Drafts of `k` tokens.
pub fn speculation(draft: DraftRef, k: u16, scorer: Scorer) -> SpeculationOptions {
    SpeculationOptions {
        draft: Some(draft),
        length: DraftLength::Fixed(k),
        scorer,
        ..SpeculationOptions::default()
    }
}

/// A way to prune prompts.
pub fn spec(json: &str) -> PruneChoice {
    PruneChoice::Spec(PruneSpec::from_json(serde_json::from_str(json).unwrap(), Path::new("")).unwrap())
}
