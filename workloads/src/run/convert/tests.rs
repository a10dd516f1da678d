use std::path::PathBuf;

use super::*;

struct Fresh(PathBuf);

fn fresh(name: &str) -> Fresh {
    let path = std::env::temp_dir().join(format!("pagedraft-convert-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Fresh(path)
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn formats() -> Vec<LineFormat> {
    LineFormat::ALL.into_iter().filter(|format| format.check().is_ok()).collect()
}

/// Lines of every odd kind, then steps enough for several frames and row groups.
fn lines(steps: usize) -> String {
    let mut text = [
        r#"{"event":"setup","draft":null,"step":"not a number","rows":7}"#,
        r#"{ "event" : "step", "step": 18446744073709551615, "spaces": 1.50e2 }"#,
        r#"{"event":"step","step":0,"rows":[],"metadata":{"slot_mapping":[],"block_tables":[[],null,[1]]},"pool":{}}"#,
        "", "no JSON at all", "[1, 2]", "null", r#"{"event":"ünïcode","\u0041":"\ud83d\ude00"}"#, "",
    ]
    .join("\n");
    text.push('\n');
    for i in 0..steps {
        let numbers: Vec<usize> = (0..i % 97).map(|j| i * j).collect();
        let table = format!("[{:?},null,[]]", numbers);
        text.push_str(&format!(
            r#"{{"event":"step","step":{i},"mode":"eager","time_us":{{"schedule":1.5,"metadata":2.0}},"rows":[{{"request_id":"{i}","kind":"decode","num_computed":{i},"num_new":1}},{{"request_id":"b"}}],"input_tokens":{numbers:?},"metadata":{{"slot_mapping":[-1,{i}],"block_tables":{table}}},"outcome":[{{"token_ids":{numbers:?},"finish_reason":null}}]}}"#,
        ));
        text.push('\n');
    }
    text
}

#[test]
fn lines_are_the_same_bytes_after_any_number_of_conversions() {
    let root = fresh("formats");
    let path = |i: usize, format: LineFormat| format.file(&root.0, &format!("lines{i}"));
    let text = lines(2_000);
    assert!(text.len() > 1 << 20, "several row groups: {}", text.len());
    let (mut from, mut format) = (path(0, LineFormat::Jsonl), LineFormat::Jsonl);
    std::fs::write(&from, &text).unwrap();
    let others = formats().into_iter().skip(1);
    for (i, next) in others.clone().chain(others.rev()).chain([LineFormat::Jsonl]).enumerate() {
        let to = path(i + 1, next);
        let mut reader = LineReader::open(&from, format).unwrap();
        assert_eq!(
            convert_lines(&mut reader, &to, next).unwrap(),
            text.lines().count() as u64,
            "{format} to {next}"
        );
        (from, format) = (to, next);
    }
    assert!(std::fs::read_to_string(&from).unwrap() == text, "jsonl -> .. -> jsonl");
}

#[test]
fn no_lines_are_no_lines_in_any_format() {
    let root = fresh("empty");
    for format in formats() {
        let (from, to) = (LineFormat::Jsonl.file(&root.0, "none"), format.file(&root.0, "made"));
        std::fs::write(&from, "").unwrap();
        let mut reader = LineReader::open(&from, LineFormat::Jsonl).unwrap();
        assert_eq!(convert_lines(&mut reader, &to, format).unwrap(), 0);
        let mut reader = LineReader::open(&to, format).unwrap();
        assert_eq!(reader.next_line().unwrap(), None, "{format}");
        assert!(!reader.is_cut(), "{format}");
    }
}

#[test]
fn a_conversion_that_fails_leaves_no_file() {
    let root = fresh("fails");
    let from = LineFormat::JsonlZst.file(&root.0, "lines");
    std::fs::write(&from, "no frame at all, and long enough for a header").unwrap();
    for format in formats() {
        let to = format.file(&root.0, "made");
        let mut reader = LineReader::open(&from, LineFormat::JsonlZst).unwrap();
        let error = convert_lines(&mut reader, &to, format).unwrap_err().to_string();
        assert!(error.contains("lines.jsonl.zst"), "{error}");
    }
    assert_eq!(std::fs::read_dir(&root.0).unwrap().count(), 1);
}

#[cfg(feature = "parquet")]
#[test]
fn a_parquet_file_that_is_none_or_damaged_is_an_error_that_names_it() {
    let root = fresh("parquet");
    let (from, path) = (LineFormat::Jsonl.file(&root.0, "lines"), LineFormat::Parquet.file(&root.0, "lines"));
    std::fs::write(&from, lines(40)).unwrap();
    convert_lines(&mut LineReader::open(&from, LineFormat::Jsonl).unwrap(), &path, LineFormat::Parquet)
        .unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let mut reader = LineReader::open(&path, LineFormat::Parquet)?;
        while reader.next_line()?.is_some() {}
        Ok::<_, Error>(reader.number())
    };
    assert_eq!(read(&bytes).unwrap(), lines(40).lines().count() as u64);
    for length in (0..bytes.len()).step_by(bytes.len() / 100) {
        let error = read(&bytes[..length]).unwrap_err().to_string();
        assert!(error.contains("lines.parquet"), "{error}");
    }
    // A flipped bit is an error or not noticed; it is no panic.
    for at in (0..bytes.len()).step_by(5) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        if let Err(error) = read(&bytes) {
            assert!(error.to_string().contains("lines.parquet"), "{error}");
        }
    }
}
