//! Files and directories whose names are not UTF-8, which are legal on Linux.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::program::{Scratch, command};

/// `name` and a byte that is no UTF-8, in the directory of a test.
fn odd(scratch: &Scratch, name: &str) -> PathBuf {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0xff);
    Path::new(&scratch.path("")).join(OsString::from_vec(bytes))
}

fn run(arguments: &str, paths: &[(&str, &PathBuf)]) -> Output {
    let mut command = command(&arguments.split(' ').collect::<Vec<_>>());
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().unwrap()
}

#[track_caller]
fn done(arguments: &str, paths: &[(&str, &PathBuf)]) {
    let output = run(arguments, paths);
    assert_eq!(output.status.code(), Some(0), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

const SIM: &str = "replay --executor sim --workload";

#[test]
fn runs_and_the_files_they_are_made_of_may_have_any_name() {
    let scratch = Scratch::new("odd-names");
    let of = |name: &str| odd(&scratch, name);
    std::fs::write(of("trace"), "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:05,10,5\n")
        .unwrap();
    std::fs::write(of("text"), "Once upon a time there was a house. ".repeat(200)).unwrap();
    let out = of("run");
    done(&format!("{SIM} random --num-requests 2 --trace-steps"), &[("--out", &out)]);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert!(json["replay"]["out"].as_str().unwrap().ends_with("run\u{fffd}"), "{json}");
    done("report", &[("--out", &of("page")), ("--", &out)]);
    done("trace check", &[("--", &out)]);
    done(&format!("{SIM} azure"), &[("--path", &of("trace")), ("--out", &of("azure"))]);
    let ruler = "ruler --task niah_single_2 --length 256 --num-requests 1";
    done(&format!("{SIM} {ruler}"), &[("--haystack", &of("text")), ("--out", &of("ruler"))]);
    let real = "replay --workload random --num-requests 2 --input-len 4 --output-len 2 --threads 1";
    done(real, &[("--out", &of("real")), ("--output-json", &of("summary"))]);
    // A run is gone on with under the same name, and with the same files.
    std::fs::remove_file(out.join("summary.json")).unwrap();
    done(&format!("{SIM} random --num-requests 2 --trace-steps --resume"), &[("--out", &out)]);
}

#[test]
fn a_model_may_have_any_name() {
    let scratch = Scratch::new("odd-model");
    let model = odd(&scratch, "model");
    std::fs::create_dir(&model).unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/draft");
    for file in std::fs::read_dir(assets).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let generate = "generate --threads 1 --prompt hi --max-tokens 2";
    done(generate, &[("--model", &model), ("--draft", &model), ("--output-json", &odd(&scratch, "out"))]);
}

#[test]
fn a_text_that_is_not_utf8_is_refused_by_its_flag() {
    let path = OsString::from_vec(b"/tmp/\xff".to_vec());
    let text = OsStr::new("a\u{fffd}");
    for (arguments, flag) in [
        (vec!["--prompt", "?"], "--prompt"),
        (vec!["--output-json", "PATH", "--prompt=?"], "--prompt"),
        (vec!["--prompt", "hi", "--seed", "?"], "--seed"),
        (vec!["--prompt", "hi", "--stop", "?"], "--stop"),
    ] {
        let mut command = command(&["generate"]);
        for argument in arguments {
            let bytes = argument.replace('?', "a\u{1}").into_bytes();
            let bytes = bytes.into_iter().map(|byte| if byte == 1 { 0xff } else { byte }).collect();
            command.arg(if argument == "PATH" { path.clone() } else { OsString::from_vec(bytes) });
        }
        let output = command.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(
            told.contains(flag) && told.contains(text.to_str().unwrap()) && told.contains("UTF-8"),
            "{told}"
        );
    }
}
