//! Requests, and the schedules they are run under.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::path::{Path, PathBuf};

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::scheduler::Policy;
use pagedraft::session::{EngineOptions, IndexerTopk, LoadFormat, ModelRef, Request, Session};
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

/// What a sample generated, the logits each of its tokens was chosen from, and what its indexers chose where it asked for that.
#[derive(PartialEq)]
pub struct Output {
    pub tokens: Vec<u32>,
    pub logits: Vec<Vec<u32>>,
    pub chosen: Option<IndexerTopk>,
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

/// What each request gives alone.
pub fn alone(base: &EngineOptions, requests: &[Request]) -> Vec<Output> {
    requests.iter().flat_map(|request| run(base, std::slice::from_ref(request), 0).0).collect()
}

/// Runs the requests, `apart` steps between two arrivals; the outputs, and what happened on the way.
pub fn run(options: &EngineOptions, requests: &[Request], apart: usize) -> (Vec<Output>, Events) {
    let mut session = Session::open(options).unwrap();
    session.keep_logits();
    let mut ids = Vec::new();
    for request in requests {
        ids.extend(session.submit(request.clone()).unwrap());
        for _ in 0..apart {
            session.step().unwrap();
        }
    }
    while session.has_unfinished() {
        session.step().unwrap();
    }
    let mut events = Events { replays: session.run_counts().0.replays, ..Events::default() };
    if let Some(tiers) = session.tier_counts() {
        (events.fetched, events.restored) = (tiers.local_pool.cells, tiers.prefixes_restored);
    }
    let outputs = ids.into_iter().map(|id| {
        let logits = session.take_logits(id);
        let output = session.take_output(id).unwrap();
        events.preempted += output.num_preemptions;
        events.cached += output.num_cached_tokens;
        events.drafted += output.num_drafts;
        events.accepted += output.num_accepted;
        let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
        let chosen = output.indexer_topk;
        Output { tokens: output.token_ids, logits: logits.into_iter().map(bits).collect(), chosen }
    });
    let outputs = outputs.collect();
    (outputs, events)
}

pub fn check(name: &str, requests: &[Request], alone: &[Output], found: &[Output]) {
    assert_eq!(alone.len(), found.len());
    for ((request, a), b) in requests.iter().zip(alone).zip(found) {
        let at = a.tokens.iter().zip(&b.tokens).position(|(x, y)| x != y);
        assert_eq!(a.tokens, b.tokens, "{name}: request {} differs from token {at:?}", request.request_id);
        for (i, (x, y)) in a.logits.iter().zip(&b.logits).enumerate() {
            let at = x.iter().zip(y).position(|(x, y)| x != y);
            assert!(x == y, "{name}: request {}: logit {at:?} of token {i} differs", request.request_id);
        }
        assert_eq!(a.logits.len(), b.logits.len(), "{name}: request {}", request.request_id);
        let differs = match (&a.chosen, &b.chosen) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        assert!(!differs, "{name}: request {}: other keys were chosen", request.request_id);
    }
}

/// The table of schedules; `tight` is a pool that forces preemptions.
pub fn schedules(base: &EngineOptions, tight: u32) -> Vec<(&'static str, usize, EngineOptions)> {
    let with = |change: &dyn Fn(&mut EngineOptions)| {
        let mut options = base.clone();
        change(&mut options);
        options
    };
    let chunk = |n| with(&|o: &mut EngineOptions| o.prefill_chunk = Some(n));
    vec![
        ("all at once", 0, base.clone()),
        ("arriving one by one", 2, base.clone()),
        ("chunks of 1", 0, chunk(1)),
        ("chunks of 7", 1, chunk(7)),
        ("chunks of 16", 0, chunk(16)),
        ("chunks of 64", 3, chunk(64)),
        ("no chunks", 1, with(&|o| o.enable_chunked_prefill = false)),
        ("a budget of 19 tokens", 0, with(&|o| o.max_num_batched_tokens = 19)),
        ("a budget smaller than the batch", 0, with(&|o| o.max_num_batched_tokens = 3)),
        ("three seats", 1, with(&|o| o.max_num_seqs = 3)),
        ("blocks of 32", 0, with(&|o| o.block_size = 32)),
        ("blocks of 64", 1, with(&|o| (o.block_size, o.prefill_chunk) = (64, Some(33)))),
        ("2 threads", 0, with(&|o| o.threads = 2)),
        ("5 threads in chunks of 7", 1, with(&|o| (o.threads, o.prefill_chunk) = (5, Some(7)))),
        ("prefix cache", 9, with(&|o| o.enable_prefix_caching = true)),
        (
            "prefix cache in chunks of 16",
            4,
            with(&|o| (o.enable_prefix_caching, o.prefill_chunk) = (true, Some(16))),
        ),
        ("tight pool", 0, with(&|o| o.num_blocks = Some(tight))),
        (
            "tight pool, prefix cache, chunks of 7, 2 threads, by priority",
            1,
            with(&|o| {
                o.num_blocks = Some(tight);
                o.enable_prefix_caching = true;
                o.prefill_chunk = Some(7);
                o.threads = 2;
                o.policy = Policy::Priority;
            }),
        ),
    ]
}

/// What happened on the way: without it a table proves less than it says.
#[derive(Default)]
pub struct Events {
    pub preempted: u32,
    pub cached: u32,
    pub drafted: u32,
    pub accepted: u32,
    pub replays: u64,
    /// Cells that came from the tiers below, and blocks of the prefix cache that did.
    pub fetched: u64,
    pub restored: u64,
}

impl Events {
    pub fn add(&mut self, other: Events) {
        self.preempted += other.preempted;
        self.cached += other.cached;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.replays += other.replays;
        self.fetched += other.fetched;
        self.restored += other.restored;
    }

    pub fn check(&self) {
        assert!(self.preempted > 0, "the tight pools preempted nobody");
        assert!(self.cached > 0, "no prompt hit the prefix cache");
    }
}

/// A directory with the `config.json` of a small model; its weights are drawn from a seed.
pub fn small_model(name: &str, architecture: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let config = format!(
        r#"{{"architectures": ["{architecture}ForCausalLM"], "vocab_size": 300, "hidden_size": 96, "intermediate_size": 168,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "torch_dtype": "float32", "hidden_act": "silu"}}"#
    );
    // Tests that run at once may ask for the same model: none may see half a file.
    let own = dir.join(format!("config-{:?}.json", std::thread::current().id()));
    std::fs::write(&own, config).unwrap();
    std::fs::rename(&own, dir.join("config.json")).unwrap();
    dir
}
