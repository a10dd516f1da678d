//! Speculation from the command line: what it refuses, and that nothing it is told changes a token.

use serde_json::Value;

use crate::program::{Run, Scratch, pagedraft};

#[track_caller]
fn refused(run: &Run, words: &[&str]) {
    assert_eq!(run.code, Some(2), "{run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is not in {run:?}");
    }
    assert!(!run.stderr.contains("panicked"), "{run:?}");
}

/// A directory with a small `config.json`.
fn model(at: &Scratch, name: &str, vocab: u32, longest: u32) -> String {
    model_of(at, name, "Llama", vocab, longest)
}

fn model_of(at: &Scratch, name: &str, family: &str, vocab: u32, longest: u32) -> String {
    let dir = at.path(name);
    std::fs::create_dir_all(&dir).unwrap();
    let config = format!(
        r#"{{"architectures": ["{family}ForCausalLM"], "vocab_size": {vocab}, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": {longest},
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0}}"#
    );
    std::fs::write(std::path::Path::new(&dir).join("config.json"), config).unwrap();
    dir
}

fn dummy(target: &str, draft: &str, more: &[&str]) -> Run {
    let line =
        ["generate", "--load-format", "dummy", "--token-ids", "1,2,3", "--model", target, "--draft", draft];
    pagedraft(&[&line[..], more].concat())
}

#[test]
fn a_draft_that_does_not_go_with_its_target_is_refused() {
    let at = Scratch::new("draft");
    let target = model(&at, "target", 100, 256);
    let other = model_of(&at, "other", "Mistral", 101, 256);
    refused(
        &dummy(&target, &other, &[]),
        &["--draft", "other", "101", "100", "same family", "tokenizer.json"],
    );
    let far = model(&at, "far", 1125, 256);
    refused(&dummy(&target, &far, &[]), &["--draft", "far", "1125", "100", "same family"]);
    let short = model(&at, "short", 100, 128);
    refused(&dummy(&target, &short, &[]), &["--draft", "short", "128", "256", "--max-model-len 128"]);
    let run = dummy(&target, &short, &["--max-model-len", "128", "--max-tokens", "4", "--ignore-eos"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    refused(&dummy(&target, "/no/such/directory", &[]), &["/no/such/directory"]);
    refused(&dummy(&target, "builtin:nobody", &[]), &["builtin:nobody", "builtin:draft"]);
    refused(&dummy(&target, "synthetic:2", &[]), &["--draft", "0 to 1"]);
    refused(&dummy(&target, "synthetic", &[]), &["synthetic:RATE"]);
}

#[test]
fn a_draft_that_differs_from_its_target_in_padding_alone_changes_no_token_and_its_drafts_are_accepted() {
    let at = Scratch::new("padding");
    let sizes =
        [("less", 96), ("same", 100), ("more", 104)].map(|(name, vocab)| model(&at, name, vocab, 256));
    let greedy = ["--temperature", "0"];
    let sampled = ["--temperature", "0.9", "--top-p", "0.95", "--seed", "5"];
    let line = ["generate", "--load-format", "dummy", "--token-ids", "1,2,3", "--max-tokens", "60"];
    let of = |target: &str, more: &[&str]| -> Value {
        let fixed = ["--ignore-eos", "--output-json", "-", "--model", target];
        let run = pagedraft(&[&line[..], &fixed, more].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        serde_json::from_str(&run.stdout).unwrap()
    };
    for target in &sizes {
        for sampling in [&greedy[..], &sampled] {
            let plain = of(target, sampling)["token_ids"].clone();
            for draft in sizes.iter().filter(|draft| *draft != target) {
                let speculation = ["--draft", draft, "--num-speculative-tokens", "3"];
                let with = of(target, &[sampling, &speculation].concat());
                assert_eq!(with["token_ids"], plain, "{target}, {draft}, {sampling:?}");
                let accepted = with["num_accepted"].as_u64().unwrap();
                assert!(accepted > 10, "{target}, {draft}, {sampling:?}: {accepted} accepted");
                for acceptance in ["rejection", "typical"] {
                    let more = [sampling, &speculation, &["--acceptance", acceptance]].concat();
                    let with = of(target, &more);
                    assert_eq!(
                        with["token_ids"].as_array().unwrap().len(),
                        60,
                        "{target}, {draft}, {acceptance}"
                    );
                    assert!(with["num_accepted"].as_u64().unwrap() > 10, "{target}, {draft}, {acceptance}");
                    if sampling == &greedy[..] {
                        assert_eq!(with["token_ids"], plain, "{target}, {draft}, {acceptance}");
                    }
                }
            }
        }
    }
}

#[test]
fn numbers_out_of_range_are_refused_by_flag() {
    let generate = |more: &[&str]| pagedraft(&[&["generate", "--token-ids", "1,2"], more].concat());
    refused(&generate(&["--num-speculative-tokens", "many"]), &["--num-speculative-tokens", "auto"]);
    refused(&generate(&["--num-speculative-tokens", "65"]), &["--num-speculative-tokens", "64"]);
    refused(&generate(&["--scorer", "tree"]), &["--scorer", "mqa", "batch-expansion"]);
    refused(&generate(&["--acceptance", "always"]), &["--acceptance", "coupled", "rejection", "typical"]);
    refused(&generate(&["--ngram-min", "0"]), &["--ngram-min"]);
    refused(&generate(&["--ngram-min", "5", "--ngram-max", "2"]), &["--ngram-min 5", "--ngram-max 2"]);
    refused(&generate(&["--draft", "ngram", "--draft-cost", "0.5"]), &["--draft-cost"]);
    refused(&generate(&["--draft-cost", "-1", "--draft", "synthetic:0.5"]), &["--draft-cost"]);
    refused(&generate(&["--draft", "suffix:many"]), &["--draft", "suffix:TOKENS", "suffix:100000"]);
    refused(
        &generate(&["--draft", "suffix:100", "--acceptance", "rejection"]),
        &["rejection", "--draft suffix", "--acceptance coupled"],
    );
    refused(&generate(&["--shadow-rate", "1.5"]), &["--shadow-rate", "0 to 1"]);
    refused(&generate(&["--graph-sizes", "0"]), &["--graph-sizes"]);
}

fn tokens(more: &[&str]) -> Value {
    let line =
        ["generate", "--prompt", "It was the best of times", "--max-tokens", "40", "--output-json", "-"];
    let run = pagedraft(&[&line[..], more].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    serde_json::from_str::<Value>(&run.stdout).unwrap()["token_ids"].clone()
}

#[test]
fn nothing_that_speculation_is_told_changes_a_token() {
    for sampling in [&["--temperature", "0"][..], &["--temperature", "0.9", "--top-p", "0.9", "--seed", "3"]]
    {
        let plain = tokens(sampling);
        let ways: [&[&str]; 8] = [
            &["--draft", "builtin:draft"],
            &["--draft", "builtin:draft", "--num-speculative-tokens", "64"],
            &["--draft", "builtin:draft", "--num-speculative-tokens", "8", "--max-num-batched-tokens", "3"],
            &["--draft", "builtin:draft", "--num-speculative-tokens", "0"],
            &["--draft", "builtin:target", "--num-speculative-tokens", "5", "--scorer", "batch-expansion"],
            &["--draft", "ngram", "--ngram-min", "2", "--ngram-max", "3", "--enforce-eager"],
            &["--draft", "builtin:draft", "--graph-sizes", "16", "--num-speculative-tokens", "3"],
            &["--draft", "builtin:draft", "--shadow-rate", "1", "--num-speculative-tokens", "3"],
        ];
        for way in ways {
            assert_eq!(tokens(&[sampling, way].concat()), plain, "{way:?}");
        }
    }
}

#[test]
fn the_canary_fails_a_run_whose_verify_steps_are_replayed_on_the_wrong_graph() {
    let line = ["generate", "--prompt", "It was the best of times", "--max-tokens", "100", "--ignore-eos"];
    let draft = ["--draft", "builtin:draft", "--num-speculative-tokens", "3"];
    let fault = ["--inject-fault", "decode-graph-for-verify"];
    let run = pagedraft(&[&line[..], &draft, &fault, &["--shadow-rate", "0.05"]].concat());
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("canary") && run.stderr.contains("--enforce-eager"), "{run:?}");
    let run = pagedraft(&[&line[..], &draft, &["--shadow-rate", "0.05"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn other_acceptance_is_greedy_at_temperature_0_and_the_same_under_every_scorer_and_mode() {
    let drafted = |acceptance: &'static str, more: &[&str]| {
        let line = ["--draft", "builtin:draft", "--num-speculative-tokens", "3", "--acceptance", acceptance];
        tokens(&[&line[..], more].concat())
    };
    // A draft that the target does not choose has no probability at temperature 0.
    assert_eq!(drafted("rejection", &["--temperature", "0"]), tokens(&["--temperature", "0"]));
    assert_eq!(drafted("typical", &["--temperature", "0"]), tokens(&["--temperature", "0"]));
    for acceptance in ["rejection", "typical"] {
        let sampled = ["--temperature", "0.8", "--top-k", "40", "--seed", "11"];
        let one = drafted(acceptance, &sampled);
        for more in [
            &["--scorer", "batch-expansion"][..],
            &["--enforce-eager"],
            &["--threads", "1"],
            &["--block-size", "32"],
        ] {
            assert_eq!(drafted(acceptance, &[&sampled[..], more].concat()), one, "{acceptance}, {more:?}");
        }
        assert_ne!(
            one,
            tokens(&sampled),
            "{acceptance} drew the very tokens of the plain run: is it in use?"
        );
    }
}
