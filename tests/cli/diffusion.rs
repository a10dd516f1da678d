//! Block diffusion from the command line: what it prints, and what it refuses.

use serde_json::json;

use crate::program::{Run, Scratch, pagedraft};

/// A small LLaDA, whose weights a run draws.
pub fn model(scratch: &Scratch) -> String {
    let config = json!({
        "model_type": "llada", "d_model": 64, "n_heads": 4, "n_layers": 4, "mlp_hidden_size": 96, "vocab_size": 300,
        "max_sequence_length": 512, "mask_token_id": 299, "eos_token_id": 298, "torch_dtype": "float32",
    });
    scratch.write("llada/config.json", config.to_string().as_bytes());
    scratch.path("llada")
}

/// Runs `generate` with a model whose weights are drawn, and a prompt of three tokens.
pub fn generate(model: &str, flags: &[&str]) -> Run {
    let common = ["generate", "--model", model, "--load-format", "dummy", "--token-ids", "1,2,3"];
    pagedraft(&[&common[..], flags].concat())
}

#[test]
fn a_canvas_comes_with_its_passes_and_a_strict_run_fails_where_masks_are_left() {
    let scratch = Scratch::new("cli-diffusion");
    let (model, out) = (model(&scratch), scratch.path("out.json"));
    let canvas = ["--gen-length", "32", "--block-length", "16", "--steps", "32", "--return-steps"];
    let run = |flags: &[&str]| generate(&model, &[&["--output-json", &out], &canvas[..], flags].concat());
    let plain = run(&[]);
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    let output = scratch.json("out.json");
    assert_eq!(output["token_ids"].as_array().unwrap().len(), 32);
    assert_eq!((&output["nfe"], &output["masks_left"]), (&json!(32), &json!(0)));
    let passes = output["steps"].as_array().unwrap();
    let rows: Vec<u64> = passes.iter().map(|pass| pass["rows"].as_u64().unwrap()).collect();
    assert_eq!(rows[..2], [35, 16]);
    assert_eq!(output["diagnosis"], json!([]));
    assert_eq!(output["token_layers"], json!(4 * rows.iter().sum::<u64>()));

    let broken = [
        "--decoder",
        "dual-cache-skip",
        "--skip-threshold",
        "-1",
        "--skip-outlier",
        "-1",
        "--skip-guard",
        "none",
    ];
    let warned = run(&broken);
    assert_eq!(warned.code, Some(0), "{}", warned.stderr);
    assert!(warned.stderr.contains("masks are left of 32 tokens"), "{}", warned.stderr);
    assert!(warned.stderr.contains("every token of a block skipped"), "{}", warned.stderr);
    assert!(warned.stderr.contains("had no choice (block 0 pass 1"), "{}", warned.stderr);
    let told = &scratch.json("out.json")["diagnosis"];
    let number = |name: &str| -> u64 {
        told.as_array().unwrap().iter().map(|fault| fault[name].as_u64().unwrap()).sum()
    };
    assert!(number("masks_left") >= scratch.json("out.json")["masks_left"].as_u64().unwrap());
    assert!(number("stable_masks") > 0 && told[0]["all_stable"] == true, "{told}");
    let strict = run(&[&broken[..], &["--strict"]].concat());
    assert_ne!(strict.code, Some(0));
    assert!(strict.stderr.contains("--strict: the diagnosis has"), "{}", strict.stderr);
    assert!(scratch.json("out.json")["masks_left"].as_u64().unwrap() > 0);
    // The passes of a replay are steps of the same engine.
    let replayed = scratch.path("replayed");
    let replay =
        ["replay", "--workload", "random", "--num-requests", "4", "--input-len", "20", "--output-len", "32"];
    let replay = pagedraft(
        &[&replay[..], &["--model", &model, "--load-format", "dummy", "--out", &replayed]].concat(),
    );
    assert_eq!(replay.code, Some(0), "{}", replay.stderr);
    let summary = scratch.json("replayed/summary.json");
    assert_eq!(summary["completed"], 4);
    // A canvas of one block: nobody waits for a second one.
    assert_eq!(summary["block_latency"]["ttfb"]["mean"], summary["mean_ttft_ms"]);
    assert_eq!(summary["block_latency"]["ibl"]["mean"], json!(null));
    assert_eq!(pagedraft(&["trace", "check", &replayed]).code, Some(0));
}

#[test]
fn what_a_canvas_has_no_use_for_is_refused_by_its_flag() {
    let scratch = Scratch::new("cli-diffusion-refused");
    let model = model(&scratch);
    let refused = |flags: &[&str], words: &str| {
        let run = generate(&model, &[&["--max-tokens", "32"], flags].concat());
        assert_eq!(run.code, Some(2), "{flags:?}: {}", run.stderr);
        assert!(run.stderr.contains(words), "{flags:?}: {}", run.stderr);
    };
    refused(
        &["--gen-length", "33"],
        "33 tokens (--gen-length, max_tokens) are not a multiple of --block-length 32",
    );
    refused(
        &["--steps", "7", "--block-length", "16"],
        "--steps 7 cannot be shared out evenly among 2 blocks",
    );
    refused(&["--decoder", "dual-cache-skip", "--skip-layer-k", "5"], "the model has 4 layers");
    refused(&["--enable-prefix-caching"], "--enable-prefix-caching");
    refused(&["--draft", "ngram"], "--draft");
    refused(&["--prune-layers", "1"], "--prune-spec and --prune-layers");
    refused(&["--logprobs", "1"], "logprobs means nothing");
    refused(&["--max-num-batched-tokens", "20"], "max_num_batched_tokens");
    let simulated =
        ["replay", "--workload", "random", "--num-requests", "2", "--executor", "sim", "--model", &model];
    let simulated = pagedraft(&[&simulated[..], &["--out", &scratch.path("simulated")]].concat());
    assert_eq!(simulated.code, Some(2));
    assert!(
        simulated.stderr.contains("fills masks in a canvas, and a simulated engine"),
        "{}",
        simulated.stderr
    );
    let drafts = pagedraft(&[
        "generate",
        "--model",
        "builtin:draft",
        "--token-ids",
        "1",
        "--draft",
        &model,
        "--load-format",
        "dummy",
    ]);
    assert_eq!(drafts.code, Some(2), "{}", drafts.stderr);
    assert!(drafts.stderr.contains("a draft model proposes one token after another"), "{}", drafts.stderr);
    let causal = ["generate", "--model", "builtin:draft", "--token-ids", "1", "--decoder", "baseline"];
    let run = pagedraft(&causal);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("is a causal model and has no canvas"), "{}", run.stderr);
}

#[test]
fn infilling_is_judged_beside_simpler_models_and_token_skip_beside_the_dual_cache() {
    let scratch = Scratch::new("cli-infill");
    let out = scratch.path("infill.json");
    let common = ["bench", "infill", "--pieces", "2", "--shares", "0.5,1", "--block-length", "16"];
    let model = ["--model", "builtin:llada", "--output-json", &out];
    let skip = ["--decoder", "dual-cache-skip", "--skip-policy", "least-moved", "--skip-threshold"];
    let run = |flags: &[&str]| {
        let ran = pagedraft(&[&common[..], &model, &skip, flags].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        (ran.stdout, scratch.json("infill.json"))
    };
    // Of no token of a block layers are skipped: both are the same.
    let (_, all) = run(&["0"]);
    let (text, half) = run(&["0.5", "--skip-guard", "reuse"]);
    let masks = |of: &serde_json::Value| of["shares"][1]["masks"].as_u64().unwrap();
    assert_eq!((masks(&all), masks(&half)), (2 * 96, 2 * 96));
    for share in half["shares"].as_array().unwrap() {
        for figure in ["accuracy", "accuracy_unigram", "accuracy_causal"] {
            assert!((0.0..1.0).contains(&share[figure].as_f64().unwrap()), "{share}");
        }
    }
    assert_eq!(all["shares"], half["shares"]);
    let (whole, skipped) = (&all["skip"][1], &half["skip"][1]);
    assert_eq!(whole["agreement"], 1.0);
    assert_eq!(whole["dual_cache"]["token_layers"], whole["skip"]["token_layers"]);
    assert_eq!(
        (&whole["skip"]["evaluations"], &whole["skip"]["skipped_share"]),
        (&json!(2 * 96), &json!(0.0))
    );
    assert_eq!(skipped["dual_cache"], whole["dual_cache"]);
    assert_eq!(skipped["skip"]["skipped_share"], 0.5);
    let steps = skipped["agreement_by_step"].as_array().unwrap();
    assert_eq!((steps.len(), &steps[0]["masks"]), (15, &json!(2 * 6 * 15)));
    assert!(text.contains("token skip against the dual cache, 100.0 % masked"), "{text}");

    let refused = |flags: &[&str], words: &str| {
        let refused = pagedraft(&[&common[..], flags].concat());
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    };
    refused(&[], "builtin:target is a causal model and fills no masks");
    refused(&["--model", "builtin:llada", "--canvas-len", "90"], "--canvas-len 90 is not a multiple");
    refused(&["--model", "builtin:llada", "--prompt-len", "100000"], "give a longer text");
    refused(&["--model", "builtin:llada", "--text", "no/such/text"], "no/such/text");
    refused(&["--model", "builtin:llada", "--causal", "builtin:llada"], "name a causal model");
}
