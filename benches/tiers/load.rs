//! Throughput of loads that need three times the memory that there is.

use std::time::Instant;

use pagedraft::session::{EngineOptions, KvTiers, LoadFormat, ModelRef, Request, Session};
use pagedraft_model::tiers::LocalPool;

use super::{CONFIG, Random, SIZE, of};

/// Conversations about documents, which take turns: all of them ask, all are answered, and all ask again.
struct Load {
    name: &'static str,
    conversations: u32,
    document: u32,
    turns: u32,
    question: u32,
    answer: u32,
}

const LOADS: [Load; 2] = [
    Load { name: "long answers", conversations: 6, document: 128, turns: 1, question: 0, answer: 640 },
    Load { name: "documents", conversations: 6, document: 768, turns: 3, question: 32, answer: 64 },
];

/// What a run came to.
#[derive(Clone, Copy)]
struct Ran {
    /// Tokens a second of processor time of the engine's thread, and of elapsed time.
    rates: [f64; 2],
    preempted: u32,
    /// Tokens of prompts whose KV was there.
    cached: u32,
    /// Cells that were fetched from below tier 0.
    fetched: u64,
}

/// The processor time of this thread, in seconds.
fn processor() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Load {
    /// The blocks that all of it takes at the end.
    fn blocks(&self) -> u32 {
        self.conversations * (self.document + self.turns * (self.question + self.answer)).div_ceil(SIZE)
    }

    fn run(&self, options: &EngineOptions) -> Ran {
        let mut session = Session::open(options).expect("an engine");
        let mut random = Random(1);
        let mut draw = |n: u32| -> Vec<u32> { (0..n).map(|_| (random.next() * 4096.0) as u32).collect() };
        let mut texts: Vec<Vec<u32>> = (0..self.conversations).map(|_| draw(self.document)).collect();
        let mut ran = Ran { rates: [0.0; 2], preempted: 0, cached: 0, fetched: 0 };
        let (start, begun) = (Instant::now(), processor());
        for turn in 0..self.turns {
            let mut ids = Vec::new();
            for (i, text) in texts.iter_mut().enumerate() {
                text.extend(draw(self.question));
                let name = format!("{turn}-{i}");
                let request = Request { ignore_eos: true, ..Request::new(name, text.clone(), self.answer) };
                ids.extend(session.submit(request).expect("a request"));
            }
            while session.has_unfinished() {
                session.step().expect("a step");
            }
            for (text, id) in texts.iter_mut().zip(ids) {
                let output = session.take_output(id).expect("an output");
                text.extend(&output.token_ids);
                ran.preempted += output.num_preemptions;
                ran.cached += output.num_cached_tokens;
            }
        }
        let tokens = f64::from(self.conversations * self.turns * self.answer);
        ran.rates = [tokens / (processor() - begun), tokens / start.elapsed().as_secs_f64()];
        ran.fetched = session.tier_counts().map_or(0, |counts| counts.local_pool.cells);
        ran
    }

    fn print(&self, base: &EngineOptions, rounds: usize) {
        let blocks = self.blocks();
        let tiers = KvTiers {
            hbm_blocks: Some(blocks / 3),
            local_pool: Some(LocalPool { bytes: 1 << 30, file: None }),
            ..KvTiers::default()
        };
        let with = |num_blocks| EngineOptions { num_blocks: Some(num_blocks), ..base.clone() };
        let variants = [
            ("all in memory", with(blocks)),
            ("a third, recompute", with(blocks / 3)),
            ("a third, tiers", EngineOptions { kv_tiers: tiers, ..with(blocks) }),
        ];
        let mut runs = vec![Vec::new(); variants.len()];
        for round in 0..rounds {
            for at in (0..variants.len()).map(|at| (at + round) % variants.len()) {
                runs[at].push(self.run(&variants[at].1));
            }
        }
        let Self { name, conversations, document, turns, question, answer } = self;
        println!(
            "\n{name}: {conversations} conversations, {turns} turns of {question} + {answer} tokens behind {document}, {blocks} \
             blocks, {rounds} rounds"
        );
        println!(
            "| | tokens a second of processor time, median | most | of elapsed time, median | preemptions | cached tokens | cells \
             fetched | to recompute, median |\n|---|---|---|---|---|---|---|---|"
        );
        for ((name, _), own) in variants.iter().zip(&runs) {
            let rates = |at: usize| own.iter().map(|run| run.rates[at]).collect::<Vec<_>>();
            let ratios = own.iter().zip(&runs[1]).map(|(own, other)| own.rates[0] / other.rates[0]).collect();
            let most = rates(0).into_iter().fold(0.0, f64::max);
            let Ran { preempted, cached, fetched, .. } = own[0];
            println!(
                "| {name} | {:.1} | {most:.1} | {:.1} | {preempted} | {cached} | {fetched} | {:.2} |",
                of(rates(0)).0,
                of(rates(1)).0,
                of(ratios).0
            );
        }
    }
}

pub fn print(rounds: usize) {
    let dir = std::env::temp_dir().join(format!("pagedraft-bench-tiers-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let config = CONFIG
        .replace("\"index_topk\": 2048", "\"index_topk\": 64")
        .replace("\"hidden_size\": 1024", "\"hidden_size\": 2048")
        .replace("\"intermediate_size\": 2816", "\"intermediate_size\": 5632");
    std::fs::write(dir.join("config.json"), config).expect("a file");
    let base = EngineOptions {
        load_format: LoadFormat::Dummy,
        max_model_len: Some(2048),
        enable_prefix_caching: true,
        threads: 1,
        ..EngineOptions::new(ModelRef::Directory(dir.clone()))
    };
    LOADS.iter().for_each(|load| load.print(&base, rounds));
    // What is left behind in a temporary directory does no harm.
    let _ = std::fs::remove_dir_all(dir);
}
