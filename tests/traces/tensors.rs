//! Traces of tensors: how many events there are, what they cost nobody who did not ask, and where two runs part.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagedraft::attention::{MetadataBuilder, MetadataRow};
use pagedraft::model::{Device, Op, StepInputs};
use pagedraft::session::{
    Decoder, Diffusion, DiffusionOptions, DraftLength, DraftRef, EngineOptions, LoadFormat, ModelRef,
    PruneOptions, Request, Session, SkipLayers, SpeculationOptions, TraceOptions,
};
use pagedraft::spec_decode::SkipPolicy;
use pagedraft::spec_decode::tensors::{TensorLevel, TensorTracing};
use pagedraft::workloads::run::LineFormat;
use pagedraft::workloads::trace::{
    DiffOptions, Parting, SchemaOf, TensorDiff, TensorLines, TensorRecord, TraceTables, check_dir,
    diff_tensors, schema, summarise_tensors,
};
use serde_json::{Value, json};

use crate::models::{deepseek, directory, place, six_layers};
use crate::requests::spec;

/// A LLaDA of many thin layers, its weights drawn from a seed.
fn llada(name: &str, layers: usize) -> ModelRef {
    let config = json!({
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 64, "n_heads": 2, "n_layers": layers,
        "mlp_hidden_size": 96, "vocab_size": 300, "embedding_size": 304, "max_sequence_length": 512,
        "mask_token_id": 299, "eos_token_id": 298, "rope_theta": 10000.0, "torch_dtype": "float32",
    });
    place(name, &config)
}

fn all(level: TensorLevel) -> TensorTracing {
    TensorTracing { level, layers: 0..=u16::MAX, steps: 0..=u64::MAX, most: 1_000_000 }
}

fn options(model: &ModelRef, skip_layers: SkipLayers, tensors: Option<TensorTracing>) -> EngineOptions {
    EngineOptions {
        load_format: LoadFormat::Dummy,
        seed: 3,
        num_blocks: Some(128),
        max_num_batched_tokens: 512,
        diffusion: DiffusionOptions { skip_layers, ..DiffusionOptions::default() },
        trace_tensors: tensors,
        ..EngineOptions::new(model.clone())
    }
}

/// One block of 32 in 16 passes. Of its tokens those that moved least skip the later layers, but masks do not.
fn skipping() -> Diffusion {
    Diffusion {
        decoder: Decoder::DualCacheSkip,
        steps: Some(16),
        skip_policy: SkipPolicy::LeastMoved { share: 0.5 },
        return_steps: true,
        ..Diffusion::default()
    }
}

fn canvas(diffusion: Diffusion) -> Request {
    Request { diffusion: Some(diffusion), ..Request::new("0", vec![5, 7, 11], 32) }
}

/// Runs requests at once and traces them, in a directory of this name; `between` is called before each step. Their tokens too.
fn traced(
    name: &str,
    options: &EngineOptions,
    requests: &[Request],
    mut between: impl FnMut(&mut Session, u64),
) -> (PathBuf, Vec<Vec<u32>>) {
    let dir = directory(&format!("traced-{name}"));
    let trace = TraceOptions { dir: dir.clone(), tables: TraceTables::Full, format: LineFormat::Jsonl };
    let mut session = Session::open(&EngineOptions { trace: Some(trace), ..options.clone() }).unwrap();
    let ids: Vec<_> = requests.iter().flat_map(|request| session.submit(request.clone()).unwrap()).collect();
    let mut step = 0;
    while session.has_unfinished() {
        between(&mut session, step);
        session.step().unwrap();
        step += 1;
    }
    let observed = session.run_counts().0.observed;
    assert_eq!(observed > 0, options.trace_tensors.is_some(), "{name}: {observed} operations were looked at");
    session.close(&json!({})).unwrap();
    (dir, ids.into_iter().map(|id| session.take_output(id).unwrap().token_ids).collect())
}

fn events(dir: &Path) -> Vec<TensorRecord> {
    let mut lines = TensorLines::open(dir).unwrap().unwrap();
    std::iter::from_fn(|| lines.next_event().unwrap()).collect()
}

fn diff(a: &Path, b: &Path) -> TensorDiff {
    diff_tensors(a, b, DiffOptions::default()).unwrap()
}

#[test]
fn the_counts_of_events_follow_from_the_algorithm_and_their_numbers_are_real() {
    let model = llada("tensors-32-layers", 32);
    let options = options(&model, SkipLayers::Behind(16), Some(all(TensorLevel::Stats)));
    let (dir, tokens) = traced("counts", &options, &[canvas(skipping())], |_, _| {});
    let (plain, untraced) = {
        let options = EngineOptions { trace_tensors: None, ..options.clone() };
        traced("counts-untraced", &options, &[canvas(skipping())], |_, _| {})
    };
    assert_eq!(tokens, untraced, "traced steps run eagerly, with the same bits");
    assert!(TensorLines::open(&plain).unwrap().is_none());

    let summary = summarise_tensors(&dir).unwrap().unwrap();
    let count = |event: &str| summary.events.get(event).copied().unwrap_or(0);
    for event in ["ATTN_ENTRY", "ATTN_AFTER_RESHAPE", "ROPE_FWD_ENTRY", "ATTN_OUTPUT", "LAYER_OUTPUT"] {
        assert_eq!(count(event), 512, "{event}");
    }
    for event in ["KV_CACHE_BEFORE", "KV_CACHE_UPDATE", "KV_CACHE_AFTER_REPLACE"] {
        assert_eq!(count(event), 480, "{event}");
    }
    for event in ["SKIP_JUDGE_START", "SKIP_JUDGE_RESULT", "MODEL_PREV_HIDDEN_INFO", "SKIP_POSITION_UPDATE"] {
        assert_eq!(count(event), 15, "{event}");
    }
    let sliced = ["ATTN_POSITION_IDS", "ROPE_TOKENSKIP_PARAMS", "ROPE_INDEX_SELECT", "ROPE_TOKENSKIP_RESULT"];
    for event in sliced.into_iter().chain(["ROPE_BEFORE_TOKENSKIP", "ROPE_AFTER_TOKENSKIP"]) {
        assert_eq!(count(event), 240, "{event}");
    }
    assert_eq!((count("ROPE_BASELINE_RESULT"), count("ROPE_REPLACE_AFTER")), (512 - 240, 240));
    assert_eq!((count("ROPE_BASELINE_BEFORE"), count("MODEL_FWD_ENTRY"), count("LOGITS")), (32, 16, 16));

    let valid = jsonschema::validator_for(&schema(SchemaOf::Tensors)).unwrap();
    let text = std::fs::read_to_string(dir.join("trace_tensors.jsonl")).unwrap();
    let steps: Vec<Value> = std::fs::read_to_string(dir.join("trace_steps.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let judged = |step: u64| {
        let of = |line: &&Value| line["event"] == "skip_judge" && line["step"] == step;
        steps.iter().find(of).map(|line| line["active"].as_u64().unwrap() as usize)
    };
    let mut skipped = 0;
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        assert!(valid.is_valid(&value), "{line}");
        let event = value["event"].as_str().unwrap();
        assert_eq!(
            (&value["block"], &value["request_id"], &value["pass"]),
            (&json!(0), &json!("0"), &value["step"])
        );
        if event == "ATTN_ENTRY" {
            let (step, layer) = (value["step"].as_u64().unwrap(), value["layer"].as_u64().unwrap());
            let rows = match judged(step) {
                None => 35,
                Some(active) if layer >= 16 => active,
                Some(_) => 32,
            };
            skipped += usize::from(step > 0) * (32 - rows.min(32));
            assert_eq!(value["shapes"]["q_in"], json!([1, rows, 64]), "step {step}, layer {layer}");
            let q = &value["values"]["q_in"];
            let number = |name: &str| q[name].as_f64().unwrap();
            assert!(q["dtype"] == "f32" && number("min") < number("mean") && number("mean") < number("max"));
            assert!(number("std") > 0.0);
        }
    }
    assert!(skipped > 0, "no token skipped a layer");
    let valid = jsonschema::validator_for(&schema(SchemaOf::Steps)).unwrap();
    let judged = steps.iter().filter(|line| line["event"] == "skip_judge");
    assert_eq!(judged.inspect(|line| assert!(valid.is_valid(line), "{line}")).count(), 15);
    check_dir(&dir).unwrap();

    // The program that token skip comes from did not compare the second pass with the first one.
    let original = Diffusion { compares_first: false, ..skipping() };
    let (dir, _) = traced("counts-original", &options, &[canvas(original)], |_, _| {});
    let summary = summarise_tensors(&dir).unwrap().unwrap();
    assert_eq!((summary.events["SKIP_JUDGE_RESULT"], summary.events["ROPE_TOKENSKIP_RESULT"]), (14, 224));
    assert_eq!((summary.events["ATTN_ENTRY"], summary.events["KV_CACHE_UPDATE"]), (512, 480));
}

#[test]
fn only_what_is_asked_for_is_traced_and_what_is_too_much_is_counted() {
    let model = llada("tensors-few", 4);
    let tracing = TensorTracing { layers: 1..=2, steps: 3..=4, ..all(TensorLevel::Summary) };
    let few = options(&model, SkipLayers::Never, Some(tracing.clone()));
    let (dir, _) = traced("few", &few, &[canvas(Diffusion::default())], |_, _| {});
    let found = events(&dir);
    assert!(found.iter().all(|event| (3..=4).contains(&event.step)));
    let mut layers: Vec<u16> = found.iter().filter_map(|event| event.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    assert_eq!(layers, [1, 2]);
    assert!(found.iter().all(|event| event.tensors().next().is_none() && !event.event.is_empty()));
    let all_of_them = found.len() as u64;

    let bounded = options(&model, SkipLayers::Never, Some(TensorTracing { most: 10, ..tracing }));
    let (dir, _) = traced("bounded", &bounded, &[canvas(Diffusion::default())], |_, _| {});
    let summary = summarise_tensors(&dir).unwrap().unwrap();
    assert_eq!((summary.entries, summary.left_out), (10, all_of_them - 10));
    let told: Value = serde_json::from_slice(&std::fs::read(dir.join("summary.json")).unwrap()).unwrap();
    assert_eq!(told["trace_tensors"], json!({"entries": 10, "left_out": all_of_them - 10}));
}

/// Overwrites what a layer holds of a position of the only request.
fn corrupt(session: &mut Session, layer: u16, position: u32) {
    let tables = &session.last_step().1.inputs.metadata().block_tables;
    let table = tables.get(0).unwrap().to_vec();
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.begin();
    builder.push(MetadataRow::causal(position, 1, &table)).unwrap();
    let inputs = StepInputs::dense(vec![0], vec![position], builder.take(Default::default()));
    let runner = session.runner();
    let writes = |op: &Op<_>| matches!(op, Op::RopeAndCache { kv, .. } if kv.layer == layer);
    let op = runner.operations(1).into_iter().find(writes).unwrap();
    runner.device_mut().bind(&inputs, None).unwrap();
    runner.device_mut().run(&[op]).unwrap();
}

#[test]
fn a_fault_that_was_planted_is_what_the_diff_names() {
    let denoised = (llada("tensors-fault", 6), canvas(Diffusion { steps: Some(8), ..Diffusion::default() }));
    let causal = (six_layers("tensors-fault-causal"), Request::new("0", (1..40).collect(), 12));
    for (name, (model, request)) in [("canvas", denoised), ("causal", causal)] {
        let full = options(&model, SkipLayers::Never, Some(all(TensorLevel::Full)));
        let (sound, _) = traced(&format!("{name}-sound"), &full, std::slice::from_ref(&request), |_, _| {});
        let again = diff(&sound, &sound);
        assert!(again.first_difference.is_none() && again.compared.rows > 1000, "{again:?}");
        assert_eq!((again.compared.only_in_a, again.compared.only_in_b), (0, 0));
        // The prompt is read from the cache by every later pass; the block's last position is replaced by it.
        let block = [(2, 1, 34), (5, 0, 34)].into_iter().filter(|_| name == "canvas");
        for (step, layer, position) in [(3, 4, 1), (1, 0, 2)].into_iter().chain(block) {
            let fault = |session: &mut Session, at: u64| {
                if at == step {
                    corrupt(session, layer, position);
                }
            };
            let (broken, _) = traced(&format!("{name}-broken"), &full, std::slice::from_ref(&request), fault);
            let found = diff(&sound, &broken);
            let first = found.first_difference.unwrap();
            assert_eq!((first.step, first.other_step, first.layer), (step, step, Some(layer)), "{name}");
            let (event, tensor) = match position {
                34 => ("KV_CACHE_BEFORE", "past_k"),
                _ => ("ATTN_OUTPUT", "attended"),
            };
            assert_eq!((&first.event[..], &first.tensor[..]), (event, tensor), "{name}");
            assert!(first.kind == Parting::Values && first.max_abs.unwrap() > 0.0, "{name}: {first:?}");
            // Layers before the fault are the same, the layer is not, and each token is listed.
            assert!(found.layers.iter().all(|of| of.events.is_empty() || of.layer >= layer), "{name}");
            assert!(found.layers[usize::from(layer)].max_abs.unwrap() > 0.0, "{name}");
            assert_eq!(found.tokens.len(), if name == "canvas" { 32 } else { 1 }, "{name}");
            let predicted = found.tokens.iter().filter(|token| token.predictions[1].is_some()).count();
            assert!(predicted > 0 && found.tokens.iter().all(|t| t.state == [None, None]), "{name}");
            if position == 34 {
                let kv = found.kv.iter().find(|kv| kv.layer == layer).unwrap();
                assert_eq!((&kv.k, &kv.v), (&vec![[34, 35]], &vec![[34, 35]]), "{name}");
            }
        }
    }
}

#[test]
fn statistics_name_the_same_layer_and_skipped_tokens_are_told_from_active_ones() {
    let model = llada("tensors-skip", 6);
    let dual = Diffusion { steps: Some(8), ..Diffusion::default() };
    let skip = Diffusion { steps: Some(8), ..skipping() };
    let [full, stats] = [TensorLevel::Full, TensorLevel::Stats].map(|level| {
        let (a, _) = traced(
            &format!("dual-{level}"),
            &options(&model, SkipLayers::Never, Some(all(level))),
            &[canvas(dual.clone())],
            |_, _| {},
        );
        let (b, _) = traced(
            &format!("skip-{level}"),
            &options(&model, SkipLayers::Behind(2), Some(all(level))),
            &[canvas(skip.clone())],
            |_, _| {},
        );
        diff(&a, &b)
    });
    let first = full.first_difference.unwrap();
    // In the first pass that is judged after a token was filled, fewer tokens run through layer 2.
    assert_eq!((first.kind, first.layer, first.event.as_str()), (Parting::Shape, Some(2), "ATTN_ENTRY"));
    let from_stats = stats.first_difference.unwrap();
    assert_eq!((from_stats.step, from_stats.layer), (first.step, first.layer));
    assert!(
        full.shapes.iter().any(|shape| shape.tensor == "q_in" && shape.a == [1, 32, 64] && shape.b[1] < 32)
    );
    let stable = full.tokens.iter().filter(|token| token.state == [None, Some("stable")]).count();
    assert_eq!(full.tokens.len(), 32);
    assert!(stable > 0 && stable < 32, "{stable} of 32 are stable");
    assert!(stats.compared.statistics > 0 && stats.compared.rows == 0);
}

#[test]
fn rows_are_compared_by_position_whether_a_run_drafts_chunks_or_prunes() {
    let request = [Request::new("0", (20..80).collect(), 24)];
    let models = [
        ("dense", six_layers("tensors-causal"), PruneOptions::default()),
        ("sparse", deepseek("tensors-sparse"), PruneOptions::default()),
        (
            "pruned",
            six_layers("tensors-pruned"),
            PruneOptions {
                all: Some(spec(r#"{"layers": [1, 3], "keep_ratio": 0.6, "scorer": "random"}"#)),
                ..PruneOptions::default()
            },
        ),
    ];
    for (name, model, prune) in models {
        let plain =
            EngineOptions { prune, ..options(&model, SkipLayers::Never, Some(all(TensorLevel::Full))) };
        let (a, tokens) = traced(&format!("{name}-plain"), &plain, &request, |_, _| {});
        let drafted = [Request { recorded: vec![Arc::from(&tokens[0][..])], ..request[0].clone() }];
        let drafting = EngineOptions {
            prefill_chunk: Some(17),
            speculation: SpeculationOptions {
                draft: Some(DraftRef::Synthetic { rate: 0.6 }),
                length: DraftLength::Fixed(3),
                ..SpeculationOptions::default()
            },
            ..plain.clone()
        };
        let (b, same) = traced(&format!("{name}-drafting"), &drafting, &drafted, |_, _| {});
        assert_eq!(tokens, same, "{name}");
        let found = diff(&a, &b);
        assert_eq!(found.first_difference, None, "{name}");
        assert!(found.compared.rows > 1000, "{name}: {:?}", found.compared);
        assert_eq!((found.compared.only_in_a, found.compared.rows_only_in_a), (0, 0), "{name}");
        let verified = events(&b).iter().filter(|event| event.kept.is_some()).count();
        assert!(verified > 0, "{name}: no draft was rejected");
        // Another model differs from the first tensor on.
        let other = EngineOptions { seed: 4, ..plain };
        let (c, _) = traced(&format!("{name}-other"), &other, &request, |_, _| {});
        let first = diff(&a, &c).first_difference.unwrap();
        assert_eq!((first.step, &first.event[..], first.row), (0, "MODEL_FWD_ENTRY", Some(0)), "{name}");
    }
}
