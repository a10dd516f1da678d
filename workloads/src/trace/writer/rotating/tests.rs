use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::trace::{
    DSA_STEM, DsaFormat, DsaRecords, DsaRow, DsaRows, DsaScores, DsaSelection, DsaToken, DsaTraceConfig,
    TENSORS_STEM, TensorLines, TensorRecord, read_compact, read_steps,
};

const BYTES: u64 = 2000;
const STEPS: u64 = 120;

/// A directory of a test's own, gone afterwards.
struct Fresh(PathBuf);

impl Fresh {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("pagedraft-rotating-{}-{name}", std::process::id())))
    }

    /// The names of the files whose names begin with `stem`, and their bytes.
    fn files(&self, stem: &str) -> Vec<(String, u64)> {
        let files = std::fs::read_dir(&self.0).unwrap().map(|file| file.unwrap());
        let files =
            files.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len()));
        let mut files: Vec<_> = files.filter(|(name, _)| name.starts_with(stem)).collect();
        files.sort();
        files
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config() -> DsaTraceConfig {
    DsaTraceConfig {
        rows: DsaRows::All,
        sample_rate: 1.0,
        prefix_key_tokens: 256,
        store_scores: false,
        index_topk: 4,
        layers: 2,
        indexer_layers: vec![0],
        latent_bytes: 4,
    }
}

/// Opens a trace that is cut every `bytes` bytes.
fn open(directory: &Path, format: DsaFormat, bytes: u64) -> TraceWriter {
    let config = json!({"dsa": self::config()});
    let mut writer = TraceWriter::create_rotating(directory, &config, LineFormat::Jsonl, bytes).unwrap();
    writer.keep_dsa(&self::config(), 16, format).unwrap();
    writer.keep_tensors().unwrap();
    writer
}

/// Writes a step with its records: a token of each of two requests, and an event of tensors.
fn write(writer: &mut TraceWriter, step: u64) {
    writer.write(&json!({"event": "step", "step": step, "pad": "x".repeat(40)})).unwrap();
    for request in ["a", "b"] {
        let position = step as u32 + 3;
        let first = position % 3;
        let token = DsaToken {
            request_id: request.to_owned(),
            prefix_key: format!("key of {request}"),
            step,
            step_idx: position,
            row: DsaRow::Decode,
            table: (0..=position / 16).map(|place| 7 * place + 1).collect(),
            selections: vec![DsaSelection {
                positions: vec![first, first + 1, position],
                scores: Some(DsaScores { min: 0.5, mean: 1.0, max: step as f32 }),
                ..DsaSelection::default()
            }],
            ..DsaToken::default()
        };
        writer.write_dsa(&token).unwrap();
    }
    let event = TensorRecord { event: "ATTN_ENTRY".to_owned(), step, ..TensorRecord::default() };
    writer.write_tensors(&event, &[]).unwrap();
}

fn records(directory: &Path) -> Vec<Value> {
    let mut lines = DsaRecords::open(directory).unwrap().unwrap().into_lines();
    let mut made = Vec::new();
    while let Some(line) = lines.next_line().unwrap() {
        made.push(serde_json::from_slice(line).unwrap());
    }
    let mut records = DsaRecords::open(directory).unwrap().unwrap();
    let read = std::iter::from_fn(|| records.next_record().unwrap());
    let read: Vec<Value> = read
        .map(|record| {
            let mut value = serde_json::to_value(record).unwrap();
            value["event"] = "dsa_topk".into();
            value
        })
        .collect();
    assert_eq!(read, made);
    made
}

fn steps(directory: &Path) -> (Vec<u64>, Vec<u64>) {
    let mut lines = read_steps(directory).unwrap();
    let mut steps = Vec::new();
    while let Some(line) = lines.next_line().unwrap() {
        let line: Value = serde_json::from_slice(line).unwrap();
        steps.extend((line["event"] == "step").then(|| line["step"].as_u64().unwrap()));
    }
    let mut tensors = TensorLines::open(directory).unwrap().unwrap();
    let events = std::iter::from_fn(|| tensors.next_event().unwrap()).map(|event| event.step).collect();
    (steps, events)
}

#[test]
fn records_beside_the_steps_are_cut_by_their_size_and_read_as_one() {
    for (format, extension) in [(DsaFormat::Compact, "bin"), (DsaFormat::Jsonl, "jsonl")] {
        let (cut, whole) =
            (Fresh::new(&format!("cut-{extension}")), Fresh::new(&format!("whole-{extension}")));
        for (directory, bytes) in [(&cut, BYTES), (&whole, u64::MAX)] {
            let mut writer = open(&directory.0, format, bytes);
            (0..STEPS).for_each(|step| write(&mut writer, step));
            writer.finish(&json!({})).unwrap();
        }
        let expected = records(&whole.0);
        assert_eq!(expected.len() as u64, STEPS * 4, "two layers of two tokens a step");
        assert!(records(&cut.0) == expected, "{extension}");
        assert_eq!(steps(&cut.0), steps(&whole.0));
        for stem in [STEPS_STEM, DSA_STEM, TENSORS_STEM] {
            assert_eq!(whole.files(stem).len(), 1, "{stem}");
            let files = cut.files(stem);
            assert!(files.len() > 3, "{files:?}");
            let extension = if stem == DSA_STEM { extension } else { "jsonl" };
            assert_eq!(files[0].0, format!("{stem}.000001.{extension}"));
            // A file that is full was not full before its last token, which has four records at most.
            let full = &files[..files.len() - 1];
            assert!(full.iter().all(|(_, bytes)| (BYTES..2 * BYTES).contains(bytes)), "{files:?}");
        }
        if format == DsaFormat::Compact {
            let second = cut.0.join(format!("{DSA_STEM}.000002.bin"));
            let mut tokens = 0;
            let read = read_compact(&second, |_| {
                tokens += 1;
                true
            });
            assert_eq!(read.unwrap(), std::fs::metadata(&second).unwrap().len());
            assert!(tokens > 1, "a file can be read without those before it");
        }
    }
}

#[test]
fn a_trace_that_is_gone_on_with_has_each_record_once_however_many_steps_were_lost() {
    for (format, extension) in [(DsaFormat::Compact, "bin"), (DsaFormat::Jsonl, "jsonl")] {
        let whole = Fresh::new(&format!("unbroken-{extension}"));
        let mut writer = open(&whole.0, format, u64::MAX);
        (0..STEPS).for_each(|step| write(&mut writer, step));
        drop(writer);
        for lost_files in 0..3 {
            let broken = Fresh::new(&format!("broken-{lost_files}-{extension}"));
            let mut writer = open(&broken.0, format, BYTES);
            (0..STEPS / 2).for_each(|step| write(&mut writer, step));
            // Without an end, as a process that was killed leaves it.
            drop(writer);
            for (name, _) in broken.files(STEPS_STEM).into_iter().rev().take(lost_files) {
                std::fs::remove_file(broken.0.join(name)).unwrap();
            }
            for stem in [DSA_STEM, TENSORS_STEM] {
                let (name, bytes) = broken.files(stem).pop().unwrap();
                let file = std::fs::OpenOptions::new().write(true).open(broken.0.join(name)).unwrap();
                file.set_len(bytes.saturating_sub(3)).unwrap();
            }
            let mut writer = open(&broken.0, format, BYTES);
            let first = writer.first_step();
            assert_eq!(first == STEPS / 2, lost_files == 0, "{first}");
            (first..STEPS).for_each(|step| write(&mut writer, step));
            drop(writer);
            let (steps, events) = steps(&broken.0);
            assert_eq!(steps, (0..STEPS).collect::<Vec<_>>());
            // What was torn off belongs to the last step before, unless the run goes on with that one.
            let torn = lost_files == 0;
            let lacking = |step: &u64| torn && *step == STEPS / 2 - 1;
            assert_eq!(events, (0..STEPS).filter(|step| !lacking(step)).collect::<Vec<_>>());
            let expected = self::records(&whole.0);
            let records = self::records(&broken.0);
            let missing: Vec<&Value> = expected.iter().filter(|record| !records.contains(record)).collect();
            assert!(missing.iter().all(|record| lacking(&record["step"].as_u64().unwrap())), "{missing:?}");
            assert!(records.iter().all(|record| expected.contains(record)), "{lost_files}");
            assert_eq!(records.len() + missing.len(), expected.len(), "no record is there twice");
            assert!(records.is_sorted_by_key(|record| record["step"].as_u64()));
        }
    }
}

#[test]
fn a_trace_is_not_gone_on_with_in_another_format_of_its_records() {
    let directory = Fresh::new("format");
    let mut writer = open(&directory.0, DsaFormat::Compact, BYTES);
    (0..STEPS).for_each(|step| write(&mut writer, step));
    drop(writer);
    std::fs::remove_file(directory.0.join("dsa_topk.bin")).unwrap();
    let config = json!({"dsa": self::config()});
    let made = TraceWriter::create_rotating(&directory.0, &config, LineFormat::Jsonl, BYTES);
    let refused = made.unwrap().keep_dsa(&self::config(), 16, DsaFormat::Jsonl).unwrap_err().to_string();
    assert!(refused.contains("dsa_topk.000001.bin") && refused.contains("--trace-dsa-format"), "{refused}");
}
