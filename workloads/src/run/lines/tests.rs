use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{Leftovers, LineReader};
use super::*;

/// A directory that is there, and gone afterwards.
struct Fresh(PathBuf);

fn fresh(name: &str) -> Fresh {
    let path = std::env::temp_dir().join(format!("pagedraft-lines-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Fresh(path)
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const WRITTEN: [LineFormat; 2] = [LineFormat::Jsonl, LineFormat::JsonlZst];

fn open(path: &Path, format: LineFormat, begin: Begin) -> Result<LineWriter, Error> {
    LineWriter::open(path.to_owned(), format, begin, Arc::new(Leftovers::none(path)))
}

fn line(i: usize) -> Value {
    json!({"event": "step", "step": i, "pad": "x".repeat(i % 300), "numbers": [i, i * i, i / 3]})
}

fn write(path: &Path, format: LineFormat, begin: Begin, lines: std::ops::Range<usize>) -> Result<(), Error> {
    let mut writer = open(path, format, begin)?;
    for i in lines {
        writer.write(&line(i))?;
    }
    writer.close()
}

/// The lines of a file, and whether it is cut.
fn read(path: &Path, format: LineFormat) -> Result<(Vec<Value>, bool), Error> {
    let mut reader = LineReader::open(path, format)?;
    let mut lines = Vec::new();
    while let Some(line) = reader.next_line()? {
        lines.push(serde_json::from_slice(line).unwrap());
        assert_eq!(reader.number(), lines.len() as u64);
    }
    Ok((lines, reader.is_cut()))
}

fn lines(range: std::ops::Range<usize>) -> Vec<Value> {
    range.map(line).collect()
}

#[test]
fn what_is_written_is_read_in_every_format() {
    for format in WRITTEN {
        let root = fresh("read");
        let path = format.file(&root.0, "lines");
        write(&path, format, Begin::New, 0..4_000).unwrap();
        assert_eq!(read(&path, format).unwrap(), (lines(0..4_000), false), "{format}");
        assert!(open(&path, format, Begin::New).is_err(), "{format}: a file that is there is no new one");
    }
}

#[test]
fn a_file_cut_at_any_byte_is_readable_up_to_its_last_whole_lines_and_goes_on_behind_them() {
    for format in WRITTEN {
        let root = fresh("cut");
        let path = format.file(&root.0, "lines");
        // Three frames, where there are frames.
        let mut ends = Vec::new();
        for i in 0..3 {
            write(&path, format, Begin::Append, i * 5..i * 5 + 5).unwrap();
            ends.push(std::fs::metadata(&path).unwrap().len());
        }
        let bytes = std::fs::read(&path).unwrap();
        for length in ends[0] as usize..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let (there, cut) = read(&path, format).unwrap();
            let frames = ends.iter().filter(|end| **end <= length as u64).count();
            let whole_lines = bytes[..length].iter().filter(|byte| **byte == b'\n').count();
            let (most, whole) = match format {
                LineFormat::Jsonl => (whole_lines, bytes[length - 1] == b'\n'),
                _ => (frames * 5, ends.contains(&(length as u64))),
            };
            assert!(there.len() >= most && there == lines(0..there.len()), "{format}, {length} bytes");
            assert_eq!(cut, !whole, "{format}, {length} bytes");
            write(&path, format, Begin::Append, most..most + 2).unwrap();
            assert_eq!(read(&path, format).unwrap(), (lines(0..most + 2), false), "{format}, {length} bytes");
        }
    }
}

#[test]
fn a_repeated_file_is_compared_and_then_goes_on_to_the_same_lines() {
    for format in WRITTEN {
        let root = fresh("repeat");
        let path = format.file(&root.0, "lines");
        write(&path, format, Begin::Repeat, 0..3000).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        write(&path, format, Begin::Repeat, 0..5000).unwrap();
        assert_eq!(read(&path, format).unwrap(), (lines(0..5000), false), "{format}");
        // Stopped before it came to what is there: nothing is lost.
        let mut writer = open(&path, format, Begin::Repeat).unwrap();
        (0..100).for_each(|i| writer.write(&line(i)).unwrap());
        writer.leave().unwrap();
        assert_eq!(read(&path, format).unwrap(), (lines(0..5000), false), "{format}");
        let error = write(&path, format, Begin::Repeat, 0..4999).unwrap_err().to_string();
        assert!(error.contains("lines.jsonl") && error.contains("line 5000 is there"), "{error}");
        let mut writer = open(&path, format, Begin::Repeat).unwrap();
        (0..7).for_each(|i| writer.write(&line(i)).unwrap());
        writer.write(&json!({"event": "step", "step": "another"})).unwrap();
        let error = writer.close().unwrap_err().to_string();
        let told =
            error.contains("line 8 differs") && error.contains("another") && error.contains("\"step\":7");
        assert!(told && error.contains("lines.jsonl"), "{error}");
        assert_eq!(read(&path, format).unwrap(), (lines(0..5000), false), "{format}");
    }
}

#[test]
fn frames_reach_the_file_while_lines_are_few() {
    let root = fresh("frames");
    let path = LineFormat::JsonlZst.file(&root.0, "lines");
    let mut writer = open(&path, LineFormat::JsonlZst, Begin::New).unwrap();
    writer.write(&line(0)).unwrap();
    let mut waited = 0;
    while read(&path, LineFormat::JsonlZst).unwrap().0.is_empty() {
        std::thread::sleep(FLUSH_EVERY / 2);
        waited += 1;
        assert!(waited < 200, "never flushed");
    }
    writer.write(&line(1)).unwrap();
    drop(writer);
    assert_eq!(read(&path, LineFormat::JsonlZst).unwrap(), (lines(0..2), false));
}

#[test]
fn a_frame_that_is_damaged_is_an_error_that_names_the_file() {
    let root = fresh("damaged");
    let path = LineFormat::JsonlZst.file(&root.0, "lines");
    write(&path, LineFormat::JsonlZst, Begin::New, 0..2000).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let mut noticed = 0;
    for at in (0..bytes.len()).step_by(bytes.len() / 200) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        let mut reader = LineReader::open(&path, LineFormat::JsonlZst).unwrap();
        let mut last = reader.next_line().map(|line| line.is_some());
        while let Ok(true) = last {
            last = reader.next_line().map(|line| line.is_some());
        }
        if let Err(error) = last {
            noticed += 1;
            assert!(error.to_string().contains("lines.jsonl.zst"), "{error}");
        }
    }
    assert!(noticed > 150, "{noticed} of some 200 were noticed");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_of_a_later_line_and_memory_stays_bounded() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut writer = LineWriter::over("some/lines.jsonl".into(), full);
    let big = "x".repeat(1 << 20);
    let mut failed = None;
    for _ in 0..3 * (MOST_PENDING >> 20) {
        assert!(writer.shared.lock().pending.len() <= MOST_PENDING + (2 << 20));
        if let Err(error) = writer.write(&big) {
            failed = Some(error.to_string());
            break;
        }
    }
    let failed = failed.unwrap_or_else(|| panic!("a full disk went unnoticed"));
    assert!(failed.contains("some/lines.jsonl") && failed.contains("space"), "{failed}");
    assert!(writer.close().is_err());
}

#[test]
fn formats_have_the_names_of_their_files() {
    for format in LineFormat::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
        assert_eq!(serde_json::to_value(format).unwrap(), json!(format.to_string()));
    }
    assert!("zstd".parse::<LineFormat>().unwrap_err().contains("jsonl.zst"));
}
