//! Canvases through the whole engine: what the reference fills in every pass, and the same alone as in any batch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagedraft::session::{
    Decoder, Diffusion, DiffusionOutput, EngineOptions, ModelRef, Request, RequestOutput, Session,
    SkipLayers, TraceOptions,
};
use pagedraft::spec_decode::sampling::SamplingParams;
use pagedraft::spec_decode::{Guard, Remasking, SkipPolicy, SkipStates};
use pagedraft::workloads::run::LineFormat;
use pagedraft::workloads::trace::{TraceTables, check_dir};
use serde_json::{Value, json};

use crate::canvas::{diffusion, drawn, dummy, options, request};
use crate::models::directory;
use crate::requests::Random;

/// The directory of the fixtures, if it is there.
fn reference() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/llada/small");
    if !dir.exists() {
        println!("skipped: {} is not there", dir.display());
        return None;
    }
    Some(dir)
}

/// Runs the requests at once; their outputs, and for each pass of each request the logits of the masks that could be filled.
type Logits = BTreeMap<(u32, u32), Vec<(u32, Vec<f32>)>>;

fn run(options: &EngineOptions, requests: &[Request]) -> (Vec<RequestOutput>, Logits) {
    let mut session = Session::open(options).unwrap();
    session.keep_logits();
    let ids: Vec<_> = requests.iter().flat_map(|request| session.submit(request.clone()).unwrap()).collect();
    let mut logits = Logits::new();
    while session.has_unfinished() {
        session.step().unwrap();
        for pass in &session.last_step().1.passes {
            logits.insert((pass.block, pass.step), pass.logits.clone());
        }
    }
    session.close(&Value::Null).unwrap();
    (ids.into_iter().map(|id| session.take_output(id).unwrap()).collect(), logits)
}

struct Tensors(Vec<u8>);

impl Tensors {
    fn open(dir: &Path) -> Self {
        Self(std::fs::read(dir.join("expected.safetensors")).unwrap())
    }

    fn f32s(&self, name: &str) -> Option<Vec<f32>> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).ok()?;
        Some(tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let data = file.tensor(name).unwrap();
        data.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32).collect()
    }
}

fn passes(output: &DiffusionOutput, fields: &[&str]) -> Vec<Value> {
    let mut passes: Vec<Value> =
        output.steps.iter().flatten().map(|step| serde_json::to_value(step).unwrap()).collect();
    for pass in &mut passes {
        pass.as_object_mut().unwrap().retain(|key, _| fields.contains(&key.as_str()));
    }
    passes
}

fn expected_passes(run: &Value, fields: &[&str]) -> Vec<Value> {
    let mut passes = run["steps"].as_array().unwrap().clone();
    for pass in &mut passes {
        pass.as_object_mut().unwrap().retain(|key, _| fields.contains(&key.as_str()));
    }
    passes
}

#[test]
fn canvases_are_filled_pass_by_pass_as_in_fast_dllm() {
    let Some(dir) = reference() else { return };
    let tensors = Tensors::open(&dir);
    let expected: Value = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let options = options(ModelRef::Directory(dir), SkipLayers::Never);
    let mut compared = 0;
    for (name, run_of) in expected["runs"].as_object().unwrap() {
        let mut parts = name.splitn(3, '.');
        let (prompt, method, _) = (parts.next().unwrap(), parts.next().unwrap(), parts.next());
        let decoder = match method {
            "baseline" => Decoder::Baseline,
            "prefix" => Decoder::PrefixCache,
            _ => Decoder::DualCache,
        };
        let prompt = tensors.ids(&format!("{prompt}.input_ids"));
        let steps = run_of["args"]["steps"].as_u64().unwrap() as u32;
        let threshold = run_of["args"]["threshold"].as_f64();
        let original = Diffusion { extra_pass: true, ..diffusion(decoder, 16, steps, threshold) };
        let (outputs, logits) = run(&options, &[request(name, &prompt, 64, original)]);
        let found = outputs[0].diffusion.as_ref().unwrap();
        assert_eq!(json!(outputs[0].token_ids), run_of["tokens"], "{name}");
        assert_eq!(json!(found.nfe), run_of["nfe"], "{name}");
        assert_eq!(found.masks_left, 0, "{name}");
        let fields = ["block", "rows", "offset", "masked_before", "pos", "tok"];
        assert_eq!(passes(found, &fields), expected_passes(run_of, &fields), "{name}");
        for (step, tensor) in [(0, "p0.step0.logits".to_owned()), (1, format!("{name}.step1.logits"))] {
            let Some(wanted) = tensors.f32s(&tensor).filter(|_| name.starts_with("p0")) else { continue };
            let offset = found.steps.as_ref().unwrap()[step as usize].offset;
            let scale = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (position, row) in &logits[&(0, step)] {
                let at = (position - offset) as usize * row.len();
                let off = row.iter().zip(&wanted[at..]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(off / scale < 1e-4, "{name}, pass {step}, position {position}: off by {off}");
                compared += 1;
            }
        }
        // A block that its first pass fills needs no other one.
        let ours = Diffusion { extra_pass: false, ..diffusion(decoder, 16, steps, threshold) };
        let (ours, _) = run(&options, &[request(name, &prompt, 64, ours)]);
        assert_eq!(json!(ours[0].token_ids), run_of["tokens"], "{name}");
        let full: u64 =
            run_of["steps"].as_array().unwrap().iter().filter(|s| s["pos"] == json!([])).count() as u64;
        let nfe = u64::from(ours[0].diffusion.as_ref().unwrap().nfe);
        assert_eq!(nfe, run_of["nfe"].as_u64().unwrap() - full, "{name}");
    }
    println!("{compared} rows of logits compared");
    assert!(compared > 300);
}

#[test]
fn tokens_skip_layers_as_in_the_reference_with_every_guard_and_both_states() {
    let Some(dir) = reference() else { return };
    let tensors = Tensors::open(&dir);
    let expected: Value =
        serde_json::from_slice(&std::fs::read(dir.join("expected_skip.json")).unwrap()).unwrap();
    for (name, run_of) in expected["runs"].as_object().unwrap() {
        let args = &run_of["args"];
        let number = |field: &str| args[field].as_f64().unwrap();
        let prompt = tensors.ids(&format!("{}.input_ids", &name[..2]));
        let steps = number("steps") as u32;
        let skipping = Diffusion {
            skip_policy: SkipPolicy::Cosine {
                threshold: number("skip_threshold"),
                outlier: number("outlier"),
            },
            skip_states: if args["conv"] == "in" { SkipStates::In } else { SkipStates::Out },
            skip_guard: match args["mode"].as_str().unwrap() {
                "guard" => Guard::Guard,
                "reuse" => Guard::Reuse,
                _ => Guard::None,
            },
            extra_pass: true,
            ..diffusion(Decoder::DualCacheSkip, 16, steps, args["threshold"].as_f64())
        };
        let options = options(ModelRef::Directory(dir.clone()), SkipLayers::Behind(number("K") as u16));
        let (outputs, _) = run(&options, &[request(name, &prompt, 64, skipping)]);
        let found = outputs[0].diffusion.as_ref().unwrap();
        let fields = ["block", "step", "stable", "active", "masked_before", "masked_stable", "pos", "tok"];
        assert_eq!(passes(found, &fields), expected_passes(run_of, &fields), "{name}");
        assert_eq!(json!(outputs[0].token_ids), run_of["tokens"], "{name}");
        assert_eq!(json!(found.nfe), run_of["nfe"], "{name}");
        assert_eq!(json!(found.token_layers), run_of["token_layers"], "{name}");
        assert_eq!(json!(found.masks_left), run_of["residual_masks"], "{name}");
    }
}

/// Requests of all decoders, lengths and ways to choose.
fn mixed(seed: u64, count: usize, skips: bool) -> Vec<Request> {
    let mut random = Random(seed);
    let one = |i: usize| {
        let block = [1, 4, 8, 16][random.below(4) as usize];
        let blocks = 1 + random.below(3) as u32;
        let len = block * blocks;
        let decoder = match random.below(if skips { 5 } else { 3 }) {
            0 => Decoder::Baseline,
            1 => Decoder::PrefixCache,
            2 => Decoder::DualCache,
            _ => Decoder::DualCacheSkip,
        };
        let threshold = [None, Some(0.004), Some(0.5)][random.below(3) as usize];
        let steps = blocks * (1 + random.below(u64::from(block)) as u32);
        let policy = match random.below(3) {
            2 => SkipPolicy::Settled { share: random.below(101) as f64 / 100.0 },
            0 => SkipPolicy::LeastMoved { share: random.below(101) as f64 / 100.0 },
            _ => SkipPolicy::Cosine { threshold: 0.9 + random.below(120) as f64 / 1000.0, outlier: 0.5 },
        };
        let guard = if random.below(2) == 0 { Guard::Guard } else { Guard::Reuse };
        let states = if random.below(2) == 0 { SkipStates::Out } else { SkipStates::In };
        let remasking = if random.below(4) == 0 { Remasking::Random } else { Remasking::LowConfidence };
        let prompt: Vec<u32> = (0..1 + random.below(60)).map(|_| random.below(298) as u32).collect();
        let how = Diffusion {
            skip_policy: policy,
            skip_guard: guard,
            skip_states: states,
            remasking,
            ..diffusion(decoder, block, steps, threshold)
        };
        let temperature = if random.below(3) == 0 { 0.7 } else { 0.0 };
        let sampling = SamplingParams { temperature, seed: random.next(), ..SamplingParams::default() };
        Request { sampling, ..request(&i.to_string(), &prompt, len, how) }
    };
    (0..count).map(one).collect()
}

/// Runs the requests, `apart` steps between two arrivals; outputs without what may differ, and the numbers of preemptions and of segments
/// that were replayed from graphs.
fn outputs(options: &EngineOptions, requests: &[Request], apart: usize) -> (Vec<Value>, u32, u64) {
    let mut session = Session::open(options).unwrap();
    let mut ids = Vec::new();
    for request in requests {
        ids.extend(session.submit(request.clone()).unwrap());
        (0..apart).for_each(|_| drop(session.step().unwrap()));
    }
    let mut steps = 0u32;
    while session.has_unfinished() {
        steps += 1;
        // Whoever is in a step that is interrupted loses its KV, and begins its block again.
        let interrupt = options.interrupt.as_ref().filter(|_| steps < 60 && steps.is_multiple_of(5));
        interrupt.iter().for_each(|flag| flag.store(true, Ordering::Relaxed));
        assert_eq!(session.step().is_err(), interrupt.is_some());
        interrupt.iter().for_each(|flag| flag.store(false, Ordering::Relaxed));
    }
    session.close(&Value::Null).unwrap();
    let replays = session.run_counts().0.replays;
    let mut preempted = 0;
    let outputs = ids.into_iter().map(|id| {
        let output = session.take_output(id).unwrap();
        preempted += output.num_preemptions;
        let mut value = serde_json::to_value(output).unwrap();
        value.as_object_mut().unwrap().remove("num_preemptions");
        value
    });
    (outputs.collect(), preempted, replays)
}

#[test]
fn a_canvas_alone_is_the_same_in_any_batch_under_preemption_and_from_graphs() {
    for (name, kv_heads, tied) in [("llada-mha", 4, false), ("llada-gqa", 2, true)] {
        let model = drawn(name, 4, kv_heads, tied);
        for (seed, skip) in [(1, SkipLayers::BehindHalf), (2, SkipLayers::Behind(3)), (3, SkipLayers::Never)]
        {
            println!("{name}, seed {seed}");
            let base = dummy(&model, skip);
            let requests = mixed(seed, 24, skip != SkipLayers::Never);
            let runs: Vec<_> =
                requests.iter().map(|one| outputs(&base, std::slice::from_ref(one), 0)).collect();
            assert!(
                runs.iter().any(|run| run.2 > 0),
                "{name}, seed {seed}: nothing was replayed from a graph"
            );
            let alone: Vec<Value> = runs.into_iter().flat_map(|run| run.0).collect();
            let tight = EngineOptions { num_blocks: Some(12), ..base.clone() };
            let interrupted = EngineOptions { interrupt: Some(Arc::default()), ..base.clone() };
            let small = EngineOptions { max_num_batched_tokens: 128, ..base.clone() };
            let eager = EngineOptions { enforce_eager: true, ..base.clone() };
            let all = [
                ("all at once", &base, 0),
                ("one by one", &base, 2),
                ("tight", &tight, 0),
                ("interrupted", &interrupted, 0),
                ("small steps", &small, 1),
                ("eager", &eager, 0),
            ];
            for (schedule, options, apart) in all {
                let (found, preempted, replays) = outputs(options, &requests, apart);
                assert!(replays == 0 || schedule != "eager", "{name}, seed {seed}: {replays} replays");
                for (a, b) in alone.iter().zip(&found) {
                    assert_eq!(a, b, "{name}, seed {seed}, {schedule}");
                }
                assert!(
                    preempted > 0 || schedule != "interrupted",
                    "{name}, seed {seed}: nobody was preempted"
                );
            }
            for output in &alone {
                assert_eq!(output["masks_left"], 0, "{name}, seed {seed}: {output}");
            }
        }
    }
}

#[test]
fn layers_that_none_or_all_tokens_run_through_change_no_token() {
    let model = drawn("llada-depths", 4, 4, false);
    let requests = mixed(9, 12, false);
    let dual: Vec<Request> = requests
        .into_iter()
        .map(|mut request| {
            request.diffusion.as_mut().unwrap().decoder = Decoder::DualCache;
            request
        })
        .collect();
    let skipping = |policy: SkipPolicy| -> Vec<Request> {
        let one = |request: &Request| {
            let mut request = request.clone();
            let how = request.diffusion.as_mut().unwrap();
            (how.decoder, how.skip_policy) = (Decoder::DualCacheSkip, policy);
            request
        };
        dual.iter().map(one).collect()
    };
    let tokens = |outputs: Vec<Value>| {
        outputs.into_iter().map(|output| output["token_ids"].clone()).collect::<Vec<_>>()
    };
    let wanted = tokens(outputs(&dummy(&model, SkipLayers::Never), &dual, 0).0);
    for layers in 0..=4 {
        // A threshold of 1 is never exceeded, and a share of 0 is no token: every token runs through all layers.
        for policy in
            [SkipPolicy::Cosine { threshold: 1.0, outlier: 0.0 }, SkipPolicy::Settled { share: 0.0 }]
        {
            let requests = skipping(policy);
            let found = tokens(outputs(&dummy(&model, SkipLayers::Behind(layers)), &requests, 0).0);
            assert_eq!(found, wanted, "{layers} layers, {policy:?}");
        }
    }
    let too_many = Session::open(&dummy(&model, SkipLayers::Behind(5))).err().unwrap();
    assert!(format!("{too_many:#}").contains("the model has 4 layers"), "{too_many:#}");
}

#[test]
fn settled_tokens_skip_behind_the_first_layer_and_no_mask_ever_does() {
    let model = drawn("llada-settled", 4, 2, false);
    let prompt: Vec<u32> = (0..20).collect();
    for (share, guard) in [(0.5, Guard::Guard), (1.0, Guard::None)] {
        let how = Diffusion {
            skip_policy: SkipPolicy::Settled { share },
            skip_guard: guard,
            return_steps: true,
            ..diffusion(Decoder::DualCacheSkip, 16, 64, None)
        };
        let options = dummy(&model, SkipLayers::Behind(1));
        let output = outputs(&options, &[request("0", &prompt, 64, how)], 0).0.remove(0);
        assert_eq!((&output["masks_left"], &output["passes_all_stable"]), (&json!(0), &json!(0)));
        for pass in output["steps"].as_array().unwrap() {
            let number = |name: &str| pass[name].as_u64().unwrap();
            // One token a pass: as many are filled as passes were made, and the last of them was filled in the pass before.
            let (step, stable) = (number("step"), number("stable"));
            let filled = step.saturating_sub(1);
            let most = (share * step as f64).floor() as u64;
            assert_eq!(stable, most.min(filled), "{pass}");
            assert_eq!(number("masked_stable"), 0, "{pass}");
        }
    }
}

#[test]
fn traces_of_canvases_are_proved() {
    let model = drawn("llada-trace", 4, 2, false);
    for (skip, tables) in
        [(SkipLayers::Never, TraceTables::Full), (SkipLayers::BehindHalf, TraceTables::Delta)]
    {
        let dir = directory(&format!("llada-trace-{tables:?}"));
        let trace = TraceOptions { dir: dir.clone(), tables, format: LineFormat::default() };
        let options = EngineOptions { trace: Some(trace), num_blocks: Some(12), ..dummy(&model, skip) };
        outputs(&options, &mixed(4, 16, skip != SkipLayers::Never), 1);
        let report = check_dir(&dir).unwrap();
        assert!(report.violation.is_none(), "{:?}", report.violation);
        assert!(report.steps > 10);
    }
}

#[test]
fn without_a_guard_blocks_end_with_masks_and_the_diagnosis_says_so() {
    let model = drawn("llada-unguarded", 4, 4, false);
    let how = |guard| Diffusion {
        skip_policy: SkipPolicy::Cosine { threshold: -1.0, outlier: -1.0 },
        skip_guard: guard,
        ..diffusion(Decoder::DualCacheSkip, 16, 64, None)
    };
    let prompt: Vec<u32> = (0..20).collect();
    let of = |guard| {
        let request = request("0", &prompt, 64, how(guard));
        outputs(&dummy(&model, SkipLayers::BehindHalf), &[request], 0).0.remove(0)
    };
    let unguarded = of(Guard::None);
    // Everything is judged stable in the second pass of each block, which ends with 15 masks; later blocks begin with one of those.
    assert!(unguarded["masks_left"].as_u64().unwrap() > 40, "{unguarded}");
    assert!(
        unguarded["passes_all_stable"].as_u64().unwrap() > 0
            && unguarded["token_ids"].as_array().unwrap().len() == 64
    );
    for guard in [Guard::Guard, Guard::Reuse] {
        assert_eq!(of(guard)["masks_left"], 0);
    }
}

#[test]
fn what_means_nothing_for_a_canvas_is_refused_by_name() {
    let model = drawn("llada-refused", 4, 4, false);
    let session = Session::open(&dummy(&model, SkipLayers::Never)).unwrap();
    let plain = diffusion(Decoder::DualCache, 16, 32, None);
    let sampling = |change: fn(&mut SamplingParams)| {
        let mut request = request("r", &[1, 2], 32, plain.clone());
        change(&mut request.sampling);
        request
    };
    let with = |how: Diffusion| request("r", &[1, 2], 32, how);
    for (request, says) in [
        (with(Diffusion { block_length: 7, ..plain.clone() }), "not a multiple of --block-length 7"),
        (with(Diffusion { steps: Some(33), ..plain.clone() }), "cannot be shared out evenly among 2 blocks"),
        (with(Diffusion { decoder: Decoder::DualCacheSkip, ..plain.clone() }), "was not opened for it"),
        (with(Diffusion { threshold: Some(f64::NAN), ..plain.clone() }), "--threshold NaN"),
        (request("r", &[1, 299], 32, plain.clone()), "is the mask"),
        (sampling(|s| s.logprobs = Some(1)), "logprobs means nothing"),
        (sampling(|s| s.top_p = 0.5), "top_k, top_p and min_p"),
        (Request { stop: vec!["x".to_owned()], ..with(plain.clone()) }, "stop"),
        (request("r", &[1; 600], 32, plain.clone()), "max_num_batched_tokens"),
    ] {
        let error = format!("{:#}", session.check(&request).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
    let causal = Session::open(&EngineOptions::new(ModelRef::Builtin("draft".to_owned()))).unwrap();
    let error = format!("{:#}", causal.check(&with(plain)).unwrap_err());
    assert!(error.contains("the model is causal"), "{error}");
}

#[test]
fn the_text_of_the_mask_in_a_prompt_is_text() {
    let Some(dir) = reference() else { return };
    let session = Session::open(&options(ModelRef::Directory(dir), SkipLayers::Never)).unwrap();
    let tokenizer = session.tokenizer().unwrap();
    let text = "one <|mdm_mask|> and <|mdm_mask|><|mdm_mask|> more";
    let ids = tokenizer.encode(text, false).unwrap();
    assert!(!ids.contains(&511), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    assert_eq!(tokenizer.encode("<|start|>", false).unwrap(), [509]);
    assert!(session.check(&request("r", &ids, 32, Diffusion::default())).is_ok());
}

#[test]
#[ignore = "a campaign of about two minutes"]
fn no_mask_is_left_whatever_the_thresholds() {
    let model = drawn("llada-campaign", 4, 2, true);
    let mut settings = 0;
    for layers in 0..=4 {
        let mut session = Session::open(&dummy(&model, SkipLayers::Behind(layers))).unwrap();
        for seed in 0..80 {
            let mut requests = mixed(1000 * u64::from(layers) + seed, 25, true);
            let mut random = Random(seed);
            for request in &mut requests {
                let how = request.diffusion.as_mut().unwrap();
                how.decoder = Decoder::DualCacheSkip;
                let any = |random: &mut Random| random.below(4001) as f64 / 1000.0 - 2.0;
                how.threshold = (random.below(2) == 0).then(|| any(&mut random));
                if let SkipPolicy::Cosine { threshold, outlier } = &mut how.skip_policy {
                    (*threshold, *outlier) = (any(&mut random), any(&mut random));
                }
            }
            let ids: Vec<_> = requests.iter().flat_map(|one| session.submit(one.clone()).unwrap()).collect();
            while session.has_unfinished() {
                session.step().unwrap();
            }
            for (id, request) in ids.into_iter().zip(&requests) {
                let output = session.take_output(id).unwrap();
                assert_eq!(
                    output.diffusion.unwrap().masks_left,
                    0,
                    "{layers} layers, seed {seed}: {request:?}"
                );
                settings += 1;
            }
        }
    }
    assert_eq!(settings, 10_000);
}
