//! Files that a run is made of.

use super::{done, replay};
use crate::program::Scratch;

#[test]
fn a_broken_file_is_told_by_name_and_line_before_anything_runs() {
    let scratch = Scratch::new("replay-broken");
    let head = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,37,4\n";
    let cut = scratch.write("cut.csv", format!("{head}2023-11-16 18:15:47.6805900,3").as_bytes());
    let negative =
        scratch.write("negative.csv", format!("{head}2023-11-16 18:15:47.6805900,-3,4\n").as_bytes());
    let empty = scratch.write("empty.csv", b"");
    for executor in ["real", "sim"] {
        for (file, told) in [(&cut, "cut.csv:3"), (&negative, "negative.csv:3"), (&empty, "empty.csv")] {
            let run = replay(
                &scratch.path("run"),
                &["--workload", "azure", "--path", file, "--executor", executor],
            );
            assert_eq!(run.code, Some(2), "{file}: {}", run.stderr);
            assert!(run.stderr.contains(told), "{}", run.stderr);
            assert_eq!(scratch.names(), ["cut.csv", "empty.csv", "negative.csv"]);
        }
    }
}

#[test]
fn files_that_samples_are_made_of_are_known_by_what_is_in_them() {
    let scratch = Scratch::new("replay-haystack");
    let arguments = |essay: &str| {
        std::fs::write(scratch.path("essay.txt"), essay.repeat(200)).unwrap();
        let mut all = vec!["--workload", "ruler", "--task", "niah_single_2", "--length", "512"];
        all.extend(["--num-requests", "1", "--haystack"]);
        all.into_iter().map(str::to_owned).chain([scratch.path("essay.txt")]).collect::<Vec<_>>()
    };
    let run = |arguments: &[String], more: &[&str]| {
        let all: Vec<&str> = arguments.iter().map(String::as_str).chain(["--executor", "sim"]).collect();
        replay(&scratch.path("run"), &[&all[..], more].concat())
    };
    done(&run(&arguments("The sea is wide. "), &[]));
    let haystack = &scratch.json("run/config.json")["replay"]["dataset"]["ruler"]["haystack"];
    assert_eq!((&haystack["name"], &haystack["bytes"]), (&"essay.txt".into(), &3400.into()));
    let other = run(&arguments("The sea is deep. "), &["--resume"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("ruler.haystack.sha256"), "{}", other.stderr);
}
