//! 100,000 tokens with and without speculation: not one may differ.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use pagedraft::session::{
    DeviceRef, DraftLength, DraftRef, EngineOptions, LoadFormat, ModelRef, Request, Session,
    SpeculationOptions,
};
use pagedraft_model::Dtype;

use crate::measure::Table;
use crate::shapes::{QWEN3_0_6B, scaled};

const REQUESTS: u32 = 64;
const TOKENS: u32 = 1600;

pub fn with_and_without_speculation(table: &mut Table) {
    let dir = Directory::new();
    let mut options = EngineOptions::new(ModelRef::Directory(dir.0.clone()));
    options.load_format = LoadFormat::Dummy;
    options.device = DeviceRef::Cuda;
    options.dtype = Some(Dtype::Bf16);
    options.num_blocks = Some(scaled(REQUESTS) * 112);
    options.max_model_len = Some(1792);
    options.max_num_seqs = scaled(REQUESTS);
    options.max_num_batched_tokens = scaled(2048);
    let (plain, seconds) = generate(&options, &[]);
    let recorded: Vec<Arc<[u32]>> = plain.iter().map(|tokens| tokens.as_slice().into()).collect();
    options.speculation = SpeculationOptions {
        draft: Some(DraftRef::Synthetic { rate: 0.7 }),
        length: DraftLength::Fixed(4),
        ..SpeculationOptions::default()
    };
    let (drafted, with) = generate(&options, &recorded);
    let pairs = plain.iter().flatten().zip(drafted.iter().flatten());
    let differing = pairs.filter(|(a, b)| a != b).count();
    let all: usize = plain.iter().map(Vec::len).sum();
    let same_lengths = plain.iter().map(Vec::len).eq(drafted.iter().map(Vec::len));
    table.check(
        &format!("0.6B: 0 of {all} tokens differ with drafts (found {differing})"),
        differing == 0 && same_lengths,
    );
    let rate = |seconds: f64| format!("{:.0}", all as f64 / seconds);
    table.figure("0.6B: batch 64, tokens/s without and with drafts (0.7 right)", rate(seconds), &rate(with));
}

/// The tokens of every request, greedy ones and drawn ones, and the seconds all took.
fn generate(options: &EngineOptions, recorded: &[Arc<[u32]>]) -> (Vec<Vec<u32>>, f64) {
    let mut session = Session::open(options).expect("an engine");
    let mut ids = Vec::new();
    for i in 0..scaled(REQUESTS) {
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
    (tokens, seconds)
}

/// A directory with the model's configuration, gone afterwards.
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
