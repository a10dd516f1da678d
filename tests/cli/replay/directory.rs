//! What a run leaves, and what it finds.

use super::{done, replay};
use crate::program::Scratch;

#[test]
fn a_directory_that_holds_a_run_is_not_written_over() {
    let scratch = Scratch::new("replay-twice");
    let arguments = ["--workload", "random", "--num-requests", "3", "--executor", "sim"];
    done(&replay(&scratch.path("run"), &arguments));
    let before = scratch.read("run/requests.jsonl");
    let again = replay(&scratch.path("run"), &arguments);
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("--resume"), "{}", again.stderr);
    let finished =
        replay(&scratch.path("run"), &["--resume"].iter().chain(&arguments).copied().collect::<Vec<_>>());
    assert_eq!(finished.code, Some(2));
    assert!(finished.stderr.contains("finished"), "{}", finished.stderr);
    assert_eq!(scratch.read("run/requests.jsonl"), before);
}

#[test]
fn output_json_is_a_copy_of_the_summary() {
    let scratch = Scratch::new("replay-output-json");
    let copy = scratch.path("copy.json");
    let arguments =
        ["--workload", "random", "--num-requests", "3", "--executor", "sim", "--output-json", &copy];
    done(&replay(&scratch.path("run"), &arguments));
    assert_eq!(scratch.read("copy.json"), scratch.read("run/summary.json"));
    let arguments =
        ["--workload", "random", "--num-requests", "3", "--executor", "sim", "--output-json", "-"];
    let run = replay(&scratch.path("other"), &arguments);
    assert_eq!(run.stdout, scratch.read("other/summary.json"));
}
