//! The files of a trace: every line is valid against the schema, which has a word for everything that is written; the
//! formats hold the same lines; a stopped run's trace goes on.

use std::path::Path;

use pagedraft::session::{
    DraftLength, DraftRef, EngineOptions, ModelRef, Request, Session, SpeculationOptions, TraceOptions,
};
use pagedraft::spec_decode::Scorer;
use pagedraft_workloads::Error;
use pagedraft_workloads::run::{LineFormat, RunDirectory};
use pagedraft_workloads::trace::{SchemaOf, TraceTables, check_dir, read_steps, schema};
use serde_json::{Value, json};

use crate::program::{Scratch, pagedraft};

fn options(draft: Option<DraftRef>, scorer: Scorer, num_blocks: u32) -> EngineOptions {
    let length = DraftLength::Fixed(3);
    EngineOptions {
        num_blocks: Some(num_blocks),
        max_model_len: Some(128),
        speculation: SpeculationOptions { draft, length, scorer, ..SpeculationOptions::default() },
        ..EngineOptions::new(ModelRef::Builtin("target".into()))
    }
}

/// Requests that have a start in common and several samples, some of which end early.
fn serve(session: &mut Session, requests: u32) {
    for i in 0..requests {
        let prompt = (0..40).chain([50 + i, 7, 8, 7, 8]).collect();
        let request =
            Request { n: 1 + i % 2, ignore_eos: true, ..Request::new(format!("r{i}"), prompt, 12 + i) };
        session.submit(request).unwrap();
    }
    while session.has_unfinished() {
        session.step().unwrap();
    }
}

/// Writes the trace of an engine of each kind; what it is called.
fn traces(scratch: &Scratch) -> Vec<&'static str> {
    let draft = DraftRef::Model(ModelRef::Builtin("draft".into()));
    let kinds = [
        ("plain", options(None, Scorer::Mqa, 64), TraceTables::Full, LineFormat::Jsonl),
        ("preempting", options(None, Scorer::Mqa, 12), TraceTables::Delta, LineFormat::Jsonl),
        ("ngram", options(Some(DraftRef::Ngram), Scorer::Mqa, 64), TraceTables::Delta, LineFormat::JsonlZst),
        ("draft", options(Some(draft), Scorer::BatchExpansion, 64), TraceTables::Full, LineFormat::Parquet),
    ];
    for (name, options, tables, format) in kinds.clone() {
        if format.check().is_err() {
            continue;
        }
        let dir = scratch.path(name).into();
        let trace = Some(TraceOptions { dir, tables, format });
        let mut session = Session::open(&EngineOptions { trace, ..options.clone() }).unwrap();
        serve(&mut session, 6);
        let other =
            session.prepare(&SpeculationOptions { draft: None, ..options.speculation }, true).unwrap();
        session.switch(other).unwrap();
        session.close(&json!({"done": true})).unwrap();
    }
    kinds.into_iter().filter(|kind| kind.3.check().is_ok()).map(|kind| kind.0).collect()
}

fn lines(directory: &str) -> Vec<String> {
    let mut reader = read_steps(Path::new(directory)).unwrap();
    let mut lines = Vec::new();
    while let Some(line) = reader.next_line().unwrap() {
        lines.push(String::from_utf8(line.to_vec()).unwrap());
    }
    lines
}

fn parsed(directory: &str) -> Vec<Value> {
    lines(directory).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Fields of `value` that `schema` has no word for.
fn unknown(schema: &Value, root: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let mut parts = Vec::new();
    collect(schema, root, &mut parts);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let at = format!("{at}.{name}");
                let known: Vec<&Value> = parts
                    .iter()
                    .filter_map(|part| {
                        part.get("properties")
                            .and_then(|p| p.get(name))
                            .or_else(|| part.get("additionalProperties").filter(|more| more.is_object()))
                    })
                    .collect();
                if known.is_empty() {
                    found.push(at);
                } else {
                    unknown(&json!({"anyOf": known}), root, value, &at, found);
                }
            }
        }
        Value::Array(values) => {
            let items: Vec<&Value> = parts.iter().filter_map(|part| part.get("items")).collect();
            let of = json!({"anyOf": items});
            values.iter().take(3).for_each(|value| unknown(&of, root, value, &format!("{at}[]"), found));
        }
        _ => {}
    }
}

/// The schemas that a schema is put together of.
fn collect<'a>(schema: &'a Value, root: &'a Value, parts: &mut Vec<&'a Value>) {
    parts.push(schema);
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        collect(
            root.pointer(name.trim_start_matches('#')).expect("a reference that leads somewhere"),
            root,
            parts,
        );
    }
    for several in ["anyOf", "oneOf", "allOf"] {
        for part in schema.get(several).and_then(Value::as_array).into_iter().flatten() {
            collect(part, root, parts);
        }
    }
}

#[test]
fn every_line_is_valid_and_the_schema_has_a_word_for_all_of_it() {
    let scratch = Scratch::new("schema");
    let (steps, config) = (schema(SchemaOf::Steps), schema(SchemaOf::Config));
    let (lines_valid, config_valid) =
        (jsonschema::validator_for(&steps).unwrap(), jsonschema::validator_for(&config).unwrap());
    let (mut events, mut copies, mut preempted, mut graphs) = (std::collections::BTreeSet::new(), 0, 0, 0);
    for name in traces(&scratch) {
        let directory = scratch.path(name);
        assert_eq!(check_dir(Path::new(&directory)).unwrap().violation, None, "{name}");
        for line in parsed(&directory) {
            if let Err(error) = lines_valid.validate(&line) {
                panic!("{name}: {error}\n{line}");
            }
            let mut found = Vec::new();
            unknown(&steps, &steps, &line, "line", &mut found);
            assert_eq!(found, Vec::<String>::new(), "{name}: {line}");
            events.insert(line["event"].as_str().unwrap().to_owned());
            let length = |field: &str| line[field].as_array().map_or(0, Vec::len);
            copies += length("copies");
            preempted += length("preempted");
            graphs += usize::from(line["mode"] == "graph");
        }
        let written = scratch.json(&format!("{name}/config.json"));
        assert!(config_valid.is_valid(&written), "{name}: {written}");
        assert!(config_valid.is_valid(&json!({"schema_version": 2, "engine": written})), "{name}");
    }
    assert_eq!(events.into_iter().collect::<Vec<_>>(), ["setup", "step"]);
    assert!(preempted > 0 && graphs > 0, "{preempted} preempted, {graphs} graphs, {copies} copies");
    assert!(lines_valid.is_valid(&json!({"event": "resume", "step": 3})));
    assert!(lines_valid.is_valid(&json!({"event": "kv_fetch", "anything": [1]})));
    assert!(!lines_valid.is_valid(&json!({"event": "dsa_topk", "anything": [1]})));
    assert!(!config_valid.is_valid(&json!({"schema_version": 2, "num_blocks": 3})), "no block_size");
    assert!(!config_valid.is_valid(&json!({"block_size": 16})), "no version");
}

/// Ways in which a line can be wrong; each says whether it applies.
type Break = (&'static str, fn(&mut Value) -> bool);

fn set(value: &mut Value, to: Value) -> bool {
    let applies = !value.is_null();
    *value = to;
    applies
}

const BREAKS: [Break; 16] = [
    ("no event", |l| l.as_object_mut().unwrap().remove("event").is_some()),
    ("an event that is no name", |l| set(&mut l["event"], json!(1))),
    ("no rows", |l| l.as_object_mut().unwrap().remove("rows").is_some()),
    ("no pool", |l| l.as_object_mut().unwrap().remove("pool").is_some()),
    ("no finished", |l| l.as_object_mut().unwrap().remove("finished").is_some()),
    ("no graph_key", |l| l.as_object_mut().unwrap().remove("graph_key").is_some()),
    ("no slots", |l| l["metadata"].as_object_mut().unwrap().remove("slot_mapping").is_some()),
    ("a step below 0", |l| set(&mut l["step"], json!(-1))),
    ("a step that is a text", |l| set(&mut l["step"], json!("3"))),
    ("half a block", |l| set(&mut l["pool"]["used"], json!(0.5))),
    ("a kind that is none", |l| set(&mut l["rows"][0]["kind"], json!("guess"))),
    ("a row without a name", |l| l["rows"][0].as_object_mut().unwrap().remove("request_id").is_some()),
    ("a mode that is none", |l| set(&mut l["mode"], json!("lazy"))),
    ("a length below 0", |l| set(&mut l["metadata"]["seq_lens"][0], json!(-4))),
    ("an end that is none", |l| set(&mut l["outcome"][0]["token_ids"], json!("none"))),
    ("time that goes backwards", |l| set(&mut l["time_us"]["execute"], json!(-0.5))),
];

#[test]
fn lines_that_are_wrong_are_not_valid() {
    let scratch = Scratch::new("schema-broken");
    let valid = jsonschema::validator_for(&schema(SchemaOf::Steps)).unwrap();
    let name = traces(&scratch)[0];
    let steps: Vec<Value> =
        parsed(&scratch.path(name)).into_iter().filter(|line| line["event"] == "step").collect();
    for line in &steps {
        assert!(valid.is_valid(line), "{line}");
        for (what, apply) in BREAKS {
            let mut line = line.clone();
            assert!(apply(&mut line), "{what}");
            assert!(!valid.is_valid(&line), "{what}: {line}");
        }
        let mut line = line.clone();
        line["outcome"][0]["finish_reason"] = json!("bored");
        assert!(!valid.is_valid(&line), "{line}");
    }
    assert!(!valid.is_valid(&json!({"event": "resume"})) && !valid.is_valid(&json!({"event": "setup"})));
    assert!(!valid.is_valid(&json!([])) && !valid.is_valid(&json!("step")));
}

#[test]
fn the_program_prints_schemas_and_converts_traces_to_the_same_bytes() {
    let scratch = Scratch::new("export");
    for (of, name) in [
        (SchemaOf::Steps, "steps"),
        (SchemaOf::Requests, "requests"),
        (SchemaOf::Summary, "summary"),
        (SchemaOf::Config, "config"),
    ] {
        let run = pagedraft(&["trace", "schema", "--of", name]);
        let printed: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(printed, schema(of), "{name}");
        assert!(jsonschema::meta::is_valid(&printed), "{name}");
    }
    assert_eq!(
        pagedraft(&["trace", "schema"]).stdout,
        pagedraft(&["trace", "schema", "--of", "steps"]).stdout
    );
    for name in traces(&scratch) {
        let directory = scratch.path(name);
        let before = lines(&directory);
        let text: String = before.iter().map(|line| format!("{line}\n")).collect();
        for format in LineFormat::ALL.into_iter().filter(|format| format.check().is_ok()) {
            let there = scratch.path(&format!("{name}-{format}"));
            std::fs::create_dir_all(&there).unwrap();
            std::fs::copy(format!("{directory}/config.json"), format!("{there}/config.json")).unwrap();
            let out = format!("{there}/trace_steps.{format}");
            let export = |from: &str, format: &str, out: &str| {
                pagedraft(&["trace", "export", from, "--format", format, "--out", out])
            };
            let run = export(&directory, &format.to_string(), &out);
            assert_eq!(run.code, Some(0), "{run:?}");
            assert!(run.stdout.contains(&format!("{} lines", before.len())), "{run:?}");
            let run = pagedraft(&["trace", "check", &there]);
            assert_eq!(run.code, Some(0), "{run:?}");
            let back = format!("{there}/back.jsonl");
            assert_eq!(export(&there, "jsonl", &back).code, Some(0));
            assert!(std::fs::read_to_string(&back).unwrap() == text, "{name} by {format}");
            let run = export(&there, "jsonl", &back);
            assert!(run.code == Some(2) && run.stderr.contains("back.jsonl is there already"), "{run:?}");
        }
    }
    let run = pagedraft(&["trace", "export", &scratch.path("nowhere"), "--format", "jsonl"]);
    assert!(run.code == Some(2) && run.stderr.contains("nowhere"), "{run:?}");
    let run = pagedraft(&["trace", "export", &scratch.path("plain"), "--format", "csv"]);
    assert!(run.code == Some(2) && run.stderr.contains("jsonl.zst"), "{run:?}");
}

#[test]
fn a_stopped_run_goes_on_in_the_same_trace() {
    let scratch = Scratch::new("resumed-run");
    let directory = scratch.path("run");
    let path = Path::new(&directory);
    let options = options(Some(DraftRef::Ngram), Scorer::Mqa, 64);
    let valid = jsonschema::validator_for(&schema(SchemaOf::Steps)).unwrap();
    let mut steps = 0;
    for part in 0..3 {
        let mut session = Session::open(&options).unwrap();
        let mut engine = session.config().clone();
        engine["trace_tables"] = json!("delta");
        let config = json!({"engine": engine, "replay": {"seed": 1}});
        let run = if part == 0 {
            RunDirectory::create(path, &config).unwrap()
        } else {
            let run = RunDirectory::resume(path, &config, |_| Err(Error::Options("it has no lines".into())))
                .unwrap();
            assert_eq!(run.next_step(), steps);
            run
        };
        session.attach_trace(run.trace(LineFormat::JsonlZst).unwrap(), TraceTables::Delta).unwrap();
        // The first part is killed in the middle of its requests, which come again.
        if part < 2 {
            for i in 0..3 {
                session.submit(Request::new(format!("r{i}"), (0..60).collect(), 30)).unwrap();
            }
            (0..5).for_each(|_| drop(session.step().unwrap()));
            drop(session);
        } else {
            serve(&mut session, 5);
            session.close(&json!({})).unwrap();
        }
        drop(run);
        let written = parsed(&directory);
        steps = 1 + written.iter().filter_map(|line| line["step"].as_u64()).max().unwrap();
        written.iter().for_each(|line| assert!(valid.is_valid(line), "{line}"));
    }
    let report = check_dir(path).unwrap();
    assert_eq!((report.violation, report.resumed, report.steps), (None, 2, steps));
}

#[test]
fn a_trace_of_an_older_form_is_checked_and_its_faults_say_that_it_is_old() {
    let scratch = Scratch::new("trace-older");
    let dir = scratch.path("run");
    let trace =
        Some(TraceOptions { dir: dir.clone().into(), tables: TraceTables::Full, format: LineFormat::Jsonl });
    let mut session = Session::open(&EngineOptions { trace, ..options(None, Scorer::Mqa, 64) }).unwrap();
    serve(&mut session, 2);
    // It finds what those before it have published.
    session.submit(Request::new("later", (0..40).collect(), 4)).unwrap();
    while session.has_unfinished() {
        session.step().unwrap();
    }
    session.close(&json!({})).unwrap();
    let rewrite = |change: &dyn Fn(&mut Value)| {
        let lines = scratch.json_lines("run/trace_steps.jsonl").into_iter().map(|mut line| {
            change(&mut line);
            format!("{line}\n")
        });
        let lines: String = lines.collect();
        scratch.write("run/trace_steps.jsonl", lines.as_bytes());
    };
    let version = |version: u32| {
        let mut config = scratch.json("run/config.json");
        config["schema_version"] = json!(version);
        scratch.write("run/config.json", config.to_string().as_bytes());
        pagedraft(&["trace", "check", &dir])
    };
    assert_eq!(scratch.json("run/config.json")["schema_version"], 2);
    assert_eq!(version(1).code, Some(0));
    // What version 1 wrote in place of `kv_events`.
    rewrite(&|line| {
        line.as_object_mut().unwrap().remove("kv_events");
    });
    let (new, old) = (version(2), version(1));
    assert_eq!((new.code, old.code), (Some(1), Some(1)));
    assert!(!new.stderr.contains("older writer"), "{}", new.stderr);
    assert!(old.stderr.contains("of an older writer: its schema_version is 1"), "{}", old.stderr);
    assert_eq!(version(3).code, Some(2));
}
