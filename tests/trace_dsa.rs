//! Records of sparse attention: every one is proved by `trace check`, is valid against the schema, and has the keys that
//! `return_indexer_topk` returns.
#![allow(clippy::unwrap_used, reason = "a test or a bench that fails says where")]

mod schedule;
mod sparse_model;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::session::{
    DraftLength, DraftRef, DsaTraceOptions, EngineOptions, ModelRef, Request, RequestOutput, Session,
    SpeculationOptions, TraceOptions,
};
use pagedraft::spec_decode::Scorer;
use pagedraft_workloads::trace::{DsaRows, Rule, SchemaOf, TraceTables, check_dir, schema};
use schedule::{options, requests};
use serde_json::{Value, json};
use sparse_model::glm;

fn directory(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

/// An engine with a trace in `dir`, in which every row has records.
fn traced(model: &ModelRef, dir: &Path) -> EngineOptions {
    let (tables, format) = (TraceTables::Full, Default::default());
    EngineOptions {
        trace: Some(TraceOptions { dir: dir.to_owned(), tables, format }),
        trace_dsa: DsaTraceOptions { rows: DsaRows::All, prefix_key_tokens: 8, ..Default::default() },
        ..options(model, Dtype::F32, Isa::detect())
    }
}

fn serve(options: &EngineOptions, requests: &[Request]) -> Vec<RequestOutput> {
    let mut session = Session::open(options).unwrap();
    let mut ids = Vec::new();
    for request in requests {
        ids.extend(session.submit(request.clone()).unwrap());
        session.step().unwrap();
    }
    while session.has_unfinished() {
        session.step().unwrap();
    }
    session.close(&json!({})).unwrap();
    ids.into_iter().map(|id| session.take_output(id).unwrap()).collect()
}

fn records(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("dsa_topk.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn few_tokens() -> Vec<Request> {
    let mut requests = requests(9, 6, 5, 90);
    requests.iter_mut().for_each(|request| request.max_tokens += 20);
    requests
}

fn drafting(scorer: Scorer) -> SpeculationOptions {
    let length = DraftLength::Fixed(3);
    SpeculationOptions { draft: Some(DraftRef::Ngram), length, scorer, ..SpeculationOptions::default() }
}

#[test]
fn every_record_is_proved_and_valid_and_has_the_keys_that_requests_are_given() {
    let model = glm("dsa-records");
    let validator = jsonschema::validator_for(&schema(SchemaOf::Steps)).unwrap();
    let mut kinds = HashMap::new();
    for (name, scorer, num_blocks, tables, caching) in [
        ("mqa", Scorer::Mqa, 256, TraceTables::Full, true),
        ("expanded-tight", Scorer::BatchExpansion, 11, TraceTables::Delta, true),
    ] {
        let dir = directory(&format!("dsa-{name}"));
        let mut options = traced(&model, &dir);
        options.trace.as_mut().unwrap().tables = tables;
        options.enable_prefix_caching = caching;
        options.speculation = drafting(scorer);
        options.num_blocks = Some(num_blocks);
        options.prefill_chunk = Some(20);
        options.return_indexer_topk = true;
        // Some are given their keys; the others may hit prefixes.
        let mut requests = few_tokens();
        requests.iter_mut().step_by(2).for_each(|request| request.return_indexer_topk = true);
        let shared = requests[0].prompt.iter().copied().cycle().take(40).collect::<Vec<_>>();
        requests.extend((0..2).map(|i| Request::new(format!("same{i}"), shared.clone(), 20)));
        let outputs = serve(&options, &requests);
        let report = check_dir(&dir).unwrap();
        assert_eq!(report.violation, None, "{name}");
        let records = records(&dir);
        assert_eq!(report.dsa_records, records.len() as u64);
        let by_name: HashMap<&str, &RequestOutput> =
            outputs.iter().map(|output| (output.request_id.as_str(), output)).collect();
        let mut hits = 0;
        for record in &records {
            let faults: Vec<String> = validator.iter_errors(record).map(|e| e.to_string()).collect();
            assert!(faults.is_empty(), "{faults:?}: {record}");
            let kind = format!("{} {}", record["row"], record["accepted"]);
            *kinds.entry(kind).or_insert(0) += 1;
            hits += u32::from(record["prefix"]["prefix_cache_hit"] == true);
            let output = by_name[record["request_id"].as_str().unwrap()];
            let (Some(topk), false) = (&output.indexer_topk, record["accepted"] == false) else { continue };
            let [tokens, layers, k] = topk.shape();
            let (token, place) = (record["step_idx"].as_u64().unwrap() as usize, [0, 2]);
            let Some(place) = place.iter().position(|&own| record["selection_layer"] == own) else {
                continue;
            };
            // Accepted drafts behind an end belong to no output.
            if token >= tokens {
                continue;
            }
            let row = &topk.positions()[(token * layers + place) * k..][..k];
            let row: Vec<i32> = row.iter().copied().filter(|&p| p >= 0).collect();
            assert_eq!(record["selected_token_pos"], json!(row), "{record}");
        }
        assert!(hits > 0, "{name}: no record of a request that hit a prefix");
    }
    for kind in ["\"prefill\" null", "\"verify\" true", "\"verify\" false"] {
        assert!(kinds.contains_key(kind), "no {kind} among {kinds:?}");
    }
}

#[test]
fn rows_that_are_not_asked_for_have_no_records_and_dense_models_have_none() {
    let model = glm("dsa-kinds");
    let requests = few_tokens();
    let count = |name: &str, rows, sample_rate| {
        let dir = directory(name);
        let mut options = traced(&model, &dir);
        options.trace_dsa = DsaTraceOptions { rows, sample_rate, ..Default::default() };
        options.speculation = drafting(Scorer::Mqa);
        serve(&options, &requests);
        assert_eq!(check_dir(&dir).unwrap().violation, None, "{name}");
        dir.join("dsa_topk.jsonl").exists().then(|| records(&dir))
    };
    assert!(count("dsa-off", DsaRows::Off, 1.0).is_none());
    let decode = count("dsa-decode", DsaRows::Decode, 1.0).unwrap();
    assert!(!decode.is_empty() && decode.iter().all(|record| record["row"] == "decode"));
    let verify = count("dsa-verify", DsaRows::Verify, 1.0).unwrap();
    assert!(verify.len() > decode.len() && verify.iter().all(|record| record["row"] != "prefill"));
    let some = count("dsa-some", DsaRows::Verify, 0.3).unwrap();
    assert!(some.len() > verify.len() / 8 && some.len() < verify.len() / 2, "{}", some.len());
    assert!(some.iter().all(|record| verify.contains(record)), "a sampled record is none of the whole trace");

    let dir = directory("dsa-dense");
    serve(
        &EngineOptions { num_blocks: Some(64), ..traced(&ModelRef::Builtin("target".into()), &dir) },
        &requests[..1],
    );
    assert!(!dir.join("dsa_topk.jsonl").exists());
    assert_eq!(check_dir(&dir).unwrap().violation, None);
}

#[test]
fn a_changed_byte_a_missing_record_and_one_too_many_are_found() {
    let dir = directory("dsa-changed");
    let request = Request { ignore_eos: true, ..Request::new("one", (0..40).collect(), 3) };
    serve(&traced(&glm("dsa-changed-model"), &dir), &[request]);
    let path = dir.join("dsa_topk.jsonl");
    let sound = std::fs::read(&path).unwrap();
    assert_eq!(check_dir(&dir).unwrap().violation, None);
    let lines: Vec<&[u8]> = sound.split_inclusive(|&b| b == b'\n').collect();
    let broken = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        check_dir(&dir).unwrap().violation.map(|violation| violation.rule)
    };
    // A record of a prefill row, and one of a decode row: of layer 1, which uses the choice of layer 0. Which keys of a block an
    // indexer chose cannot be seen from tables.
    for line in [lines.len() / 2, lines.len() - 2] {
        let start: usize = lines[..line].iter().map(|line| line.len()).sum();
        for at in start..start + lines[line].len() - 1 {
            let mut bytes = sound.clone();
            // Another digit, another letter, another sign.
            bytes[at] ^= 1;
            assert_eq!(broken(&bytes), Some(Rule::DsaTopk), "byte {} of {line}", at - start);
        }
    }
    assert_eq!(broken(&lines[..lines.len() - 1].concat()), Some(Rule::DsaTopk));
    assert_eq!(broken(&[&lines[1..], &lines[..1]].concat().concat()), Some(Rule::DsaTopk));
    assert_eq!(broken(&[&sound[..], lines[lines.len() - 1]].concat()), Some(Rule::DsaTopk));
    // A run that was stopped may have fewer records than steps.
    std::fs::remove_file(dir.join("summary.json")).unwrap();
    assert_eq!(broken(&lines[..lines.len() - 1].concat()), None);
    assert_eq!(broken(&sound[..sound.len() - 9]), None);
}
