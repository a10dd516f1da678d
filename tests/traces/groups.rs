//! Traces of engines whose KV has windows, several groups or a draft model: they are valid, sound and can be drawn. And
//! whose prefixes are shared: nobody's with another model, another dtype or another tenant.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pagedraft::model::Dtype;
use pagedraft::session::{
    DraftLength, DraftRef, EngineOptions, ModelRef, Request, Session, SpeculationOptions, TraceOptions,
};
use pagedraft_block_manager::{KvEventKind, KvJournal, Salt};
use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{Executor, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan};
use pagedraft_workloads::run::LineFormat;
use pagedraft_workloads::trace::{SchemaOf, TraceTables, check_dir, schema};
use serde_json::{Value, json};

use crate::program::{Scratch, pagedraft};

fn builtin(name: &str) -> ModelRef {
    ModelRef::Builtin(name.into())
}

/// A model of the project's reference, where it is there.
fn reference(name: &str) -> Option<ModelRef> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/reference/window")).join(name);
    if path.is_dir() {
        return Some(ModelRef::Directory(path));
    }
    eprintln!("skipped: {} is not there", path.display());
    None
}

/// Options by what they are called; few blocks, so that some requests are preempted.
fn kinds() -> Vec<(&'static str, EngineOptions)> {
    let of = |model, num_blocks| EngineOptions {
        num_blocks: Some(num_blocks),
        max_model_len: Some(256),
        ..EngineOptions::new(model)
    };
    let drafts = SpeculationOptions {
        draft: Some(DraftRef::Model(builtin("draft"))),
        length: DraftLength::Fixed(3),
        ..SpeculationOptions::default()
    };
    let mut kinds = vec![
        ("dense", of(builtin("target"), 24)),
        ("draft", EngineOptions { speculation: drafts, ..of(builtin("target"), 24) }),
    ];
    for name in ["mistral", "qwen3-alternating"] {
        kinds.extend(reference(name).map(|model| (name, of(model, 24))));
    }
    // Rows that end in the midst of blocks, also of such as one group hit and the other did not.
    let pieces = |model| EngineOptions { prefill_chunk: Some(9), ..of(model, 24) };
    kinds.extend(reference("qwen3-alternating").map(|model| ("pieces", pieces(model))));
    kinds
}

fn serve(session: &mut Session) {
    for i in 0..6 {
        let prompt = (0..40).chain([50 + i, 7, 8, 7, 8]).collect();
        let tenant = (i > 3).then(|| format!("tenant {}", i % 2));
        let request = Request {
            n: 1 + i % 2,
            ignore_eos: true,
            cache_salt: tenant,
            ..Request::new(format!("r{i}"), prompt, 60 + i)
        };
        session.submit(request).unwrap();
        session.step().unwrap();
    }
    while session.has_unfinished() {
        session.step().unwrap();
    }
}

fn lines(directory: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.join("trace_steps.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn traces_with_windows_and_several_groups_are_valid_sound_and_drawn() {
    let scratch = Scratch::new("trace-groups");
    let valid = jsonschema::validator_for(&schema(SchemaOf::Steps)).unwrap();
    let config_valid = jsonschema::validator_for(&schema(SchemaOf::Config)).unwrap();
    for (name, options) in kinds() {
        for tables in [TraceTables::Full, TraceTables::Delta] {
            let what = format!("{name}-{tables:?}");
            let dir = PathBuf::from(scratch.path(&what));
            let trace = Some(TraceOptions { dir: dir.clone(), tables, format: LineFormat::Jsonl });
            let mut session = Session::open(&EngineOptions { trace, ..options.clone() }).unwrap();
            serve(&mut session);
            session.close(&json!({"done": true})).unwrap();
            let report = check_dir(&dir).unwrap();
            assert_eq!((report.violation, report.blocks_held), (None, 0), "{what}");
            let config: Value =
                serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
            assert!(config_valid.is_valid(&config), "{what}");
            let lines = lines(&dir);
            for line in &lines {
                if let Err(error) = valid.validate(line) {
                    panic!("{what}: {error}\n{line}");
                }
            }
            let text = json!(lines).to_string();
            let windowed = name != "dense" && name != "draft";
            assert_eq!(text.contains("[-1,"), windowed, "{what}: blocks behind a window");
            assert_eq!(
                text.contains("bytes_total"),
                config["kv_groups"].as_array().unwrap().len() > 1,
                "{what}"
            );
            assert!(text.contains("\"kind\":\"stored\"") && text.contains("\"kv_salt\""), "{what}");
            let page = scratch.path(&format!("{what}.html"));
            let drawn = pagedraft(&["report", dir.to_str().unwrap(), "--out", &page]);
            assert_eq!(drawn.code, Some(0), "{what}: {}", drawn.stderr);
            let page = std::fs::read_to_string(&page).unwrap();
            assert!(!page.contains("are left out;"), "{what}");
            let shown = config["kv_groups"][0]["name"].as_str().unwrap();
            let named = format!("Blocks are those of the KV group &quot;{shown}&quot;, the first of several");
            let several = config["kv_groups"].as_array().unwrap().len() > 1;
            assert_eq!(page.contains(&named), several, "{what}");
            assert_eq!(page.contains("MiB, "), several, "{what}: the peak in bytes");
        }
    }
}

#[test]
fn what_several_groups_take_is_told_in_bytes_and_what_they_waste_at_the_start() {
    let scratch = Scratch::new("groups-told");
    // A group of 7 layers and one of 5: no page is cut evenly into blocks of both.
    let kinds = |i| if i % 12 < 7 { "sliding_attention" } else { "full_attention" };
    let mut config = json!({
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 12, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 256, "tie_word_embeddings": true, "torch_dtype": "float32",
        "use_sliding_window": true, "sliding_window": 24,
    });
    for (name, layers) in
        [("several", (0..12).map(kinds).collect::<Vec<_>>()), ("one", vec!["full_attention"; 12])]
    {
        config["layer_types"] = json!(layers);
        scratch.write(&format!("{name}/config.json"), config.to_string().as_bytes());
        let model = scratch.path(name);
        let engine = ["--model", &model, "--load-format", "dummy", "--num-blocks", "24", "--threads", "1"];
        let batch = ["bench", "latency", "--input-len", "20", "--output-len", "2", "--batch-size", "1"];
        let iters = ["--num-iters", "1", "--num-iters-warmup", "0"];
        let run = pagedraft(&[&batch[..], &iters, &engine].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let told = "24 KV blocks of 16 tokens, shared by 2 KV groups; padding wastes ";
        assert_eq!(run.stdout.contains(told), name == "several", "{}", run.stdout);
        for executor in ["real", "sim"] {
            let out = scratch.path(&format!("{name}-{executor}"));
            let replay = ["replay", "--workload", "random", "--num-requests", "4", "--input-len", "100"];
            let more = ["--output-len", "9", "--executor", executor, "--out", &out, "--max-model-len", "256"];
            let engine =
                if executor == "sim" { [&engine[..2], &engine[4..6]].concat() } else { engine.to_vec() };
            let run = pagedraft(&[&replay[..], &more, &engine].concat());
            assert_eq!(run.code, Some(0), "{}", run.stderr);
            let pool = run.stdout.lines().find(|line| line.starts_with("KV pool")).unwrap();
            // 24 blocks of 16 tokens, 12 layers of 256 bytes a token and layer: 1.125 MiB.
            let all = if name == "several" { " of 1." } else { " of 24 blocks at most" };
            assert!(pool.contains(all) && pool.contains(" MiB at most") == (name == "several"), "{pool}");
            let kv = &scratch.json(&format!("{name}-{executor}/summary.json"))["kv"];
            assert_eq!(kv["bytes_total"].is_u64(), name == "several", "{kv}");
        }
    }
}

#[test]
fn a_tenant_finds_its_own_prefixes_and_nobody_elses() {
    let mut session = Session::open(&EngineOptions {
        num_blocks: Some(64),
        max_model_len: Some(128),
        ..EngineOptions::new(builtin("target"))
    })
    .unwrap();
    let mut cached = |tenant: Option<&str>| {
        let mut request = Request::new("r", (0..64).collect(), 2);
        request.cache_salt = tenant.map(str::to_owned);
        let id = session.submit(request).unwrap()[0];
        while session.has_unfinished() {
            session.step().unwrap();
        }
        session.take_output(id).unwrap().num_cached_tokens
    };
    let tenants = [None, Some("a"), Some("b"), None, Some("a"), Some("b"), Some("c")];
    assert_eq!(tenants.map(&mut cached), [0, 0, 0, 48, 48, 48, 0]);
    let mut empty = Request::new("r", vec![1], 1);
    empty.cache_salt = Some(String::new());
    assert!(format!("{:#}", session.submit(empty).unwrap_err()).contains("cache_salt"));
}

/// The salt of an engine's sequences.
fn salt(model: ModelRef, dtype: Dtype) -> Salt {
    let options = EngineOptions {
        num_blocks: Some(8),
        max_model_len: Some(64),
        dtype: Some(dtype),
        enforce_eager: true,
        ..EngineOptions::new(model)
    };
    let session = Session::open(&options).unwrap();
    Salt::from_hex(session.config()["kv_salt"].as_str().unwrap()).unwrap()
}

/// Runs a request of 64 tokens under a salt; the tokens it found in the cache, and the hashes it stored there.
fn run(scheduler: &mut Scheduler, salt: Salt) -> (u32, BTreeSet<u64>) {
    let mut spec = RequestSpec::new((0..64).collect(), 2);
    spec.salt = salt;
    let key = scheduler.submit(spec).unwrap();
    let mut fake = FakeExecutor::new();
    fake.insert(key, 64, Script::default());
    let (mut plan, mut outcome, mut applied) = (StepPlan::default(), StepOutcome::default(), Vec::new());
    let (mut journal, mut hashes, mut cached) = (KvJournal::default(), BTreeSet::new(), 0);
    while scheduler.has_unfinished() {
        scheduler.step(&mut plan).unwrap();
        fake.execute(&plan, scheduler, &mut outcome).unwrap();
        cached = scheduler.request(key).unwrap().num_cached_tokens;
        scheduler.apply(&outcome, &mut applied).unwrap();
        scheduler.drain_journal(&mut journal);
        let stored = journal.events.iter().filter(|event| event.kind == KvEventKind::Stored);
        hashes.extend(stored.map(|event| event.hash.as_u64()));
    }
    (cached, hashes)
}

#[test]
fn two_models_and_two_dtypes_never_share_a_block() {
    let salts = [
        salt(builtin("target"), Dtype::F32),
        salt(builtin("draft"), Dtype::F32),
        salt(builtin("target"), Dtype::Bf16),
    ];
    assert_eq!(salts[0], salt(builtin("target"), Dtype::F32), "the same model is the same");
    let config = SchedulerConfig { enable_prefix_caching: true, ..SchedulerConfig::default() };
    let mut scheduler = Scheduler::new(config).unwrap();
    scheduler.keep_journal(true);
    let runs = salts.map(|salt| run(&mut scheduler, salt));
    assert_eq!(runs.each_ref().map(|(cached, _)| *cached), [0; 3]);
    assert!(runs.iter().all(|(_, hashes)| hashes.len() == 4));
    let all: BTreeSet<u64> = runs.iter().flat_map(|(_, hashes)| hashes).copied().collect();
    assert_eq!(all.len(), 12, "no name of one is a name of another");
    assert_eq!(salts.map(|salt| run(&mut scheduler, salt).0), [48; 3], "each finds its own again");
}

#[test]
fn a_sample_whose_parent_is_far_ahead_of_the_window_begins_on_its_own() {
    let Some(model) = reference("mistral") else { return };
    let options = EngineOptions { num_blocks: Some(64), ..EngineOptions::new(model) };
    let tokens = |max_num_seqs| {
        let mut session = Session::open(&EngineOptions { max_num_seqs, ..options.clone() }).unwrap();
        let short = Request { ignore_eos: true, ..Request::new("short", (10..60).collect(), 60) };
        session.submit(short).unwrap();
        let long = Request { ignore_eos: true, n: 3, ..Request::new("long", (10..80).collect(), 150) };
        let ids = session.submit(long).unwrap();
        while session.has_unfinished() {
            session.step().unwrap();
        }
        ids.into_iter().map(|id| session.take_output(id).unwrap().token_ids).collect::<Vec<_>>()
    };
    assert_eq!(tokens(2), tokens(8));
}
