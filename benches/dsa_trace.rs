//! What records of sparse attention cost a step: the same decode steps with and without them, in turn. A plain program:
//! `cargo bench --bench dsa_trace [-- CONTEXT [STEPS]]`.
//!
//! The model has one layer of 1,024 values, 16 heads over latents of 512 + 64, an indexer of 16 heads of 128, which chooses 2,048 keys; its
//! weights are drawn. One request of CONTEXT tokens (4,096) decodes. The untraced engine writes no trace, another writes steps alone
//! (`--trace-dsa off`), the others also records: compact, with the figures of scores or with each. Printed are the median and the least time of a step, and
//! the median of the ratios to the engine with steps alone within a round. Times are the processor time of the engine's
//! thread, because a busy machine spoils elapsed time. The thread that writes the files is not in them.
//!
//! A prompt of more than 16,384 tokens takes minutes, so that one engine has it. It records every second token, drawn by
//! `--trace-sample-rate`: steps with a record are compared with steps without one. Figures of scores are kept in both.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault here is a failed bench")]

use std::path::Path;

use pagedraft::session::{
    DsaTraceOptions, EngineOptions, LoadFormat, ModelRef, Request, Session, TraceOptions,
};
use pagedraft_workloads::trace::{DsaFormat, DsaRows, DsaTraceConfig, TraceTables};

const CONFIG: &str = r#"{"architectures": ["DeepseekV32ForCausalLM"], "vocab_size": 2048, "hidden_size": 1024,
    "intermediate_size": 2816, "moe_intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 16,
    "q_lora_rank": 512, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "index_n_heads": 16, "index_head_dim": 128, "index_topk": 2048, "first_k_dense_replace": 1, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "max_position_embeddings": 163840,
    "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#;

/// The processor time of this thread, in milliseconds.
fn now() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const LONG: u32 = 16_384;

fn least(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Steps with and without records, at a long context.
fn sampled(model: &ModelRef, dir: &Path, context: u32, steps: u32) {
    let dsa = DsaTraceOptions { rows: DsaRows::Decode, sample_rate: 0.5, ..DsaTraceOptions::default() };
    let mut engine = engine(model, dir, Some(dsa), context);
    let config = DsaTraceConfig::of_trace(dir).unwrap();
    let (mut times, mut ratios, mut last) = ([Vec::new(), Vec::new()], Vec::new(), None);
    for position in context + 1..=context + steps {
        let start = now();
        engine.step().unwrap();
        let took = now() - start;
        let recorded = config.samples("0", position);
        times[usize::from(recorded)].push(took);
        match (recorded, last) {
            (true, Some(before)) => ratios.push(took / before),
            (true, None) => {}
            (false, _) => last = Some(took),
        }
    }
    engine.close(&serde_json::json!({})).unwrap();
    for (name, times) in ["without a record", "with one"].iter().zip(&times) {
        println!(
            "{name:<18}{:>12.3}{:>12.3} ms, median and least of {}",
            median(times.clone()),
            least(times),
            times.len()
        );
    }
    println!(
        "to the step without one before it {:.4}, medians {:.4}, least to least {:.4}",
        median(ratios),
        median(times[1].clone()) / median(times[0].clone()),
        least(&times[1]) / least(&times[0])
    );
}

fn engine(model: &ModelRef, dir: &Path, trace_dsa: Option<DsaTraceOptions>, context: u32) -> Session {
    let _ = std::fs::remove_dir_all(dir);
    let trace = trace_dsa.is_some().then(|| TraceOptions {
        dir: dir.to_owned(),
        tables: TraceTables::Full,
        format: Default::default(),
    });
    let mut session = Session::open(&EngineOptions {
        load_format: LoadFormat::Dummy,
        num_blocks: Some(context / 16 + 64),
        max_num_seqs: 1,
        max_num_batched_tokens: 512,
        max_model_len: Some(context + 1000),
        threads: 1,
        enforce_eager: true,
        trace,
        trace_dsa: trace_dsa.unwrap_or_default(),
        ..EngineOptions::new(model.clone())
    })
    .unwrap();
    let prompt = (0..context).map(|i| i * 7919 % 2048).collect();
    let request = Request { ignore_eos: true, ..Request::new("0", prompt, 1000) };
    session.submit(request).unwrap();
    while session.step().unwrap().decode_rows == 0 {}
    session
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let (context, steps) = (numbers.next().unwrap_or(4096), numbers.next().unwrap_or(150));
    let scratch = std::env::temp_dir().join(format!("pagedraft-dsa-trace-{}", std::process::id()));
    let model = scratch.join("model");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("config.json"), CONFIG).unwrap();
    let model = ModelRef::Directory(model);
    let dsa = |rows, format, store_scores| {
        Some(DsaTraceOptions { rows, format, store_scores, ..DsaTraceOptions::default() })
    };
    let ways = [
        ("no trace", None),
        ("steps alone", dsa(DsaRows::Off, DsaFormat::Compact, false)),
        ("compact", dsa(DsaRows::Decode, DsaFormat::Compact, false)),
        ("compact, scores", dsa(DsaRows::Decode, DsaFormat::Compact, true)),
    ];
    println!("context {context}, {steps} rounds, one thread");
    if context > LONG {
        sampled(&model, &scratch.join("run"), context, steps);
        let _ = std::fs::remove_dir_all(&scratch);
        return;
    }
    let mut engines: Vec<Session> = ways
        .iter()
        .map(|(name, dsa)| engine(&model, &scratch.join(name.replace(", ", "-")), dsa.clone(), context))
        .collect();
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..steps {
        for (engine, times) in engines.iter_mut().zip(&mut times) {
            let start = now();
            engine.step().unwrap();
            times.push(now() - start);
        }
    }
    println!("{:<18}{:>12}{:>12}{:>14}{:>14}", "", "median ms", "least ms", "to steps", "least to least");
    for ((name, _), own) in ways.iter().zip(&times) {
        let ratios = own.iter().zip(&times[1]).map(|(own, base)| own / base).collect();
        println!(
            "{name:<18}{:>12.3}{:>12.3}{:>14.4}{:>14.4}",
            median(own.clone()),
            least(own),
            median(ratios),
            least(own) / least(&times[1])
        );
    }
    for engine in &mut engines {
        engine.close(&serde_json::json!({})).unwrap();
    }
    let _ = std::fs::remove_dir_all(&scratch);
}
