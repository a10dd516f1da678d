//! OpenAI's own Python client against the server. The test is skipped where Python or the package `openai` is missing; `.ci/run` installs it.

use std::path::Path;
use std::process::Command;

use crate::process::Process;
use crate::program::{Scratch, pagedraft};

const PROMPTS: &str = r#"{"request_id": "greedy", "prompt": "The king said to the", "max_tokens": 40, "temperature": 0, "ignore_eos": true}
{"request_id": "drawn", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0.9, "top_p": 0.9, "seed": 5, "ignore_eos": true}
"#;

/// A Python that has the package.
fn python() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = root.join("target/openai/bin/python").to_string_lossy().into_owned();
    let has = |python: &String| {
        let imported = Command::new(python).args(["-c", "import openai"]).output();
        imported.is_ok_and(|imported| imported.status.success())
    };
    [installed, "python3".to_owned()].into_iter().find(has)
}

#[test]
fn the_client_of_openai_gets_the_tokens_of_generate_and_its_own_exceptions() {
    let Some(python) = python() else {
        eprintln!("skipped: no Python with the package openai (.ci/run installs it)");
        return;
    };
    let scratch = Scratch::new("openai-client");
    let prompts = scratch.write("prompts.jsonl", PROMPTS.as_bytes());
    let expected = scratch.path("expected.jsonl");
    let generated =
        pagedraft(&["generate", "--threads", "1", "--prompts", &prompts, "--output-json", &expected]);
    assert_eq!(generated.code, Some(0), "{}", generated.stderr);
    let server = Process::start(&["--api-key", "secret"]);
    let full = Process::start(&["--api-key", "secret", "--max-queue", "0"]);
    let url = |server: &Process| format!("http://{}/v1", server.address);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client/check.py");
    let checked =
        Command::new(python).arg(script).args([url(&server), url(&full), expected]).output().unwrap();
    let told = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{told}");
    eprint!("{}", String::from_utf8_lossy(&checked.stdout));
}
