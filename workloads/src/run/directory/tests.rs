use serde_json::json;

use super::*;
use crate::measures::RunFacts;
use crate::trace::{SCHEMA_VERSION, STEPS_FILE, read_steps};

/// A path that is free, and free again afterwards.
struct Fresh(PathBuf);

fn fresh(name: &str) -> Fresh {
    Fresh(std::env::temp_dir().join(format!("pagedraft-run-{}-{name}", std::process::id())))
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config() -> Value {
    json!({"engine": {"block_size": 16, "threads": 1, "revision": "a"}, "replay": {"limit": 200}, "date": "then"})
}

fn request(i: u32) -> RequestLine {
    let line = json!({
        "request_id": i.to_string(), "status": "finished", "intended_arrival_s": 0.1 * f64::from(i), "sent_s": 0.5,
        "first_token_s": 1.0, "finish_s": 2.5, "prompt_tokens": 12, "output_tokens": 3, "cached_tokens": 0,
        "ttft_ms": 500.0, "tpot_ms": 750.0, "e2el_ms": 2000.0, "queue_ms": 1.0, "drafted_by_position": [],
        "accepted_by_position": [], "finish_reason": "length", "num_preemptions": 0, "blocks_held": 1,
    });
    serde_json::from_value(line).unwrap()
}

/// Goes on with a run, and gives the lines that it was told.
fn resume(path: &Path, config: &Value) -> Result<(RunDirectory, Vec<RequestLine>), Error> {
    let mut lines = Vec::new();
    let run = RunDirectory::resume(path, config, |line| {
        lines.push(line.clone());
        Ok::<(), Error>(())
    })?;
    Ok((run, lines))
}

fn step(i: u64) -> Value {
    json!({"event": "step", "step": i})
}

fn steps(path: &Path) -> Vec<Value> {
    let mut reader = read_steps(path).unwrap();
    let mut steps = Vec::new();
    while let Some(line) = reader.next_line().unwrap() {
        steps.push(serde_json::from_slice(line).unwrap());
    }
    steps
}

/// Runs requests `0..requests`, with two steps each, and stops without a word.
fn stopped_run(path: &Path, requests: u32, format: LineFormat) {
    let mut run = RunDirectory::create(path, &config()).unwrap();
    let mut trace = run.trace(format).unwrap();
    for i in 0..requests {
        trace.write(&step(u64::from(2 * i))).unwrap();
        trace.write(&step(u64::from(2 * i + 1))).unwrap();
        run.write(&request(i)).unwrap();
    }
}

#[test]
fn a_run_has_its_config_its_lines_and_its_summary() {
    let root = fresh("whole");
    let path = root.0.join("made/on/the/way");
    let mut run = RunDirectory::create(&path, &config()).unwrap();
    assert_eq!(run.path(), &path);
    run.write(&request(0)).unwrap();
    run.finish(&Summary::default()).unwrap();
    let read = |name| read_object(&path.join(name)).unwrap();
    assert_eq!(read(CONFIG_FILE)["schema_version"], json!(SCHEMA_VERSION));
    assert_eq!(read(CONFIG_FILE)["replay"], json!({"limit": 200}));
    assert!(read(SUMMARY_FILE).is_object());
    let text = std::fs::read_to_string(path.join(REQUESTS_FILE)).unwrap();
    assert_eq!(serde_json::from_str::<RequestLine>(text.strip_suffix('\n').unwrap()).unwrap(), request(0));
    let error = RunDirectory::create(&path, &config()).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("--resume"), "{error}");
    let error = resume(&path, &config()).unwrap_err().to_string();
    assert!(error.contains("finished"), "{error}");
    let error = RunDirectory::repeat(&path, &config()).unwrap_err().to_string();
    assert!(error.contains("finished"), "{error}");
}

#[test]
fn a_run_that_wrote_nothing_leaves_nothing_behind_whoever_goes_first() {
    for run_first in [false, true] {
        let root = fresh("nothing");
        let run = RunDirectory::create(&root.0, &config()).unwrap();
        let trace = run.trace(LineFormat::Jsonl).unwrap();
        if run_first {
            drop(run);
            drop(trace);
        } else {
            drop(trace);
            drop(run);
        }
        assert!(!root.0.exists(), "run first: {run_first}");
    }
    let root = fresh("kept");
    let run = RunDirectory::create(&root.0, &config()).unwrap();
    let mut trace = run.trace(LineFormat::Jsonl).unwrap();
    trace.write(&step(0)).unwrap();
    drop((run, trace));
    assert_eq!(steps(&root.0), [step(0)]);
    assert!(root.0.join(CONFIG_FILE).exists());
}

#[test]
fn a_stopped_run_goes_on_behind_its_last_whole_lines() {
    for format in [LineFormat::Jsonl, LineFormat::JsonlZst] {
        let root = fresh("resume");
        stopped_run(&root.0, 3, format);
        let requests = root.0.join(REQUESTS_FILE);
        let text = std::fs::read(&requests).unwrap();
        std::fs::write(&requests, &text[..text.len() - 20]).unwrap();
        let mut now = config();
        now["date"] = json!("now");
        now["engine"]["revision"] = json!("b");
        let (mut run, lines) = resume(&root.0, &now).unwrap();
        assert_eq!((lines, run.next_step()), (vec![request(0), request(1)], 6));
        let mut trace = run.trace(format).unwrap();
        assert_eq!(trace.first_step(), 6);
        trace.write(&step(6)).unwrap();
        trace.finish(&json!({})).unwrap();
        run.write(&request(2)).unwrap();
        run.finish(&Summary::default()).unwrap();
        assert_eq!(std::fs::read(&requests).unwrap(), text, "{format}");
        let should: Vec<Value> =
            (0..6).map(step).chain([json!({"event": "resume", "step": 6}), step(6)]).collect();
        assert_eq!(steps(&root.0), should, "{format}");
    }
}

#[cfg(feature = "parquet")]
#[test]
fn steps_in_parquet_are_made_when_a_run_ends_and_gone_on_with_when_it_was_stopped() {
    let root = fresh("parquet");
    let parquet = LineFormat::Parquet.file(&root.0, "trace_steps");
    stopped_run(&root.0, 1, LineFormat::Parquet);
    assert!(root.0.join(STEPS_FILE).exists() && !parquet.exists(), "a killed run can be read");
    for next in [2, 3] {
        let (run, _) = resume(&root.0, &config()).unwrap();
        assert_eq!(run.next_step(), next);
        let mut trace = run.trace(LineFormat::Parquet).unwrap();
        trace.write(&step(next)).unwrap();
        trace.finish(&json!({})).unwrap();
        assert!(!root.0.join(STEPS_FILE).exists() && parquet.exists());
        assert!(!root.0.join(SUMMARY_FILE).exists(), "a run's summary is not the trace's");
    }
    let resume = |i: u64| json!({"event": "resume", "step": i});
    assert_eq!(steps(&root.0), [step(0), step(1), resume(2), step(2), resume(3), step(3)]);
}

#[test]
fn a_run_stopped_in_order_has_a_summary_and_goes_on() {
    let root = fresh("interrupted");
    let mut run = RunDirectory::create(&root.0, &config()).unwrap();
    run.write(&request(0)).unwrap();
    let facts = RunFacts { stopped: true, ..RunFacts::default() };
    run.finish(&Summary { facts, ..Summary::default() }).unwrap();
    assert_eq!(read_object(&root.0.join(SUMMARY_FILE)).unwrap()["stopped"], json!(true));
    let (run, lines) = resume(&root.0, &config()).unwrap();
    assert_eq!((lines, run.next_step()), (vec![request(0)], 0));
    assert!(!root.0.join(SUMMARY_FILE).exists(), "it spoke of the part before");
    drop(run);
    assert!(root.0.join(REQUESTS_FILE).exists());
}

#[test]
fn a_repeated_run_is_compared_with_what_is_there() {
    let root = fresh("repeat");
    stopped_run(&root.0, 3, LineFormat::Jsonl);
    let bytes = |name: &str| std::fs::read(root.0.join(name)).unwrap();
    let (requests, there) = (bytes(REQUESTS_FILE), bytes(STEPS_FILE));
    std::fs::write(root.0.join(REQUESTS_FILE), &requests[..requests.len() - 30]).unwrap();
    std::fs::write(root.0.join(STEPS_FILE), &there[..there.len() / 2]).unwrap();
    let mut run = RunDirectory::repeat(&root.0, &config()).unwrap();
    let mut trace = run.trace(LineFormat::Jsonl).unwrap();
    for i in 0..3 {
        trace.write(&step(2 * i)).unwrap();
        trace.write(&step(2 * i + 1)).unwrap();
        run.write(&request(i as u32)).unwrap();
    }
    trace.finish(&json!({})).unwrap();
    run.finish(&Summary::default()).unwrap();
    assert_eq!((bytes(REQUESTS_FILE), bytes(STEPS_FILE)), (requests, there));
    std::fs::remove_file(root.0.join(SUMMARY_FILE)).unwrap();
    let mut run = RunDirectory::repeat(&root.0, &config()).unwrap();
    run.write(&request(0)).unwrap();
    run.write(&request(2)).unwrap();
    let error = run.finish(&Summary::default()).unwrap_err().to_string();
    assert!(error.contains("requests.jsonl") && error.contains("line 2 differs"), "{error}");
}

#[test]
fn another_run_is_not_gone_on_with() {
    let root = fresh("another");
    let error = resume(&root.0, &config()).unwrap_err().to_string();
    assert!(error.contains("holds no run"), "{error}");
    stopped_run(&root.0, 2, LineFormat::Jsonl);
    let mut other = config();
    other["engine"]["threads"] = json!(2);
    for error in [
        resume(&root.0, &other).map(drop).unwrap_err(),
        RunDirectory::repeat(&root.0, &other).map(drop).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("engine.threads is 1 there and 2 now"), "{error}");
    }
    let run = RunDirectory::repeat(&root.0, &config()).unwrap();
    let error = run.trace(LineFormat::JsonlZst).map(drop).unwrap_err().to_string();
    assert!(error.contains("trace_steps.jsonl"), "{error}");
    drop(run);
    let requests = root.0.join(REQUESTS_FILE);
    let text = std::fs::read_to_string(&requests).unwrap();
    std::fs::write(&requests, text.replacen("\"finished\"", "\"done\"", 1)).unwrap();
    let error = resume(&root.0, &config()).unwrap_err().to_string();
    assert!(error.contains("requests.jsonl: line 1: ") && error.contains("done"), "{error}");
}

#[test]
fn a_run_that_is_being_written_is_not_gone_on_with_by_another() {
    let fresh = fresh("lock");
    let mut first = RunDirectory::create(&fresh.0, &config()).unwrap();
    first.write(&request(0)).unwrap();
    let error = resume(&fresh.0, &config()).unwrap_err().to_string();
    assert!(error.contains("another process is writing this run"), "{error}");
    assert!(RunDirectory::repeat(&fresh.0, &config()).is_err());
    drop(first);
    let (_second, lines) = resume(&fresh.0, &config()).unwrap();
    assert_eq!(lines.len(), 1);
}

#[test]
fn a_caller_that_refuses_a_line_is_told_so_and_the_run_stays_as_it_was() {
    let root = fresh("refused");
    let mut run = RunDirectory::create(&root.0, &config()).unwrap();
    (0..3).for_each(|i| run.write(&request(i)).unwrap());
    let facts = RunFacts { stopped: true, ..RunFacts::default() };
    run.finish(&Summary { facts, ..Summary::default() }).unwrap();
    let requests = root.0.join(REQUESTS_FILE);
    let text = std::fs::read_to_string(&requests).unwrap();
    // It is not read to its end either.
    let torn = format!("{text}no line\n");
    std::fs::write(&requests, &torn).unwrap();
    let mut told = 0;
    let refused = RunDirectory::resume(&root.0, &config(), |line| {
        told += 1;
        if line.request_id == "1" { Err(Error::Options("not that one".to_owned())) } else { Ok(()) }
    });
    assert!(refused.unwrap_err().to_string().contains("not that one"));
    assert_eq!(told, 2);
    assert_eq!(std::fs::read_to_string(&requests).unwrap(), torn);
    assert!(root.0.join(SUMMARY_FILE).exists());
    std::fs::write(&requests, text).unwrap();
    assert_eq!(resume(&root.0, &config()).unwrap().1, [request(0), request(1), request(2)]);
}
