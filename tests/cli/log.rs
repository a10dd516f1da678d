//! What the engine says about itself: with `RUST_LOG` on standard error, without it nothing.

use crate::program::{Run, Scratch, command};

const REQUESTS: &[u8] = br#"{"request_id": "ask-one", "prompt": "The old man", "max_tokens": 8}
{"request_id": "ask-two", "prompt": "The sea was", "max_tokens": 40}
{"request_id": "ask-three", "prompt": "And then she", "max_tokens": 40}
"#;

/// Generates for the requests, under this value of `RUST_LOG`.
fn generate(scratch: &Scratch, filter: Option<&str>, more: &[&str]) -> Run {
    let prompts = scratch.write("requests.jsonl", REQUESTS);
    let mut command = command(&[&["generate", "--prompts", &prompts][..], more].concat());
    if let Some(filter) = filter {
        command.env("RUST_LOG", filter);
    }
    let output = command.output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The lines of standard error that hold all of `words`.
fn lines(run: &Run, words: &[&str]) -> usize {
    run.stderr.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

#[test]
fn at_debug_each_request_is_told_and_the_output_is_the_same() {
    let scratch = Scratch::new("log-debug");
    let (quiet, told) = (generate(&scratch, None, &[]), generate(&scratch, Some("debug"), &[]));
    assert_eq!((quiet.code, told.code), (Some(0), Some(0)), "{told:?}");
    assert_eq!(quiet.stdout, told.stdout);
    for request in ["ask-one", "ask-two", "ask-three"] {
        let name = format!("request=\"{request}\"");
        assert_eq!(lines(&told, &["DEBUG", "request submitted", &name]), 1, "{}", told.stderr);
        assert_eq!(lines(&told, &["DEBUG", "request ended", &name, "reason="]), 1, "{}", told.stderr);
    }
    assert_eq!(lines(&told, &["INFO", "engine opened", "builtin:target"]), 1, "{}", told.stderr);
    assert_eq!(lines(&told, &["checkpoint opened"]), 1, "{}", told.stderr);
    assert_eq!(lines(&told, &["TRACE"]), 0, "{}", told.stderr);
}

#[test]
fn without_the_variable_or_with_an_empty_one_nothing_is_told() {
    let scratch = Scratch::new("log-off");
    for filter in [None, Some(""), Some("off")] {
        let run = generate(&scratch, filter, &[]);
        assert_eq!(run.code, Some(0));
        // The one line that the command has always ended with.
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        assert_eq!(lines(&run, &["prompt tokens", "generated in"]), 1, "{}", run.stderr);
    }
}

#[test]
fn at_trace_every_step_is_told_and_a_preemption_by_its_request() {
    let scratch = Scratch::new("log-trace");
    let small = ["--num-blocks", "4", "--block-size", "16", "--max-tokens", "40"];
    let run = generate(&scratch, Some("pagedraft=trace"), &small);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(lines(&run, &["TRACE", "step=0", "rows="]) == 1, "{}", run.stderr);
    assert!(lines(&run, &["DEBUG", "request preempted", "request=\"ask-three\""]) > 0, "{}", run.stderr);
    assert!(lines(&run, &["DEBUG", "no graph, ran eagerly", "reason="]) > 0, "{}", run.stderr);
}

#[test]
fn a_filter_that_cannot_be_read_is_refused_by_the_variable() {
    let scratch = Scratch::new("log-wrong");
    let run = generate(&scratch, Some("pagedraft=loud"), &[]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("RUST_LOG is \"pagedraft=loud\""), "{}", run.stderr);
    assert!(run.stderr.contains("hint: set it to error, warn"), "{}", run.stderr);
}
