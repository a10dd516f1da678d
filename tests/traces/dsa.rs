//! Records of sparse attention: every one is proved by `trace check`, is valid against the schema, and has the keys that
//! `return_indexer_topk` returns.

use std::collections::HashMap;
use std::path::Path;

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::session::{
    DraftRef, DsaTraceOptions, EngineOptions, ModelRef, Request, RequestOutput, Session, TraceOptions,
};
use pagedraft::spec_decode::Scorer;
use pagedraft_workloads::run::{LineFormat, convert_lines};
use pagedraft_workloads::trace::{
    DsaFormat, DsaRecords, DsaRows, Rule, SchemaOf, TraceTables, check_dir, dsa_file, schema, write_npy,
};
use serde_json::{Value, json};

use crate::models::{directory, glm};
use crate::requests::{options, requests, speculation};

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
    let mut lines = DsaRecords::open(dir).unwrap().unwrap().into_lines();
    let mut records = Vec::new();
    while let Some(line) = lines.next_line().unwrap() {
        records.push(serde_json::from_slice(line).unwrap());
    }
    records
}

fn few_tokens() -> Vec<Request> {
    let mut requests = requests(9, 6, 5, 90);
    requests.iter_mut().for_each(|request| request.max_tokens += 20);
    requests
}

#[test]
fn every_record_is_proved_and_valid_and_has_the_keys_that_requests_are_given() {
    let model = glm("dsa-records");
    let validator = jsonschema::validator_for(&schema(SchemaOf::Steps)).unwrap();
    let mut kinds = HashMap::new();
    for (name, scorer, num_blocks, tables, format) in [
        ("mqa", Scorer::Mqa, 256, TraceTables::Full, DsaFormat::Jsonl),
        ("expanded-tight", Scorer::BatchExpansion, 11, TraceTables::Delta, DsaFormat::Compact),
    ] {
        let dir = directory(&format!("dsa-{name}"));
        let mut options = traced(&model, &dir);
        options.trace.as_mut().unwrap().tables = tables;
        options.enable_prefix_caching = true;
        options.trace_dsa.format = format;
        options.trace_dsa.store_scores = format == DsaFormat::Compact;
        options.speculation = speculation(DraftRef::Ngram, 3, scorer);
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
            assert!(record["scores_stats"].is_object(), "{record}");
            let scores = record["scores_topk"].as_array().map(Vec::len);
            let chosen = record["seq_len_current"].as_u64().unwrap().min(24) as usize;
            assert_eq!(scores, (format == DsaFormat::Compact).then_some(chosen), "{record}");
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
        options.speculation = speculation(DraftRef::Ngram, 3, Scorer::Mqa);
        serve(&options, &requests);
        assert_eq!(check_dir(&dir).unwrap().violation, None, "{name}");
        dsa_file(&dir).map(|_| records(&dir))
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
    assert_eq!(dsa_file(&dir), None);
    assert_eq!(check_dir(&dir).unwrap().violation, None);
}

#[test]
fn a_changed_byte_a_missing_record_and_one_too_many_are_found() {
    let dir = directory("dsa-changed");
    let request = Request { ignore_eos: true, ..Request::new("one", (0..40).collect(), 3) };
    let mut options = traced(&glm("dsa-changed-model"), &dir);
    options.trace_dsa.format = DsaFormat::Jsonl;
    options.trace_dsa.store_scores = true;
    serve(&options, &[request]);
    let path = dir.join("dsa_topk.jsonl");
    let sound = std::fs::read(&path).unwrap();
    assert_eq!(check_dir(&dir).unwrap().violation, None);
    let lines: Vec<&[u8]> = sound.split_inclusive(|&b| b == b'\n').collect();
    let broken = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        check_dir(&dir).unwrap().violation.map(|violation| violation.rule)
    };
    // A record of a prefill row, and one of a decode row: of layer 1, which uses the choice of layer 0. Which keys of a block an
    // indexer chose cannot be seen from tables. The last digit of a score may not matter, so that scores are left to the end.
    for line in [lines.len() / 2, lines.len() - 2] {
        let start: usize = lines[..line].iter().map(|line| line.len()).sum();
        let place = |word: &[u8]| lines[line].windows(word.len()).position(|own| own == word).unwrap();
        let scores = place(b"scores_stats\":") + 14..place(b",\"block_size_tokens");
        for at in (0..lines[line].len() - 1).filter(|at| !scores.contains(at)).map(|at| start + at) {
            let mut bytes = sound.clone();
            // Another digit, another letter, another sign.
            bytes[at] ^= 1;
            assert_eq!(broken(&bytes), Some(Rule::DsaTopk), "byte {} of {line}", at - start);
        }
    }
    // Another least score, of layer 2, which is the only one to say it; and another first score.
    for (word, line) in [("\"min\":", lines.len() - 1), ("\"scores_topk\":[", lines.len() - 3)] {
        let text = String::from_utf8(sound.clone()).unwrap();
        let mut changed: Vec<String> = text.lines().map(str::to_owned).collect();
        let at = changed[line].find(word).unwrap() + word.len();
        let end = at + changed[line][at..].find(',').unwrap();
        changed[line].replace_range(at..end, "-123.5");
        assert_eq!(broken((changed.join("\n") + "\n").as_bytes()), Some(Rule::DsaTopk), "{word}");
    }
    assert_eq!(broken(&lines[..lines.len() - 1].concat()), Some(Rule::DsaTopk));
    assert_eq!(broken(&[&lines[1..], &lines[..1]].concat().concat()), Some(Rule::DsaTopk));
    assert_eq!(broken(&[&sound[..], lines[lines.len() - 1]].concat()), Some(Rule::DsaTopk));
    // A run that was stopped may have fewer records than steps.
    std::fs::remove_file(dir.join("summary.json")).unwrap();
    assert_eq!(broken(&lines[..lines.len() - 1].concat()), None);
    assert_eq!(broken(&sound[..sound.len() - 9]), None);
}

#[test]
fn both_formats_give_the_same_records_and_arrays_are_those_that_requests_are_given() {
    let model = glm("dsa-formats");
    let mut texts = Vec::new();
    for (name, format) in [("compact", DsaFormat::Compact), ("jsonl", DsaFormat::Jsonl)] {
        let dir = directory(&format!("dsa-{name}"));
        let mut options = traced(&model, &dir);
        (options.trace_dsa.format, options.trace_dsa.store_scores) = (format, true);
        options.speculation = speculation(DraftRef::Ngram, 3, Scorer::Mqa);
        options.return_indexer_topk = true;
        let mut requests = few_tokens();
        requests.iter_mut().for_each(|request| request.return_indexer_topk = true);
        let outputs = serve(&options, &requests);
        let report = check_dir(&dir).unwrap();
        assert_eq!(report.violation, None, "{name}");
        let text = dir.join("text.jsonl");
        let mut lines = DsaRecords::open(&dir).unwrap().unwrap().into_lines();
        assert_eq!(convert_lines(&mut lines, &text, LineFormat::Jsonl).unwrap(), report.dsa_records);
        texts.push(std::fs::read_to_string(text).unwrap());
        let arrays = write_npy(&dir, &dir.join("arrays")).unwrap();
        assert_eq!(arrays.len(), outputs.len());
        for output in outputs {
            let made = std::fs::read(dir.join("arrays").join(format!("{}.npy", output.request_id))).unwrap();
            assert!(made == output.indexer_topk.unwrap().npy(), "{name}: request {}", output.request_id);
        }
    }
    assert!(texts[0] == texts[1]);
    let own =
        std::fs::read_to_string(directory("dsa-none").with_file_name("dsa-jsonl").join("dsa_topk.jsonl"));
    assert!(own.unwrap() == texts[0], "lines that are made are those that are written");
}

#[test]
fn every_changed_byte_of_a_compact_file_is_found_and_a_torn_end_is_left_out() {
    let dir = directory("dsa-torn");
    let request = Request { ignore_eos: true, ..Request::new("one", (0..40).collect(), 3) };
    serve(&traced(&glm("dsa-torn-model"), &dir), &[request]);
    let path = dir.join("dsa_topk.bin");
    let sound = std::fs::read(&path).unwrap();
    let all = records(&dir);
    let first = sound.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    // The first frames byte by byte, and then some of the others.
    for at in (first..first + 150).chain((first + 150..sound.len()).step_by(37)) {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, bytes).unwrap();
        let violation = check_dir(&dir).unwrap().violation;
        assert_eq!(violation.map(|violation| violation.rule), Some(Rule::DsaTopk), "byte {at} passes");
    }
    std::fs::remove_file(dir.join("summary.json")).unwrap();
    for end in [sound.len() - 1, sound.len() - 30, first + 5, first] {
        std::fs::write(&path, &sound[..end]).unwrap();
        let found = records(&dir);
        assert!(found.len() < all.len() && found[..] == all[..found.len()], "{end}");
        assert_eq!(check_dir(&dir).unwrap().violation, None, "{end}");
    }
    for bytes in [&b"{}\n"[..], b"\x00\x01"] {
        std::fs::write(&path, bytes).unwrap();
        let error = DsaRecords::open(&dir).unwrap_err();
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(text.contains("dsa_topk.bin") && text.contains("first line"), "{text}");
    }
}
