//! Pruned prefills through the whole engine: what the reference keeps and generates, under every schedule, to the bit.

use std::path::{Path, PathBuf};

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::prune::{PruneChoice, PruneSpec};
use pagedraft::session::{
    DraftRef, EngineOptions, LoadFormat, ModelRef, PruneOptions, Request, RequestPrune, Session, TraceOptions,
};
use pagedraft::spec_decode::Scorer;
use pagedraft::workloads::run::LineFormat;
use pagedraft::workloads::trace::{TraceTables, check_dir};
use serde_json::Value;

use crate::models::{HIDDEN, deep, six_layers};
use crate::pruned::{learned, some_pruned};
use crate::requests::{options, requests, spec, speculation};
use crate::schedule::{
    Events, alone, check, drafts_change_nothing, every_schedule, repetitive, run, schedules,
};

#[test]
fn pruned_and_dense_requests_give_the_same_bits_under_every_schedule() {
    let model = six_layers("prune-schedules");
    let ways = [
        learned("prune-schedules", 3),
        spec(
            r#"{"layers": [0, 2, 4], "keep_ratio": 0.6, "scorer": "random", "positions": "compact", "min_tail_tokens": 2}"#,
        ),
        spec(
            r#"{"layers": [2], "keep_ratio": 0.3, "scorer": "first-last", "mode": "prompt", "protect": [[20, 30]]}"#,
        ),
    ];
    let mut events = Events::default();
    for (dtype, seed) in [(Dtype::F32, 3), (Dtype::Bf16, 4)] {
        println!("seed {seed}");
        let prune = PruneOptions { others: ways.to_vec(), ..PruneOptions::default() };
        let base = EngineOptions { prune, ..options(&model, dtype, Isa::detect()) };
        let mut requests = requests(seed, 12, 300, 120);
        some_pruned(&mut requests, &ways);
        let alone = alone(&base, &requests);
        let name = format!("seed {seed}, {dtype:?}");
        events.add(every_schedule(&name, &base, 24, &requests, &alone));
    }
    events.check();
}

#[test]
fn drafts_scorers_and_graphs_change_no_bit_of_pruned_requests() {
    let model = six_layers("prune-drafts");
    let ways = [
        learned("prune-drafts", 3),
        spec(
            r#"{"layers": [0, 2], "keep_ratio": 0.6, "scorer": "random", "positions": "compact", "min_tail_tokens": 2}"#,
        ),
    ];
    let prune = PruneOptions { others: ways.to_vec(), ..PruneOptions::default() };
    let base = EngineOptions { prune, ..options(&model, Dtype::F32, Isa::detect()) };
    let mut requests = repetitive(9, 8, 20);
    some_pruned(&mut requests, &ways);
    let drafts = [DraftRef::Ngram, DraftRef::Model(model.clone())];
    drafts_change_nothing(&base, &drafts, 20, &requests);
}

/// What `trace check` says of a trace in which the last line that `change` can change is changed.
fn check_changed(dir: &Path, change: impl Fn(&mut Value) -> bool) -> String {
    let path = dir.join("trace_steps.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter_mut().rev().any(change), "no line has what is to be changed");
    std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let violation = check_dir(dir).unwrap().violation;
    std::fs::write(&path, text).unwrap();
    violation.map(|violation| violation.to_string()).unwrap_or_default()
}

/// The rows of a step in the group of segment 1 behind its first row, if it has some.
fn later_segment(line: &mut Value) -> Option<&mut Value> {
    let groups = line["groups"].as_object_mut()?;
    let group = groups.values_mut().find(|group| group["segment"] == 1)?;
    (group["slot_mapping"].as_array()?.len() > 2).then_some(group)
}

#[test]
fn traces_of_pruned_prompts_are_proved_from_their_counts_under_every_schedule() {
    let model = six_layers("prune-traced");
    let ways = [
        learned("prune-traced", 3),
        spec(
            r#"{"layers": [0, 2], "keep_ratio": 0.6, "scorer": "random", "positions": "compact", "min_tail_tokens": 2}"#,
        ),
    ];
    let prune = PruneOptions { others: ways.to_vec(), ..PruneOptions::default() };
    let base = EngineOptions { prune, ..options(&model, Dtype::F32, Isa::detect()) };
    let mut requests = requests(13, 9, 6, 100);
    some_pruned(&mut requests, &ways);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prune-trace");
    let more = [Scorer::Mqa, Scorer::BatchExpansion].map(|scorer| {
        let options = EngineOptions {
            speculation: speculation(DraftRef::Ngram, 3, scorer),
            num_blocks: Some(24),
            prefill_chunk: Some(11),
            enable_prefix_caching: true,
            ..base.clone()
        };
        ("drafts in a tight pool", 1, options)
    });
    for (schedule, apart, options) in schedules(&base, 24).into_iter().chain(more) {
        for tables in [TraceTables::Full, TraceTables::Delta] {
            let _ = std::fs::remove_dir_all(&dir);
            let trace = TraceOptions { dir: dir.clone(), format: LineFormat::Jsonl, tables };
            let options = EngineOptions { trace: Some(trace), ..options.clone() };
            let mut session = Session::open(&options).unwrap();
            for request in &requests {
                session.submit(request.clone()).unwrap();
                (0..apart).for_each(|_| drop(session.step().unwrap()));
            }
            while session.has_unfinished() {
                session.step().unwrap();
            }
            session.close(&serde_json::json!({})).unwrap();
            let report = check_dir(&dir).unwrap();
            assert!(report.violation.is_none(), "{schedule}, {tables:?}: {}", report.violation.unwrap());
            assert_eq!(report.finished, 9, "{schedule}");
            // The first way prunes at two layers, the second at two others, and preempted prompts are pruned again.
            assert!(report.prune_records >= 12, "{schedule}: {} records", report.prune_records);
        }
    }
    // Whoever says that another number was kept, or has tokens in other slots or rows, is found out.
    let fewer_kept = |line: &mut Value| {
        let rows = line["rows"].as_array_mut().into_iter().flatten();
        let mut kept = rows.filter(|row| row["kind"] == "prefill").filter_map(|row| row.get_mut("kept"));
        kept.next().is_some_and(|kept| {
            let last = kept.as_array().unwrap().len() - 1;
            let is = kept[last].as_u64().unwrap();
            kept[last] = (is - 1).into();
            is > 1
        })
    };
    let found = check_changed(&dir, fewer_kept);
    assert!(found.contains("kept is") || found.contains("segment"), "{found:?}");
    let another_kept = |line: &mut Value| {
        if line["event"] != "prune" {
            return false;
        }
        let kept = line["kept"].as_array_mut().unwrap();
        let middle = kept.len() / 2;
        kept[middle] = 1_000_000.into();
        true
    };
    assert!(check_changed(&dir, another_kept).contains("does not ascend"));
    for (field, rule) in [("slot_mapping", "slot"), ("plan_rows", "metadata-rows"), ("seq_lens", "lengths")] {
        let other = |line: &mut Value| {
            let Some(group) = later_segment(line) else { return false };
            group[field][0] = (group[field][0].as_u64().unwrap() + 1000).into();
            true
        };
        let found = check_changed(&dir, other);
        assert!(found.contains(rule), "{field}: {found:?}");
    }
}

#[test]
fn a_ratio_of_1_gives_the_bits_of_a_dense_request() {
    let model = six_layers("prune-ratio-1");
    let base = options(&model, Dtype::F32, Isa::detect());
    let mut requests = requests(5, 6, 300, 90);
    let dense = alone(&base, &requests);
    let all = spec(r#"{"layers": [1, 3], "keep_ratio": 1.0, "scorer": "random"}"#);
    some_pruned(&mut requests, std::slice::from_ref(&all));
    let prune = PruneOptions { all: Some(all), ..PruneOptions::default() };
    let cut = EngineOptions { prune, ..base };
    check("all kept", &requests, &dense, &run(&cut, &requests, 0).0);
}

/// The most of `count` prompts of `len` tokens that ran at once, each pruned in this way, and how many were preempted.
fn most_running(options: &EngineOptions, (count, len): (u32, u32), prune: &RequestPrune) -> (usize, usize) {
    let mut session = Session::open(options).unwrap();
    for i in 0..count {
        let prompt: Vec<u32> = (0..len).map(|j| (j * 7 + i * 13) % 300).collect();
        let request =
            Request { ignore_eos: true, prune: prune.clone(), ..Request::new(i.to_string(), prompt, 16) };
        session.submit(request).unwrap();
    }
    let (mut most, mut preempted) = (0, 0);
    while session.has_unfinished() {
        let step = session.step().unwrap();
        most = most.max(step.running);
        preempted += step.preempted;
    }
    (most, preempted)
}

#[test]
fn memory_that_pruning_frees_serves_others_at_once() {
    let half = spec(r#"{"layers": [0], "keep_ratio": 0.25, "scorer": "first-last"}"#);
    let prune = PruneOptions { all: Some(half), ..PruneOptions::default() };
    // Eight dense requests of 160 + 16 tokens fill 88 blocks, and a few more where pages are cut for two groups.
    let base = options(&six_layers("prune-memory"), Dtype::F32, Isa::detect());
    let options = EngineOptions { num_blocks: Some(92), prune, ..base };
    let most_running = |prune| most_running(&options, (24, 160), &prune);
    assert_eq!(most_running(RequestPrune::Never), (8, 0));
    // Five layers of six hold 40 + 16 tokens in place of 176: less than half of the memory.
    let (most, _) = most_running(RequestPrune::AsEngine);
    assert!(most >= 16, "{most} ran at once");
}

#[test]
fn a_pool_for_eight_dense_requests_runs_sixteen_pruned_ones_without_preemption() {
    let model = deep("prune-sixteen", 12);
    let prune =
        PruneOptions { all: Some(PruneChoice::Preset("keep07".parse().unwrap())), ..PruneOptions::default() };
    // Eight dense requests of 320 + 16 tokens take 21 blocks each.
    let base = options(&model, Dtype::F32, Isa::detect());
    let options = EngineOptions { num_blocks: Some(8 * 21), max_num_seqs: 16, prune, ..base };
    let most_running = |prune| most_running(&options, (32, 320), &prune);
    let (dense, _) = most_running(RequestPrune::Never);
    assert!(dense <= 8, "{dense} dense requests ran at once");
    assert_eq!(most_running(RequestPrune::AsEngine), (16, 0));
}

#[test]
fn a_score_that_is_no_number_fails_its_request_alone_and_names_the_layer() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prune-nan.safetensors");
    let nan: Vec<u8> = (0..HIDDEN / 4).flat_map(|_| f32::NAN.to_le_bytes()).collect();
    let zeros = vec![0u8; HIDDEN * HIDDEN];
    let view = |shape: &[usize], bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap()
    };
    let tensors = [
        ("3.scorer.0.weight", view(&[HIDDEN / 4, HIDDEN], &zeros[..])),
        ("3.scorer.0.bias", view(&[HIDDEN / 4], &zeros[..HIDDEN])),
        ("3.scorer.2.weight", view(&[1, HIDDEN / 4], &nan[..])),
        ("3.scorer.2.bias", view(&[1], &zeros[..4])),
    ];
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let bad =
        spec(&format!(r#"{{"layers": [3], "keep_ratio": 0.5, "modules": {:?}}}"#, path.to_str().unwrap()));
    let prune = PruneOptions { others: vec![bad.clone()], ..PruneOptions::default() };
    let options = EngineOptions { prune, ..options(&six_layers("prune-nan"), Dtype::F32, Isa::detect()) };
    let mut session = Session::open(&options).unwrap();
    let prompt: Vec<u32> = (0..60).collect();
    let asks = [RequestPrune::Never, RequestPrune::Choice(bad), RequestPrune::Never];
    let ids: Vec<_> = (0..3)
        .flat_map(|i: usize| {
            let request =
                Request { prune: asks[i].clone(), ..Request::new(i.to_string(), prompt.clone(), 4) };
            session.submit(Request { ignore_eos: true, ..request }).unwrap()
        })
        .collect();
    while session.has_unfinished() {
        session.step().unwrap();
    }
    let outputs: Vec<_> = ids.into_iter().map(|id| session.take_output(id).unwrap()).collect();
    let why = outputs[1].error.as_deref().unwrap();
    assert!(
        why.contains("request \"1\"") && why.contains("layer 3") && why.contains("not a number"),
        "{why}"
    );
    assert_eq!(outputs[0].token_ids, outputs[2].token_ids);
    assert_eq!(outputs[0].token_ids.len(), 4);
}

#[test]
fn what_cannot_be_pruned_is_refused_with_a_reason() {
    let model = six_layers("prune-refused");
    let base = options(&model, Dtype::F32, Isa::detect());
    let open = |prune: PruneOptions| {
        Session::open(&EngineOptions { prune, ..base.clone() }).map(|_| ()).unwrap_err()
    };
    let last = spec(r#"{"layers": [5], "keep_ratio": 0.5, "scorer": "random"}"#);
    let error = format!("{:#}", open(PruneOptions { all: Some(last), ..PruneOptions::default() }));
    assert!(error.contains("behind layer 5") && error.contains("from 0 to 4"), "{error}");
    let one = spec(r#"{"layers": [1], "keep_ratio": 0.5, "scorer": "random"}"#);
    let layers = PruneOptions { layers: Some(vec![1]), ..PruneOptions::default() };
    let session = Session::open(&EngineOptions { prune: layers, ..base.clone() }).unwrap();
    let other = spec(r#"{"layers": [2], "keep_ratio": 0.5, "scorer": "random"}"#);
    let missing = spec(r#"{"layers": [1], "keep_ratio": 0.5, "modules": "/nowhere/modules.safetensors"}"#);
    for (choice, logprobs, says) in [
        (other, None, "behind layer 2"),
        (missing, None, "/nowhere/modules.safetensors"),
        (one, Some(1), "prompt_logprobs"),
    ] {
        let mut request = Request::new("r", vec![1, 2, 3], 4);
        request.prune = RequestPrune::Choice(choice);
        request.sampling.prompt_logprobs = logprobs;
        let error = format!("{:#}", session.check(&request).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
    // 14 blocks of 6 layers hold the KV of 200 tokens, but not their rows beside it while they wait in pieces of 64.
    let way = spec(r#"{"layers": [1], "keep_ratio": 0.9, "scorer": "first-last"}"#);
    let prune = PruneOptions { all: Some(way), ..PruneOptions::default() };
    let tight = |chunk| {
        let options = EngineOptions {
            num_blocks: Some(14),
            prefill_chunk: chunk,
            prune: prune.clone(),
            ..base.clone()
        };
        let session = Session::open(&options).unwrap();
        session.check(&Request::new("r", (0..200).collect(), 4)).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(tight(None), Ok(()));
    let error = tight(Some(64)).unwrap_err();
    assert!(error.contains("of them are for rows that wait") && !error.contains(" 0 of them"), "{error}");
}

#[test]
fn the_reference_keeps_and_generates_the_same_under_every_schedule() {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/prune/eight-layers");
    if !dir.is_dir() {
        println!("skipped: the reference outputs of pruned prefills are not here");
        return;
    }
    // Python writes infinities that JSON does not have.
    let text = std::fs::read_to_string(dir.join("expected.json")).unwrap().replace("Infinity", "null");
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let floats = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let cases = expected["cases"].as_object().unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let mut ways = Vec::new();
    let requests: Vec<Request> = cases
        .iter()
        .map(|(name, case)| {
            let file = dir.join(format!("{}.json", name.split('.').next().unwrap()));
            let way = PruneChoice::Spec(PruneSpec::read(&file).unwrap());
            ways.push(way.clone());
            let request = Request::new(name, ids(&case["prompt_token_ids"]), 20);
            Request { ignore_eos: true, prune: RequestPrune::Choice(way), ..request }
        })
        .collect();
    let base = EngineOptions {
        load_format: LoadFormat::Auto,
        prune: PruneOptions { others: ways, ..PruneOptions::default() },
        ..options(&ModelRef::Directory(dir), Dtype::F32, Isa::detect())
    };
    let mut worst = 0.0f32;
    for (schedule, apart, options) in schedules(&base, 40) {
        let mut session = Session::open(&options).unwrap();
        session.keep_logits();
        let mut running = Vec::new();
        for request in &requests {
            running.extend(session.submit(request.clone()).unwrap());
            (0..apart).for_each(|_| drop(session.step().unwrap()));
        }
        while session.has_unfinished() {
            session.step().unwrap();
        }
        for (id, (name, case)) in running.into_iter().zip(cases) {
            let logits = session.take_logits(id).concat();
            let output = session.take_output(id).unwrap();
            assert_eq!(output.token_ids, ids(&case["token_ids"]), "{name}: {schedule}");
            let pruned = serde_json::to_value(output.prune.unwrap().unwrap()).unwrap();
            for field in ["kept", "keep_k", "kv_lens_after_prefill"] {
                assert_eq!(pruned[field], case[field], "{name}: {schedule}: {field}");
            }
            let want = floats.tensor(&format!("{name}.logits")).unwrap();
            let want: Vec<f32> = want.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            assert_eq!(logits.len(), want.len());
            let greatest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let off = logits.iter().zip(&want).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            worst = worst.max(off / greatest);
        }
    }
    println!("logits are off by {worst:e} of the greatest");
    assert!(worst < 1e-4, "{worst}");
}
