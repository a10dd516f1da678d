//! What it costs to read a trace and to make its prompts.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench that can't run should stop")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pagedraft_workloads::arrivals::Arrivals;
use pagedraft_workloads::dataset::{DatasetOptions, Prompt, Turns, Workload, open, survey};
use pagedraft_workloads::prompt::PromptMaker;
use pagedraft_workloads::replay::{Incoming, Source, SourceOptions};

const REQUESTS: u64 = 20_000;
const TOKENS: u64 = 600;

fn prompts(c: &mut Criterion) {
    let maker = PromptMaker::new(1, 0..32_000, 1.0).unwrap();
    let mut group = c.benchmark_group("prompt");
    group.throughput(Throughput::Elements(TOKENS));
    let mut index = 0;
    group.bench_function("600 tokens", |b| {
        b.iter(|| {
            index += 1;
            maker.make(index, &Prompt::Length(TOKENS as u32))
        });
    });
    group.finish();
}

/// A BurstGPT file of so many requests of 600 tokens, read and made into requests.
fn requests(c: &mut Criterion) {
    let path = std::env::temp_dir().join(format!("pagedraft-prompts-{}.csv", std::process::id()));
    let rows: String = (0..REQUESTS)
        .map(|i| format!("{i},ChatGPT,{TOKENS},100,{},Conversation log\n", TOKENS + 100))
        .collect();
    std::fs::write(
        &path,
        format!("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n{rows}"),
    )
    .unwrap();
    let asked = DatasetOptions {
        workload: Workload::Burstgpt,
        path: Some(path.clone()),
        turns: Turns::Full,
        from_s: None,
        to_s: None,
        limit: None,
        keep_failed: false,
        random: None,
        ruler: None,
        seed: 0,
    };
    let options = SourceOptions {
        arrivals: Arrivals::Recorded { speed: 1.0 },
        seed: 1,
        length_scale: 1.0,
        max_prompt_tokens: None,
        max_new_tokens: None,
        max_model_len: 8192,
        pool_tokens: u64::MAX,
        step_tokens: None,
        vocabulary: 0..32_000,
    };
    let found = survey(&asked, None).unwrap();
    let mut group = c.benchmark_group("burstgpt");
    group.sample_size(10).throughput(Throughput::Elements(REQUESTS));
    group.bench_function("survey", |b| b.iter(|| survey(&asked, None).unwrap()));
    group.bench_function("requests", |b| {
        b.iter_batched(
            || Source::new(open(&asked, None).unwrap(), &found, options.clone(), None).unwrap(),
            |source| {
                let tokens = |incoming| match incoming {
                    Ok(Incoming::Request(request)) => request.prompt.len(),
                    other => panic!("{other:?}"),
                };
                source.map(tokens).sum::<usize>()
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
    std::fs::remove_file(path).unwrap();
}

criterion_group!(benches, prompts, requests);
criterion_main!(benches);
