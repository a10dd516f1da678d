//! The command line from outside: what it refuses, with which words and exit codes, and what it leaves behind.

use crate::program::{Run, Scratch, pagedraft};

/// Exit code 2, an error that has `words`, and no panic.
#[track_caller]
fn refused(run: &Run, words: &[&str]) {
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.starts_with("error: "), "{run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is not in {run:?}");
    }
    assert!(!run.stderr.contains("panicked"), "{run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
}

const GENERATE: [&str; 5] = ["generate", "--token-ids", "1,2,3", "--max-tokens", "2"];

fn generate(more: &[&str]) -> Run {
    pagedraft(&[&GENERATE[..], more].concat())
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    refused(&generate(&["--block-size", "17"]), &["17", "--block-size", "16, 32 and 64"]);
    refused(&generate(&["--temperature", "nan"]), &["temperature"]);
    refused(&generate(&["--temperature", "-0.5"]), &["temperature", "-0.5"]);
    refused(&generate(&["--temperature", "inf"]), &["temperature"]);
    refused(&generate(&["--top-p", "0"]), &["top_p", "0"]);
    refused(&generate(&["--top-p", "1.5"]), &["top_p", "1.5"]);
    refused(&generate(&["--top-p", "nan"]), &["top_p"]);
    refused(&generate(&["--min-p", "-1"]), &["min_p", "-1"]);
    refused(&generate(&["--top-k", "-2"]), &["top_k", "-2"]);
    refused(&generate(&["--max-tokens", "0"]), &["--max-tokens"]);
    refused(&generate(&["--threads", "0"]), &["--threads"]);
    refused(&generate(&["--num-blocks", "0"]), &["--num-blocks"]);
    refused(&generate(&["--kv-cache-memory", "12X"]), &["--kv-cache-memory", "12X"]);
    refused(&generate(&["--dtype", "int3"]), &["--dtype", "int3"]);
    refused(&generate(&["--isa", "mmx"]), &["--isa", "mmx"]);
    refused(&generate(&["--policy", "lottery"]), &["--policy", "lottery"]);
}

#[test]
fn what_this_build_does_not_have_is_refused_and_not_ignored() {
    refused(&generate(&["--scorer", "tree"]), &["--scorer", "tree"]);
    refused(&pagedraft(&["frobnicate"]), &["frobnicate"]);
    if !cfg!(feature = "train") {
        refused(
            &pagedraft(&["train", "lm", "--out", "x", "--text", "y"]),
            &["no trainer", "--features train"],
        );
    }
}

#[test]
fn a_prompt_comes_from_one_place() {
    refused(&generate(&["--prompt", "x"]), &["--prompt", "--token-ids"]);
    refused(&pagedraft(&["generate"]), &["--prompt"]);
    refused(&pagedraft(&["generate", "--prompt", ""]), &["--prompt", "empty"]);
    refused(&pagedraft(&["generate", "--token-ids", "1,x"]), &["--token-ids", "x"]);
    refused(&pagedraft(&["generate", "--token-ids", "1,-2"]), &["--token-ids"]);
}

#[test]
fn prompt_files_that_cant_be_read_are_named() {
    let scratch = Scratch::new("prompt-files");
    let missing = scratch.path("missing.txt");
    refused(&pagedraft(&["generate", "--prompt-file", &missing]), &["missing.txt", "No such file"]);
    refused(&pagedraft(&["generate", "--prompts", &missing]), &["missing.txt"]);
    refused(&pagedraft(&["generate", "--prompt-file", &scratch.path("")]), &["prompt-files"]);
    let latin = scratch.write("latin.txt", b"caf\xe9");
    refused(&pagedraft(&["generate", "--prompt-file", &latin]), &["latin.txt", "UTF-8", "byte 3"]);
    let empty = scratch.write("empty.txt", b"");
    refused(&pagedraft(&["generate", "--prompt-file", &empty]), &["empty.txt", "empty"]);
    let blank = scratch.write("blank.jsonl", b"\n\n");
    refused(&pagedraft(&["generate", "--prompts", &blank]), &["blank.jsonl", "no prompts"]);
}

#[test]
fn a_bad_line_of_prompts_is_named_by_file_and_number() {
    let scratch = Scratch::new("prompt-lines");
    let good = "{\"prompt_token_ids\": [1, 2]}\n\n";
    let bad = [
        ("{\"prompt\": \"x\"", "EOF"),
        ("[1, 2]", ""),
        ("{}", "neither prompt nor prompt_token_ids"),
        ("{\"prompt\": \"x\", \"prompt_token_ids\": [1]}", "both"),
        ("{\"prompt\": \"\"}", "empty"),
        ("{\"prompt_token_ids\": []}", "empty"),
        ("{\"prompt_token_ids\": [-1]}", "-1"),
        ("{\"prompt\": \"x\", \"temprature\": 1}", "temprature"),
        ("{\"prompt\": \"x\", \"temperature\": -1}", "temperature"),
        ("{\"prompt\": \"x\", \"top_p\": 0}", "top_p"),
        ("{\"prompt\": \"x\", \"max_tokens\": 0}", "max_tokens"),
        ("{\"prompt\": \"x\", \"n\": 0}", "n is 0"),
        ("{\"prompt\": \"x\", \"stop\": \"\"}", "stop"),
        ("{\"prompt\": \"x\", \"request_id\": \"0\"}", "line 1"),
    ];
    for (line, word) in bad {
        let file = scratch.write("bad.jsonl", format!("{good}{line}\n").as_bytes());
        refused(&pagedraft(&["generate", "--prompts", &file]), &["bad.jsonl:3", word]);
    }
}

#[test]
fn places_that_cant_be_written_are_refused_before_the_run() {
    let scratch = Scratch::new("places");
    let file = scratch.write("file", b"kept");
    let below = format!("{file}/out");
    refused(&generate(&["--output-json", &below]), &["file/out"]);
    refused(&generate(&["--output-json", &scratch.path("nowhere/out.json")]), &["nowhere/out.json"]);
    refused(&generate(&["--output-json", &scratch.path("")]), &["directory"]);
    refused(&generate(&["--trace-out", &file]), &["file", "not a directory"]);
    refused(&generate(&["--trace-out", &below]), &["file/out"]);
    let traced = scratch.write("traced/trace_steps.jsonl", b"{}\n");
    refused(&generate(&["--trace-out", &scratch.path("traced")]), &["traced", "holds a trace"]);
    assert_eq!(std::fs::read(&traced).unwrap(), b"{}\n");
    assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    assert_eq!(scratch.names(), ["file", "traced"], "nothing half-written");
}

#[test]
fn models_that_do_not_load_are_named() {
    let scratch = Scratch::new("models");
    let nowhere = scratch.path("nowhere");
    refused(&generate(&["--model", &nowhere]), &["nowhere"]);
    refused(&generate(&["--model", "builtin:nobody"]), &["builtin:nobody", "builtin:target"]);
    let output = scratch.path("out.json");
    let trace = scratch.path("trace");
    refused(&generate(&["--model", &nowhere, "--output-json", &output, "--trace-out", &trace]), &["nowhere"]);
    scratch.write("odd/config.json", b"{\"architectures\": [\"OddForCausalLM\"], \"model_type\": \"odd\"}");
    refused(&generate(&["--model", &scratch.path("odd")]), &["OddForCausalLM"]);
    assert_eq!(scratch.names(), ["odd"], "nothing half-written");
}

#[test]
fn files_that_are_no_whole_gguf_models_are_named_wherever_a_model_is_taken() {
    let scratch = Scratch::new("gguf");
    let text = scratch.write("text.txt", b"Once upon a time");
    let cut = scratch.write("cut.gguf", b"GGUF\x03\0\0\0\x01\0\0\0");
    let big = scratch.write("big.gguf", b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let empty = scratch.write("empty.gguf", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    for (file, word) in [
        (&text, "does not begin with GGUF"),
        (&cut, "cut short"),
        (&big, "big-endian"),
        (&empty, "general.architecture"),
    ] {
        let simulated =
            ["replay", "--workload", "random", "--num-requests", "1", "--executor", "sim", "--out"];
        let out = scratch.path("run");
        refused(&generate(&["--model", file]), &[file, word]);
        refused(&generate(&["--draft", file]), &[file, word, "--draft"]);
        refused(&pagedraft(&["serve", "--model", file]), &[file, word]);
        refused(&pagedraft(&[&simulated[..], &[&out, "--model", file]].concat()), &[file, word]);
    }
    assert_eq!(scratch.names(), ["big.gguf", "cut.gguf", "empty.gguf", "text.txt"], "nothing half-written");
}

#[test]
fn prompts_the_engine_can_never_serve_are_refused_and_leave_nothing() {
    let scratch = Scratch::new("never");
    let (output, trace) = (scratch.path("out.json"), scratch.path("trace"));
    let refused = |arguments: &[&str], words: &[&str]| {
        let out = ["--output-json", &output, "--trace-out", &trace, "--num-blocks", "64"];
        refused(&pagedraft(&[&["generate"], arguments, &out].concat()), words);
        assert!(scratch.names().is_empty(), "nothing half-written");
    };
    refused(&["--token-ids", "1,999999"], &["999999"]);
    let long = vec!["1"; 200].join(",");
    refused(&["--token-ids", &long, "--max-model-len", "128"], &["200", "128"]);
    let huge = vec!["1"; 64 * 16 + 1].join(",");
    refused(&["--token-ids", &huge], &["1025", "64"]);
    refused(
        &["--token-ids", &long, "--no-enable-chunked-prefill", "--max-num-batched-tokens", "100"],
        &["200", "100"],
    );
}

#[test]
fn a_trace_that_is_none_is_refused() {
    let scratch = Scratch::new("no-trace");
    refused(&pagedraft(&["trace", "check", &scratch.path("nowhere")]), &["nowhere"]);
    scratch.write("empty/config.json", b"{\"block_size\": 16}");
    refused(&pagedraft(&["trace", "check", &scratch.path("empty")]), &["trace_steps.jsonl"]);
}

#[test]
fn help_names_every_command_and_flag() {
    let help = pagedraft(&["--help"]);
    assert_eq!(help.code, Some(0));
    for command in ["bench", "generate", "trace", "train"] {
        assert!(help.stdout.contains(command), "{help:?}");
    }
    let flags = pagedraft(&["bench", "latency", "--help"]).stdout;
    let names = "--model --input-len --output-len --batch-size --num-iters-warmup --num-iters --block-size --num-blocks \
        --max-num-seqs --max-num-batched-tokens --max-model-len --enable-prefix-caching --no-enable-prefix-caching \
        --enable-chunked-prefill --no-enable-chunked-prefill --dtype --threads --seed --output-json --trace-out --load-format";
    for name in names.split_whitespace() {
        assert!(flags.contains(name), "{name}");
    }
}
