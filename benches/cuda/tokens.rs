//! Generates 100,000 tokens with and without speculation. All tokens must be the same.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use pagedraft::session::{
    DeviceRef, DraftLength, DraftRef, EngineOptions, LoadFormat, ModelRef, Request, Session,
    SpeculationOptions,
};
use pagedraft_model::Dtype;

use crate::shapes::{QWEN3_0_6B, scaled};
use crate::table::Table;

/// The number of requests of a batch. With four drafts each, 64 requests have more verify rows than there are rows of
/// logits, so those steps run eagerly. 40 requests have fewer, and their steps are replayed.
const BATCHES: [u32; 2] = [64, 40];
const TOKENS: u32 = 1600;

pub fn with_and_without_speculation(table: &mut Table) {
    for requests in BATCHES {
        compare(table, requests);
    }
}

fn compare(table: &mut Table, requests: u32) {
    let name = format!("0.6B: batch {requests}");
    let replayed = requests == 40;
    let requests = scaled(requests);
    let dir = Directory::new();
    let mut options = EngineOptions::new(ModelRef::Directory(dir.0.clone()));
    options.load_format = LoadFormat::Dummy;
    options.device = DeviceRef::Cuda;
    options.dtype = Some(Dtype::Bf16);
    options.num_blocks = Some(requests * 112);
    options.max_model_len = Some(1792);
    options.max_num_seqs = requests;
    options.max_num_batched_tokens = scaled(2048);
    let plain = generate(&options, requests, &[]);
    let recorded: Vec<Arc<[u32]>> = plain.tokens.iter().map(|tokens| tokens.as_slice().into()).collect();
    options.speculation = SpeculationOptions {
        draft: Some(DraftRef::Synthetic { rate: 0.7 }),
        length: DraftLength::Fixed(4),
        ..SpeculationOptions::default()
    };
    let drafted = generate(&options, requests, &recorded);
    let pairs = plain.tokens.iter().flatten().zip(drafted.tokens.iter().flatten());
    let differing = pairs.filter(|(a, b)| a != b).count();
    let all: usize = plain.tokens.iter().map(Vec::len).sum();
    let same_lengths = plain.tokens.iter().map(Vec::len).eq(drafted.tokens.iter().map(Vec::len));
    table.check(
        &format!("{name}, 0 of {all} tokens differ with drafts (found {differing})"),
        differing == 0 && same_lengths,
    );
    if replayed {
        table.check(&format!("{name}, most steps with drafts are replayed"), drafted.replays > drafted.eager);
    }
    for (how, run) in [("without drafts", plain), ("with drafts (0.7 right)", drafted)] {
        table.figure(
            &format!("{name}, tokens/s {how}"),
            format!("{:.0}", all as f64 / run.seconds),
            &format!("{} steps replayed, {} eager", run.replays, run.eager),
        );
    }
}

/// The tokens of every request, the seconds that all took together, and how the steps ran.
struct Generated {
    tokens: Vec<Vec<u32>>,
    seconds: f64,
    replays: u64,
    eager: u64,
}

/// Runs requests, half of them greedy and half of them sampled.
fn generate(options: &EngineOptions, requests: u32, recorded: &[Arc<[u32]>]) -> Generated {
    let mut session = Session::open(options).expect("an engine");
    let mut ids = Vec::new();
    for i in 0..requests {
        let prompt = (0..32 + i).map(|t| (t * 101 + i * 977) % session.info().vocab_size as u32).collect();
        let mut request = Request::new(i.to_string(), prompt, scaled(TOKENS));
        request.ignore_eos = true;
        request.sampling.temperature = [0.0, 0.0, 0.8, 1.0][i as usize % 4];
        request.sampling.seed = u64::from(i);
        request.recorded.extend(recorded.get(i as usize).cloned());
        ids.extend(session.submit(request).expect("a request"));
    }
    let start = Instant::now();
    while session.has_unfinished() {
        session.step().expect("a step");
    }
    let seconds = start.elapsed().as_secs_f64();
    let tokens = ids.into_iter().map(|id| session.take_output(id).expect("an output").token_ids).collect();
    let counts = session.run_counts().0;
    Generated { tokens, seconds, replays: counts.replays, eager: counts.eager }
}

/// A directory with the model's configuration, which is removed afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pagedraft-cuda-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        std::fs::write(path.join("config.json"), QWEN3_0_6B.text()).expect("a file");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
