//! `--prompts` and other files of JSON: an error names the line, the field, what was found and what was expected.

use crate::program::{Scratch, pagedraft};

#[track_caller]
fn refused(arguments: &[&str], words: &[&str]) {
    let run = pagedraft(arguments);
    assert_eq!(run.code, Some(2), "{arguments:?}: {run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "{word:?}: {run:?}");
    }
    assert!(!run.stderr.contains("untagged") && !run.stderr.contains("at line 1"), "{run:?}");
}

#[test]
fn a_prompt_of_the_wrong_kind_is_told_by_line_and_field() {
    let scratch = Scratch::new("prompts");
    for (line, what) in [
        (
            r#"{"prompt":"c","request_id":-1}"#,
            "`request_id`: expected a text or a whole number from 0 on, found -1",
        ),
        (
            r#"{"prompt":"c","request_id":true}"#,
            "`request_id`: expected a text or a whole number from 0 on, found true",
        ),
        (r#"{"prompt":"c","stop":5}"#, "`stop`: expected a text or a list of texts, found 5"),
        (r#"{"prompt":"c","stop":["a",1]}"#, "`stop[1]`: expected a text, found 1"),
        (r#"{"prompt":"c","temperature":"0.5"}"#, "`temperature`: expected a number, found the text \"0.5\""),
        (r#"{"prompt":["c"]}"#, "`prompt`: expected a text, found a list"),
        (
            r#"{"prompt_token_ids":[1,-2]}"#,
            "`prompt_token_ids[1]`: expected a whole number from 0 to 4294967295, found -2",
        ),
        (r#"{"prompt":"c","arrival_step":1.5}"#, "`arrival_step`: expected a whole number"),
        (r#"{"prompt":"c","promt":1}"#, "`promt` is no field that is known here"),
        (r#"{"prompt":"c","prompt":"d"}"#, "`prompt` is given twice"),
        (r#"{"prompt":"c""#, "it is not JSON"),
    ] {
        let text = format!("{{\"prompt\":\"a\"}}\n\n{line}\n");
        let path = scratch.write("p.jsonl", text.as_bytes());
        refused(&["generate", "--prompts", &path], &[&format!("{path}:3: "), what]);
    }
}

#[test]
fn a_workload_and_a_configuration_of_the_wrong_kind_are_told_by_line_and_field() {
    let scratch = Scratch::new("stated");
    let good =
        scratch.write("good.json", b"{\"requests\": [{\"id\": 1, \"prompt_len\": 3, \"output_len\": 2}]}");
    let config = scratch.write("config.json", b"{}");
    let out = scratch.path("out");
    let run = |workload: &str, config: &str, words: &[&str]| {
        let files = ["--workload", workload, "--config", config, "--trace-out", &out];
        refused(&[&["bench", "scheduler"], &files[..]].concat(), words);
    };
    for (from, to, what) in [
        ("3", "-3", ":3: `requests[0].prompt_len`: expected a whole number from 0 to 4294967295, found -3"),
        (
            "2",
            "\"2\"",
            ":4: `requests[0].output_len`: expected a whole number from 0 to 4294967295, found the text \"2\"",
        ),
        ("\"id\"", "\"name\"", ":2: `requests[0].id` is missing"),
    ] {
        let lines = "{\"requests\": [\n {\"id\": 1,\n  \"prompt_len\": 3,\n  \"output_len\": 2}]}";
        let path = scratch.write("w.json", lines.replacen(from, to, 1).as_bytes());
        run(&path, &config, &[&format!("{path}{what}")]);
    }
    let path = scratch.write("c.json", b"{\n \"block_size\": 16,\n \"policy\": \"last\"\n}");
    run(&good, &path, &[&format!("{path}:3: `policy`: expected"), "`fcfs`", "found the text `last`"]);
}
