//! The schedules that requests are run under, and what has to be equal whatever the schedule.

use pagedraft::scheduler::Policy;
use pagedraft::session::{DraftRef, EngineOptions, IndexerTopk, Request, Session};
use pagedraft::spec_decode::Scorer;

use crate::requests::{requests, speculation};

/// What a sample generated, the logits each of its tokens was chosen from, and what its indexers chose where it asked for that.
#[derive(PartialEq)]
pub struct Output {
    pub tokens: Vec<u32>,
    pub logits: Vec<Vec<u32>>,
    pub chosen: Option<IndexerTopk>,
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

/// Runs the requests under every schedule. Each has to give the bits that it gives alone.
pub fn every_schedule(
    name: &str,
    base: &EngineOptions,
    tight: u32,
    requests: &[Request],
    alone: &[Output],
) -> Events {
    let mut events = Events::default();
    for (schedule, apart, options) in schedules(base, tight) {
        let (found, happened) = run(&options, requests, apart);
        check(&format!("{name}: {schedule}"), requests, alone, &found);
        events.add(happened);
    }
    events
}

/// Requests of few different tokens, so that look-ups find something, with `more` tokens of output than others.
pub fn repetitive(seed: u64, count: usize, more: u32) -> Vec<Request> {
    let mut requests = requests(seed, count, 5, 90);
    requests.iter_mut().for_each(|request| request.max_tokens += more);
    requests
}

/// Three drafts a step with each scorer: eagerly; and by graphs with a prefix cache, in chunks of 7 tokens or in a pool of `tight` blocks.
pub fn drafting(base: &EngineOptions, draft: &DraftRef, tight: u32) -> Vec<(String, EngineOptions)> {
    let ways = [(true, 256, None), (false, 256, Some(7)), (false, tight, None)];
    let of = |scorer| {
        ways.map(|(enforce_eager, num_blocks, prefill_chunk)| {
            let name = format!("{draft}, {scorer}, eager {enforce_eager}, {num_blocks} blocks");
            let options = EngineOptions {
                speculation: speculation(draft.clone(), 3, scorer),
                enforce_eager,
                num_blocks: Some(num_blocks),
                prefill_chunk,
                enable_prefix_caching: !enforce_eager,
                ..base.clone()
            };
            (name, options)
        })
    };
    [Scorer::Mqa, Scorer::BatchExpansion].into_iter().flat_map(of).collect()
}

/// Runs the requests with drafts, with both scorers, by graphs and eagerly. Each has to give the bits that it gives alone without drafts.
pub fn drafts_change_nothing(
    base: &EngineOptions,
    drafts: &[DraftRef],
    tight: u32,
    requests: &[Request],
) -> Events {
    let alone = alone(&EngineOptions { enforce_eager: true, ..base.clone() }, requests);
    let mut events = Events::default();
    for (name, options) in drafts.iter().flat_map(|draft| drafting(base, draft, tight)) {
        let (found, happened) = run(&options, requests, 1);
        check(&name, requests, &alone, &found);
        assert_eq!(happened.replays > 0, !options.enforce_eager, "{name}: {} replays", happened.replays);
        events.add(happened);
    }
    assert!(events.accepted > 0 && events.preempted > 0, "no draft was accepted, or nobody was preempted");
    events
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
