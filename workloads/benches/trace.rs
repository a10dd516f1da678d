//! What a traced step costs the engine's thread: 8 sequences in decode at 384 tokens, blocks of 16, as in the main job.
//!
//! The step itself takes 1 to 3 ms there; the budget is 3 % of it.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use pagedraft_attention::{AttentionMetadata, MaskKind, MetadataBuilder};
use pagedraft_block_manager::{BlockId, KvJournal};
use pagedraft_scheduler::{
    Applied, FinishReason, Kind, PlanRow, RequestKey, RequestSpec, RowOutcome, Scheduler, SchedulerConfig,
    StepId, StepPlan,
};
use pagedraft_workloads::run::LineFormat;
use pagedraft_workloads::trace::{
    KvEvents, PoolCounts, StepEvent, StepNames, TableDelta, TimesUs, TraceWriter,
};

struct Names;

impl StepNames for Names {
    fn request_id(&self, _: RequestKey) -> &str {
        "1234"
    }

    fn finish_reason(&self, _: RequestKey) -> Option<FinishReason> {
        None
    }
}

struct Step {
    plan: StepPlan,
    outcome: Vec<RowOutcome>,
    tokens: Vec<u32>,
    applied: Vec<Applied>,
    inputs: Vec<u32>,
    positions: Vec<u32>,
    metadata: AttentionMetadata,
    journal: KvJournal,
}

fn step(sequences: u32, tokens: u32) -> Step {
    let mut builder = MetadataBuilder::new(16).unwrap();
    let mut scheduler = Scheduler::new(SchedulerConfig::default()).unwrap();
    let keys: Vec<RequestKey> =
        (0..sequences).map(|_| scheduler.submit(RequestSpec::new(vec![1], 1)).unwrap()).collect();
    for s in 0..sequences {
        let table: Vec<BlockId> =
            (0..tokens.div_ceil(16)).map(|b| BlockId(1000 + s + b * sequences)).collect();
        builder.push_row(tokens - 1, 1, &table, MaskKind::Causal).unwrap();
    }
    let row = |&request: &RequestKey| PlanRow {
        thins: false,
        request,
        kind: Kind::Decode,
        tokens: tokens - 1..tokens,
        segments: 0..1,
        drafts_max: 0,
        samples: true,
    };
    let outcome = |i: u32| RowOutcome { tokens: i..i + 1, ..RowOutcome::of(keys[i as usize]) };
    let applied = |i: u32| Applied {
        request: keys[i as usize],
        tokens: i..i + 1,
        finish: None,
        num_drafts: 0,
        num_accepted: 0,
    };
    Step {
        plan: StepPlan { id: StepId(12345), rows: keys.iter().map(row).collect(), ..StepPlan::default() },
        outcome: (0..sequences).map(outcome).collect(),
        tokens: (0..sequences).map(|i| 1000 + i).collect(),
        applied: (0..sequences).map(applied).collect(),
        inputs: (0..sequences).map(|i| 500 + i).collect(),
        positions: vec![tokens - 1; sequences as usize],
        metadata: builder.finish().clone(),
        journal: KvJournal::default(),
    }
}

fn event<'a>(
    step: &'a Step,
    plan_rows: &'a [u32],
    metadata: &'a AttentionMetadata,
) -> StepEvent<'a, AttentionMetadata, (), ()> {
    StepEvent {
        first_step: 0,
        replica: None,
        plan: &step.plan,
        outcome: &step.outcome,
        tokens: &step.tokens,
        applied: &step.applied,
        names: &Names,
        finished: &[],
        time_us: TimesUs {
            schedule: 1.234,
            metadata: 2.345,
            propose: 0.0,
            execute: 1234.567,
            sample: 12.345,
        },
        mode: "eager",
        graph_key: None,
        input_tokens: &step.inputs,
        input_positions: &step.positions,
        plan_rows,
        metadata,
        groups: None,
        pool: PoolCounts { num_blocks: 20_000, used: 192, free: 19_808, ..PoolCounts::default() },
        by_group: None,
        kv_events: KvEvents { journal: &step.journal, groups: &[] },
    }
}

/// Serialisation, the copy and the lock: all that the engine's thread does.
fn traced_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("traced step of 8 sequences");
    let step = step(8, 384);
    let directory = std::env::temp_dir().join(format!("pagedraft-trace-bench-{}", std::process::id()));
    let mut writer = TraceWriter::create(&directory, &serde_json::json!({}), LineFormat::Jsonl).unwrap();
    let rows: Vec<u32> = (0..8).collect();
    group.bench_function("full tables", |b| {
        b.iter(|| writer.write(&event(&step, &rows, &step.metadata)).unwrap());
    });
    let mut delta = TableDelta::default();
    group.bench_function("delta tables", |b| {
        b.iter(|| {
            let metadata = delta.reduce(&step.plan, &rows, &step.metadata);
            writer.write(&event(&step, &rows, metadata)).unwrap();
        });
    });
    group.finish();
    drop(writer);
    // Gone already where a filter left the writer without a line.
    let _ = std::fs::remove_dir_all(&directory);
}

/// Serialisation alone: lines this long, one after the other without a step between them, would measure the disk.
fn long_line(c: &mut Criterion) {
    let mut group = c.benchmark_group("line of 256 sequences");
    let step = step(256, 640);
    let mut delta = TableDelta::default();
    let rows: Vec<u32> = (0..256).collect();
    let mut line = Vec::new();
    group.bench_function("full tables", |b| {
        b.iter(|| {
            line.clear();
            serde_json::to_writer(&mut line, &event(&step, &rows, &step.metadata)).unwrap();
        });
    });
    group.bench_function("delta tables", |b| {
        b.iter(|| {
            line.clear();
            let metadata = delta.reduce(&step.plan, &rows, &step.metadata);
            serde_json::to_writer(&mut line, &event(&step, &rows, metadata)).unwrap();
        });
    });
    group.finish();
}

criterion_group!(benches, traced_step, long_line);
criterion_main!(benches);
