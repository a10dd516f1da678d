//! `pagedraft bench prune`, `report --table2` and the pictures of pruned prompts, from outside.

use serde_json::Value;

use crate::program::{Scratch, pagedraft};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "float32"}"#;

/// A directory with the `config.json` of a small model.
fn model(scratch: &Scratch) -> String {
    let dir = scratch.path("model");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(format!("{dir}/config.json"), CONFIG).unwrap();
    dir
}

#[test]
fn bench_prune_measures_every_way_at_every_length_and_a_table_is_made_of_it() {
    let scratch = Scratch::new("bench-prune");
    let (model, spec, out) = (model(&scratch), scratch.path("half.json"), scratch.path("out.json"));
    std::fs::write(&spec, r#"{"layers": [1, 3], "keep_ratio": 0.5, "scorer": "last-window"}"#).unwrap();
    let ran = pagedraft(&[
        "bench",
        "prune",
        "--model",
        &model,
        "--load-format",
        "dummy",
        "--lengths",
        "100,240",
        "--configs",
        &format!("keep07,{spec}"),
        "--output-len",
        "6",
        "--num-iters",
        "2",
        "--num-iters-warmup",
        "0",
        "--scorers",
        "learned,random,last-window",
        "--output-json",
        &out,
    ]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    for length in [100u64, 240] {
        let here = &found["results"][length.to_string()];
        let dense = &here["baseline"];
        let lens = |way: &Value| -> Vec<u64> {
            way["kv_lens_after_prefill"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
        };
        assert_eq!(lens(dense), [length; 6]);
        let layer_block = dense["kv_bytes"].as_u64().unwrap() / 6 / length.div_ceil(16);
        for config in ["keep07", "half"] {
            let way = &here[config];
            // The KV held is the sum over the layers of the tokens kept, rounded up to blocks.
            let blocks: u64 = lens(way).iter().map(|n| n.div_ceil(16)).sum();
            assert_eq!(way["kv_bytes"].as_u64().unwrap(), blocks * layer_block, "{length}, {config}");
            let kept = lens(way)[5];
            assert_eq!(
                (way["tokens_kept"].as_u64(), way["tokens_pruned"].as_u64()),
                (Some(kept), Some(length - kept))
            );
            for figure in ["prefill", "decode", "total", "flops_ceiling"] {
                assert!(here["speedup"][config][figure].as_f64().unwrap() > 0.0);
            }
            assert!(here["speedup"][config]["flops_ceiling"].as_f64().unwrap() > 1.0);
            assert!(here["kv_reduction"][config].as_f64().unwrap() > 0.2);
            let scorers = &here["scorers"][config];
            let mass = |scorer: &str| scorers[scorer]["kept_mass"].as_f64().unwrap();
            assert!(mass("oracle") >= mass("random") && mass("random") > 0.0);
            // Equal kept tokens.
            assert_eq!(scorers["oracle"]["kept_tokens"], scorers["random"]["kept_tokens"]);
        }
    }
    let table = pagedraft(&["report", "--table2", &out]);
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    let rows: Vec<&str> =
        table.stdout.lines().filter(|line| line.starts_with("| 1") || line.starts_with("| 2")).collect();
    assert_eq!(rows.len(), 4, "{}", table.stdout);
}

#[test]
fn quality_stands_side_by_side_and_a_sparse_model_is_scored_by_its_indexers() {
    let scratch = Scratch::new("bench-prune-quality");
    let (spec, file, out) =
        (scratch.path("indexer.json"), scratch.path("longbench.jsonl"), scratch.path("out.json"));
    let words = scratch.path("words.jsonl");
    let question = |answer: &str| {
        let input = format!(
            "It rained all day. The word for stone is {answer}. {}The word for stone is",
            "She sat by the fire and read. ".repeat(9)
        );
        serde_json::json!({"index": 0, "input": input, "outputs": [answer]})
    };
    std::fs::write(&words, format!("{}\n{}\n", question("lord"), question("king"))).unwrap();
    std::fs::write(&spec, r#"{"layers": [0], "keep_ratio": 0.6, "scorer": "indexer"}"#).unwrap();
    let line = |dataset: &str, words: usize| {
        let context = "The lamp stood by the window, and nobody had lit it. ".repeat(words);
        serde_json::json!({"input": "", "context": context, "answers": ["A lamp by the window."], "dataset": dataset})
    };
    // The first prompt is too long, and loses its middle.
    std::fs::write(&file, format!("{}\n{}\n", line("multi_news", 200), line("qasper", 3))).unwrap();
    let bench = |scorers: &[&str]| {
        let all = [
            "bench",
            "prune",
            "--model",
            "builtin:dsa",
            "--lengths",
            "512",
            "--configs",
            &spec,
            "--output-len",
            "4",
            "--num-iters",
            "1",
            "--num-iters-warmup",
            "0",
            "--quality-samples",
            "1",
            "--draft",
            "ngram",
            "--tasks",
            "niah_multikey_1,niah_single_1",
            "--longbench",
            &file,
            "--ruler",
            &words,
            "--output-json",
            &out,
        ];
        pagedraft(&all.into_iter().chain(scorers.iter().copied()).collect::<Vec<_>>())
    };
    let ran = bench(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let here = &found["results"]["512"];
    assert!(here["speedup"]["indexer"]["scoring_of_dense_prefill"].as_f64().unwrap() > 0.0);
    assert_eq!(here["baseline"]["scoring_seconds"], 0.0);
    let quality = &here["quality"]["indexer"];
    for dataset in ["longbench/multi_news", "longbench/qasper"] {
        let answer = &quality["answer_perplexity"][dataset];
        assert!(answer["pruned"].as_f64().unwrap() > 1.0 && answer["dense"].as_f64().unwrap() > 1.0);
    }
    // Of the two questions of the file, one is asked. The model solves it.
    assert_eq!(quality["tasks"]["ruler/words"]["dense"], 1.0);
    // A summary is not judged.
    assert!(quality["tasks"]["longbench/qasper"]["dense"].is_number());
    assert!(quality["tasks"]["longbench/multi_news"].is_null());
    let row = |way: &str| {
        let line = ran.stdout.lines().find(|line| line.starts_with(&format!("| {way} |")));
        line.unwrap_or_else(|| panic!("{}", ran.stdout)).matches('|').count()
    };
    assert_eq!(row("dense"), row("indexer"));
    let head = ran.stdout.lines().find(|line| line.starts_with("| 512 tokens")).unwrap();
    assert!(head.find("niah_single_1").unwrap() < head.find("niah_multikey_1").unwrap(), "{head}");
    std::fs::write(&words, "{\"input\": \"The word\"}\n").unwrap();
    let refused = bench(&[]);
    assert!(refused.code == Some(2) && refused.stderr.contains("words.jsonl"), "{}", refused.stderr);
    std::fs::write(&words, format!("{}\n", question(&"red ".repeat(900)))).unwrap();
    let refused = bench(&[]);
    assert!(
        refused.code == Some(2) && refused.stderr.contains("line 1: prompt and answer"),
        "{}",
        refused.stderr
    );
    std::fs::write(&words, format!("{}\n", question("lord"))).unwrap();
    let refused = bench(&["--scorers", "indexer"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("scorer oracle"), "{}", refused.stderr);
}

#[test]
fn what_bench_prune_and_table2_cannot_do_is_said() {
    let scratch = Scratch::new("bench-prune-bad");
    let model = model(&scratch);
    let bench = |more: &[&str]| {
        let all = ["bench", "prune", "--model", &model, "--load-format", "dummy", "--lengths", "64"];
        pagedraft(&all.into_iter().chain(more.iter().copied()).collect::<Vec<_>>())
    };
    for (more, says) in [
        (&["--configs", "keep07,keep07"][..], "two ways called keep07"),
        (&["--configs", "/nowhere.json"], "/nowhere.json"),
        (&["--prune-spec", "keep07"], "--configs"),
        (&["--scorers", "nobody"], "nobody"),
        (&["--tasks", "nothing"], "RULER has no such task"),
        (&["--max-model-len", "70"], "--output-len"),
    ] {
        let ran = bench(more);
        assert!(ran.code == Some(2) && ran.stderr.contains(says), "{more:?}: {:?} {}", ran.code, ran.stderr);
    }
    let ran = pagedraft(&["report", "--table2", &format!("{model}/config.json")]);
    assert!(ran.code == Some(2) && ran.stderr.contains("results"), "{}", ran.stderr);
}

#[test]
fn the_page_of_a_run_with_pruned_prompts_shows_lengths_and_kept_positions() {
    let scratch = Scratch::new("prune-pictures");
    let (model, run) = (model(&scratch), scratch.path("run"));
    let ids: Vec<String> = (0..120).map(|id| id.to_string()).collect();
    let ran = pagedraft(&[
        "generate",
        "--model",
        &model,
        "--load-format",
        "dummy",
        "--token-ids",
        &ids.join(","),
        "--max-tokens",
        "4",
        "--prune-spec",
        "keep07",
        "--trace-out",
        &run,
    ]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = pagedraft(&["report", &run]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let page = std::fs::read_to_string(format!("{run}/report.html")).unwrap();
    for says in [
        "Tokens that each layer computes and holds",
        "Positions that are kept of the prompt",
        "behind layer 1",
    ] {
        assert!(page.contains(says), "{says}");
    }
}
