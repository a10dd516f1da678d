use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{CONFIG_FILE, SCHEMA_VERSION, STEPS_FILE, SUMMARY_FILE};
use super::TraceWriter;
use crate::Error;
use crate::run::{FLUSH_EVERY, Leftovers, LineFormat, LineWriter};

/// A path that is free, and free again afterwards.
struct Fresh(PathBuf);

fn fresh(name: &str) -> Fresh {
    Fresh(std::env::temp_dir().join(format!("pagedraft-writer-{}-{name}", std::process::id())))
}

impl std::ops::Deref for Fresh {
    type Target = std::path::Path;
    fn deref(&self) -> &std::path::Path {
        &self.0
    }
}

impl AsRef<std::path::Path> for Fresh {
    fn as_ref(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        let _ = std::fs::remove_file(&self.0);
    }
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path.join(STEPS_FILE)).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_trace_has_its_config_its_lines_in_order_and_its_summary() {
    let root = fresh("whole");
    let path = root.join("made/on/the/way");
    let mut writer = TraceWriter::create(&path, &json!({"block_size": 16}), LineFormat::Jsonl).unwrap();
    for i in 0..20_000 {
        writer.write(&json!({"event": "step", "step": i, "pad": "x".repeat(i % 300)})).unwrap();
    }
    writer.finish(&json!({"steps": 20_000})).unwrap();
    let read = |name| serde_json::from_slice::<Value>(&std::fs::read(path.join(name)).unwrap()).unwrap();
    assert_eq!(read(CONFIG_FILE), json!({"block_size": 16, "schema_version": SCHEMA_VERSION}));
    assert_eq!(read(SUMMARY_FILE), json!({"steps": 20_000}));
    assert!(lines(&path).iter().enumerate().all(|(i, line)| line["step"] == json!(i)));
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 3, "no temporary file is left");
}

#[test]
fn lines_reach_the_file_while_the_run_goes_on_and_when_it_is_dropped() {
    let path = fresh("flush");
    let mut writer = TraceWriter::create(&path, &json!({}), LineFormat::Jsonl).unwrap();
    writer.write(&json!({"step": 0})).unwrap();
    let mut waited = 0;
    while lines(&path).is_empty() {
        std::thread::sleep(FLUSH_EVERY / 4);
        waited += 1;
        assert!(waited < 100, "never flushed");
    }
    writer.write(&json!({"step": 1})).unwrap();
    drop(writer);
    assert_eq!(lines(&path), [json!({"step": 0}), json!({"step": 1})]);
    assert!(!path.join(SUMMARY_FILE).exists());
}

#[test]
fn a_run_that_fails_before_its_first_step_leaves_nothing_behind() {
    let path = fresh("nothing");
    drop(TraceWriter::create(&path, &json!({}), LineFormat::Jsonl).unwrap());
    assert!(!path.exists());
    std::fs::create_dir_all(&path).unwrap();
    drop(TraceWriter::create(&path, &json!({}), LineFormat::Jsonl).unwrap());
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn a_directory_that_holds_a_trace_is_refused_and_left_as_it_is() {
    let path = fresh("again");
    TraceWriter::create(&path, &json!({"run": 1}), LineFormat::Jsonl).unwrap().finish(&json!({})).unwrap();
    let error = TraceWriter::create(&path, &json!({"run": 2}), LineFormat::Jsonl).unwrap_err();
    assert!(matches!(&error, Error::HoldsTrace { path: p, .. } if **p == *path), "{error}");
    assert!(std::fs::read_to_string(path.join(CONFIG_FILE)).unwrap().contains("\"run\": 1"));
}

#[test]
fn what_is_no_directory_or_cant_be_made_is_refused_before_anything_is_written() {
    let path = fresh("file");
    std::fs::write(&path, "a file").unwrap();
    let error = TraceWriter::create(&path, &json!({}), LineFormat::Jsonl).unwrap_err();
    assert!(
        matches!(error, Error::NotADirectory { .. }) && error.to_string().contains(path.to_str().unwrap())
    );
    let error = TraceWriter::create(&path.join("below"), &json!({}), LineFormat::Jsonl).unwrap_err();
    assert!(matches!(error, Error::Unwritable { .. }) && error.to_string().contains("below"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(
        TraceWriter::create(&path, &json!([1]), LineFormat::Jsonl),
        Err(Error::ConfigNotAnObject)
    ));
    assert!(!path.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_there_is_no_summary() {
    let path = fresh("full");
    std::fs::create_dir_all(&path).unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let lines = LineWriter::over(path.join(STEPS_FILE), full);
    let directory = path.to_owned();
    let leftovers = Arc::new(Leftovers::none(&directory));
    let mut writer = TraceWriter {
        directory,
        lines,
        format: LineFormat::Jsonl,
        in_run: false,
        first_step: 0,
        dsa: None,
        tensors: None,
        tensors_left_out: 0,
        appends: false,
        rotation: None,
        _lock: None,
        leftovers,
    };
    writer.write(&json!({"step": 0})).unwrap();
    let error = writer.finish(&json!({})).unwrap_err().to_string();
    assert!(error.contains("trace_steps.jsonl") && error.contains("space"), "{error}");
    assert!(!path.join(SUMMARY_FILE).exists());
}
