//! A simulation of a model with windows, or of pruned prompts, makes the plans of the real engine: step for step, block for block.

use std::path::{Path, PathBuf};

use pagedraft::prune::{PruneChoice, PruneSpec};
use pagedraft::session::{
    EngineOptions, LoadFormat, ModelRef, PruneOptions, Request, Session, SimulatedKv, TraceOptions,
};
use pagedraft_scheduler::SchedulerConfig;
use pagedraft_workloads::Error;
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::measures::{Recorder, RecorderOptions};
use pagedraft_workloads::replay::{Incoming, PlannedRequest, RequestLine};
use pagedraft_workloads::sim::{CostModel, Observer, Router, SimEvent, SimOptions, simulate};
use pagedraft_workloads::trace::read_steps;
use serde_json::{Value, json};

use crate::program::{Scratch, pagedraft};

/// A model of four small layers, its weights drawn from a seed: all of them have a window, or the first and the third.
fn model(scratch: &Scratch, name: &str, windows: Value) -> String {
    let mut config = json!({
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 1024, "tie_word_embeddings": true, "torch_dtype": "float32",
        "use_sliding_window": true, "sliding_window": 24,
    });
    config["layer_types"] = windows;
    scratch.write(&format!("{name}/config.json"), config.to_string().as_bytes());
    scratch.path(name)
}

fn models(scratch: &Scratch) -> [String; 2] {
    let (full, window) = ("full_attention", "sliding_attention");
    [
        model(scratch, "all", json!([window, window, window, window])),
        // Blocks of two sizes: one full layer, three with a window.
        model(scratch, "some", json!([window, full, window, window])),
    ]
}

/// Prompts of which some begin alike, and outputs; too much for the pool at once.
fn requests() -> Vec<(Vec<u32>, u32)> {
    let prompt = |i: u32| {
        let shared = (0..70).map(move |p| p * 7 % 300);
        let own = (0..20 + i * 13 % 90).map(move |p| (p * 11 + i * 29) % 300);
        shared.take(if i.is_multiple_of(2) { 70 } else { 0 }).chain(own).collect::<Vec<u32>>()
    };
    (0..14).map(|i| (prompt(i), 20 + i * 17 % 60)).collect()
}

/// What of a step's line is decided by the scheduler and the block manager.
fn decided(line: &Value) -> Value {
    let mut decided = json!({});
    for key in ["step", "rows", "input_positions", "metadata", "groups", "preempted", "finished", "pool"] {
        decided[key] = line[key].clone();
    }
    // Graphs of the real engine were captured for its own sizes.
    decided["metadata"].as_object_mut().unwrap().remove("use_cuda_graph");
    // The real names of kept tokens stand for the weights too.
    for row in decided["rows"].as_array_mut().unwrap() {
        row.as_object_mut().unwrap().remove("kept_name");
    }
    // A simulation draws the tokens that it generates.
    for group in decided["groups"].as_object_mut().into_iter().flat_map(|groups| groups.values_mut()) {
        group.as_object_mut().unwrap().remove("input_tokens");
    }
    decided
}

struct Lines(Vec<Value>);

impl Observer for Lines {
    fn line(&mut self, line: &RequestLine) -> Result<(), Error> {
        assert_eq!(line.error, None);
        Ok(())
    }

    fn wants_trace(&self) -> bool {
        true
    }

    fn trace(&mut self, _: u32, event: SimEvent<'_>) -> Result<(), Error> {
        self.0.push(serde_json::to_value(&event).unwrap());
        Ok(())
    }
}

fn real(options: &EngineOptions, dir: &Path) -> Vec<Value> {
    let _ = std::fs::remove_dir_all(dir);
    let trace = TraceOptions { dir: dir.to_owned(), tables: Default::default(), format: Default::default() };
    let mut session = Session::open(&EngineOptions { trace: Some(trace), ..options.clone() }).unwrap();
    for (i, (prompt, max_tokens)) in requests().into_iter().enumerate() {
        session
            .submit(Request { ignore_eos: true, ..Request::new(i.to_string(), prompt, max_tokens) })
            .unwrap();
    }
    while session.has_unfinished() {
        session.step().unwrap();
    }
    session.close(&Value::Null).unwrap();
    let mut lines = read_steps(dir).unwrap();
    let mut all = Vec::new();
    while let Some(line) = lines.next_line().unwrap() {
        all.push(serde_json::from_slice(line).unwrap());
    }
    all.retain(|line: &Value| line["event"] == "step");
    all
}

fn simulated(options: &EngineOptions) -> Vec<Value> {
    let max_model_len = options.max_model_len.unwrap();
    let kv = SimulatedKv::of(options, max_model_len).unwrap();
    let simulated = SimOptions {
        scheduler: SchedulerConfig {
            block_size: options.block_size,
            num_blocks: options.num_blocks.unwrap(),
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: options.max_num_batched_tokens,
            max_model_len,
            enable_prefix_caching: options.enable_prefix_caching,
            prefill_chunk: options.prefill_chunk,
            groups: if kv.groups.is_empty() { SchedulerConfig::default().groups } else { kv.groups },
            segments: kv.segments,
            ..SchedulerConfig::default()
        },
        cost: CostModel::builtin(),
        speculation: None,
        prune: kv.prune,
        enforce_eager: false,
        replicas: 1,
        router: Router::RoundRobin,
        max_concurrency: None,
        seed: 0,
    };
    let planned = |(index, (prompt, max_tokens))| PlannedRequest {
        index,
        source_id: None,
        category: None,
        arrival_ns: Some(0),
        prompt,
        text: None,
        max_tokens,
        until_stop: false,
        expect: None,
    };
    let all = (0..).zip(requests()).map(planned);
    let mut source = all.map(|request| Ok::<_, DatasetError>(Incoming::Request(request)));
    let mut recorder = Recorder::new(RecorderOptions { items: 14, block_size: 16, ..Default::default() });
    let mut lines = Lines(Vec::new());
    simulate(&mut source, &simulated, &mut recorder, &mut lines).unwrap();
    lines.0
}

/// The lines of a simulated engine, which has decided what the real one decides.
fn equal_lines(scratch: &Scratch, options: &EngineOptions, what: &str) -> Vec<Value> {
    let real = real(options, Path::new(&scratch.path("real")));
    let simulated = simulated(options);
    for (real, simulated) in real.iter().zip(&simulated) {
        assert_eq!(decided(simulated), decided(real), "{what}");
    }
    assert_eq!(simulated.len(), real.len(), "{what}");
    simulated
}

fn options(
    model: &str,
    (num_blocks, chunk, caching): (u32, Option<u32>, bool),
    prune: PruneOptions,
) -> EngineOptions {
    EngineOptions {
        load_format: LoadFormat::Dummy,
        num_blocks: Some(num_blocks),
        max_model_len: Some(1024),
        max_num_batched_tokens: 64,
        prefill_chunk: chunk,
        enable_prefix_caching: caching,
        prune,
        ..EngineOptions::new(ModelRef::Directory(PathBuf::from(model)))
    }
}

#[test]
fn a_simulation_plans_for_pruned_prompts_as_the_real_engine_does() {
    let scratch = Scratch::new("sim-pruned");
    let full = "full_attention";
    let model = model(&scratch, "full", json!([full, full, full, full]));
    for (pool, positions, scorer) in [
        ((30, None, true), "original", "random"),
        ((18, Some(9), true), "compact", "first-last"),
        ((18, None, false), "compact", "random"),
    ] {
        let spec = json!({"layers": [0, 2], "keep_ratio": [0.7, 0.5], "scorer": scorer, "positions": positions,
            "min_tail_tokens": 4});
        let spec = PruneSpec::from_json(spec, Path::new("")).unwrap();
        let prune = PruneOptions { all: Some(PruneChoice::Spec(spec)), ..PruneOptions::default() };
        let what = format!("{pool:?}, {positions}, {scorer}");
        let lines = equal_lines(&scratch, &options(&model, pool, prune), &what);
        let preempted = lines.iter().filter(|line| line["preempted"] != json!([])).count();
        assert!(preempted > 0 || pool.0 > 18, "{what}: nobody was preempted");
        let waits = |row: &&Value| row["segments"][1] != json!(3);
        let waiting = lines.iter().flat_map(|line| line["rows"].as_array().unwrap()).filter(waits).count();
        assert!(waiting > 0, "{what}: no row waited behind a cut");
    }
}

#[test]
fn a_simulation_plans_for_windows_as_the_real_engine_does() {
    let scratch = Scratch::new("sim-windows");
    for model in models(&scratch) {
        for (num_blocks, chunk, caching) in [(30, None, true), (18, Some(9), true), (18, None, false)] {
            let what = format!("{model}, {num_blocks} blocks, caching {caching}");
            let options = options(&model, (num_blocks, chunk, caching), PruneOptions::default());
            let simulated = equal_lines(&scratch, &options, &what);
            let text = json!(simulated).to_string();
            assert!(text.contains("[-1,"), "{what}: no block was given back behind a window");
            let preempted = simulated.iter().filter(|line| line["preempted"] != json!([])).count();
            assert!(preempted > 0 || num_blocks > 18, "{what}: nobody was preempted");
            let hits = simulated.iter().flat_map(|line| line["rows"].as_array().unwrap());
            let hit = hits.filter(|row| row["kind"] == "prefill" && row["num_computed"] != 0).count();
            assert!(!caching || hit > 0, "{what}");
        }
    }
}

#[test]
fn a_simulated_replay_takes_the_windows_of_its_model() {
    let scratch = Scratch::new("sim-windows-cli");
    let models = models(&scratch);
    let common =
        ["replay", "--workload", "random", "--num-requests", "20", "--input-len", "100", "--output-len"];
    let more = ["60", "--executor", "sim", "--trace-steps", "--num-blocks", "24", "--max-model-len", "1024"];
    for (i, model) in models.iter().enumerate() {
        for tables in ["full", "delta"] {
            let out = scratch.path(&format!("{i}-{tables}"));
            let flags = ["--model", model, "--out", &out, "--trace-tables", tables, "--prefix-share", "0.6"];
            let run = pagedraft(&[&common[..], &more, &flags].concat());
            assert_eq!(run.code, Some(0), "{}", run.stderr);
            let check = pagedraft(&["trace", "check", &out]);
            assert_eq!(check.code, Some(0), "{}", check.stderr);
            let config = scratch.json(&format!("{i}-{tables}/config.json"));
            assert_eq!(config["windows_of"], **model);
            assert_eq!(config["kv_groups"].as_array().unwrap().len(), 1 + i);
        }
    }
    // Whoever routes by prefixes sees what the windows see.
    let routed =
        ["--model", &models[1], "--replicas", "2", "--router", "prefix-aware", "--prefix-share", "0.6"];
    let out = scratch.path("routed");
    let run = pagedraft(&[&common[..], &more, &routed, &["--out", &out]].concat());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(pagedraft(&["trace", "check", &out]).code, Some(0));
    assert!(scratch.json("routed/summary.json")["prefix_cache"]["cached_tokens"].as_u64().unwrap() > 0);

    // A model whose windows are not known is said to be simulated without.
    scratch.write("other/config.json", br#"{"architectures": ["GemmaForCausalLM"]}"#);
    scratch.write("none/readme", b"");
    for (name, words) in [("other", "GemmaForCausalLM"), ("none", "has no config.json")] {
        let out = scratch.path(&format!("of-{name}"));
        let run = pagedraft(&[&common[..], &more, &["--model", &scratch.path(name), "--out", &out]].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(run.stderr.contains(words), "{}", run.stderr);
        assert!(run.stderr.contains("whose layers see every token"), "{}", run.stderr);
    }
    scratch.write("bad/config.json", br#"{"architectures": ["MistralForCausalLM"], "sliding_window": -4}"#);
    let run = pagedraft(
        &[&common[..], &more, &["--model", &scratch.path("bad"), "--out", &scratch.path("none-of-it")]]
            .concat(),
    );
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("sliding_window"), "{}", run.stderr);
}

#[test]
fn a_simulated_replay_prunes_prompts_and_takes_less_time_and_fewer_blocks() {
    let scratch = Scratch::new("sim-pruned-cli");
    let full = "full_attention";
    let model = model(&scratch, "full", json!([full, full, full, full]));
    scratch.write("half.json", br#"{"layers": [0], "keep_ratio": 0.5, "scorer": "random"}"#);
    let half = scratch.path("half.json");
    let replay = |name: &str, flags: &[&str]| {
        let out = scratch.path(name);
        let common = ["replay", "--workload", "random", "--num-requests", "20", "--input-len", "400"];
        let more = ["--output-len", "20", "--executor", "sim", "--trace-steps", "--out", &out];
        let run = pagedraft(&[&common[..], &more, flags].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let check = pagedraft(&["trace", "check", &out]);
        assert_eq!(check.code, Some(0), "{}", check.stderr);
        scratch.json(&format!("{name}/summary.json"))["mean_ttft_ms"].as_f64().unwrap()
    };
    let dense = replay("dense", &["--model", &model]);
    let pruned = replay("pruned", &["--model", &model, "--prune-spec", &half]);
    // Three of four layers compute half of each prompt.
    assert!(pruned < 0.8 * dense, "{pruned} ms to the first token, and {dense} if nothing is dropped");
    let preset = replay("preset", &["--model", &model, "--prune-spec", "keep07", "--trace-tables", "delta"]);
    assert!(preset < dense, "{preset}, {dense}");

    let refused = |flags: &[&str], words: &str| {
        let out = scratch.path("refused");
        let common =
            ["replay", "--workload", "random", "--num-requests", "2", "--executor", "sim", "--out", &out];
        let run = pagedraft(&[&common[..], flags].concat());
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains(words), "{}", run.stderr);
    };
    refused(&["--model", &model, "--prune-layers", "3"], "name layers from 0 to 2");
    refused(
        &["--model", &model, "--prune-layers", "1", "--prune-spec", &half],
        "name the layer in --prune-layers",
    );
    scratch.write("none/readme", b"");
    refused(
        &["--model", &scratch.path("none"), "--prune-spec", &half],
        "the layers of the model are not known",
    );
}
