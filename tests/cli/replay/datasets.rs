//! Every kind of dataset, from a file or generated.

use super::{TINY, done, replay, said, status};
use crate::program::{Scratch, pagedraft};

/// The kinds of files, small.
pub const FILES: [(&str, &str, &str); 9] = [
    (
        "azure",
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,37,4\r\n2023-11-16 18:15:46.7009951,39,5\r\n2023-11-16 18:15:46.7224700,80,3",
    ),
    (
        "burstgpt",
        "burst.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,20,4,24,Conversation log\n5,GPT-4,30,0,30,API log\n5,ChatGPT,40,6,46,Conversation log\n",
    ),
    (
        "mooncake",
        "mooncake.jsonl",
        "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [7, 8]}\n{\"timestamp\": 100, \"input_length\": 620, \"output_length\": 4, \"hash_ids\": [7, 9]}\n",
    ),
    (
        "vidur",
        "vidur.csv",
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,30,4\n0.05,50,5\n0.06,10,3\n",
    ),
    (
        "sharegpt",
        "sharegpt.json",
        r#"[{"id": "a", "conversations": [{"from": "human", "value": "Tell me of the sea."}, {"from": "gpt", "value": "It is wide, and it is deep."}]},
            {"id": "b", "conversations": [{"from": "human", "value": "And of the land?"}, {"from": "gpt", "value": "It is dry."}, {"from": "human", "value": "And the sky?"}, {"from": "gpt", "value": "High."}]}]"#,
    ),
    (
        "ruler",
        "ruler.jsonl",
        "{\"index\": 0, \"input\": \"The magic number is 7123. What is the magic number?\", \"outputs\": [\"7123\"], \"length\": 40}\n",
    ),
    (
        "longbench",
        "longbench.jsonl",
        "{\"input\": \"Who came?\", \"context\": \"An old man came to the house.\", \"answers\": [\"An old man\"], \"length\": 8, \"dataset\": \"multi_news\", \"language\": \"en\", \"all_classes\": null, \"_id\": \"x1\"}\n",
    ),
    (
        "longbench-v2",
        "longbench-v2.json",
        r#"[{"_id": "q1", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short", "question": "Which?", "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d", "answer": "B", "context": "It is b."}]"#,
    ),
    (
        "spec-bench",
        "spec.jsonl",
        "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"Write of a journey.\", \"Again, shorter.\"]}\n",
    ),
];

#[test]
fn every_workload_runs_through_the_simulation() {
    let scratch = Scratch::new("replay-sim-kinds");
    for (workload, name, text) in FILES {
        let file = scratch.write(name, text.as_bytes());
        let out = scratch.path(workload);
        let run = replay(
            &out,
            &["--workload", workload, "--path", &file, "--executor", "sim", "--max-new-tokens", "16"],
        );
        done(&run);
        assert!(run.stdout.contains("sha256") && run.stdout.contains(&out), "{}", run.stdout);
        assert!(status(&scratch, workload, "finished") > 0, "{workload}");
        assert_eq!(status(&scratch, workload, "failed"), 0, "{workload}");
        let config = scratch.json(&format!("{workload}/config.json"));
        assert_eq!(config["replay"]["executor"], "sim");
        assert!(config["replay"]["cost_model"]["name"].is_string());
        assert!(config["num_blocks"].as_u64().unwrap() > 0);
        assert_eq!(config["replay"]["dataset"]["file"]["bytes"], text.len());
        assert!(scratch.json(&format!("{workload}/summary.json")).is_object());
        assert!(scratch.read(&format!("{workload}/report.html")).contains("<html"));
    }
    // The trace's own failures are skipped, and told.
    assert_eq!((status(&scratch, "burstgpt", "finished"), status(&scratch, "burstgpt", "skipped")), (2, 1));
}

#[test]
fn every_workload_runs_through_the_engine_and_its_trace_is_sound() {
    let scratch = Scratch::new("replay-real-kinds");
    for (workload, name, text) in FILES {
        let file = scratch.write(name, text.as_bytes());
        let out = scratch.path(workload);
        let mut arguments = vec!["--workload", workload, "--path", &file, "--max-new-tokens", "8"];
        arguments.extend(TINY);
        let run = replay(&out, &arguments);
        done(&run);
        assert!(status(&scratch, workload, "finished") > 0, "{workload}: {}", run.stdout);
        assert_eq!(status(&scratch, workload, "failed"), 0, "{workload}");
        let check = pagedraft(&["trace", "check", &out]);
        assert_eq!(check.code, Some(0), "{workload}: {}", check.stderr);
        let config = scratch.json(&format!("{workload}/config.json"));
        assert_eq!(
            (&config["replay"]["executor"], &config["model_id"]),
            (&"real".into(), &"builtin:target".into())
        );
    }
    let azure = said(&scratch, "azure");
    let lengths: Vec<u64> = azure.values().map(|line| line[2].as_u64().unwrap()).collect();
    assert_eq!(lengths, [4, 5, 3], "outputs are complete");
}

#[test]
fn samples_are_generated_where_there_is_no_file() {
    let scratch = Scratch::new("replay-generated");
    for executor in ["real", "sim"] {
        let ruler = scratch.path(&format!("ruler-{executor}"));
        let mut arguments =
            vec!["--workload", "ruler", "--task", "niah_single_1", "--length", "512", "--num-requests", "2"];
        arguments.extend(["--executor", executor, "--max-concurrency", "1"]);
        arguments.extend(TINY);
        done(&replay(&ruler, &arguments));
        assert_eq!(status(&scratch, &format!("ruler-{executor}"), "finished"), 2);

        let random = scratch.path(&format!("random-{executor}"));
        let mut arguments =
            vec!["--workload", "random", "--num-requests", "6", "--input-len", "64", "--output-len", "5"];
        arguments.extend(["--prefix-share", "0.5", "--executor", executor, "--arrival-process", "constant"]);
        arguments.extend(["--request-rate", "100"]);
        arguments.extend(TINY);
        done(&replay(&random, &arguments));
        let lines = scratch.json_lines(&format!("random-{executor}/requests.jsonl"));
        assert_eq!(lines.len(), 6);
        for line in &lines {
            assert_eq!((&line["prompt_tokens"], &line["output_tokens"]), (&64.into(), &5.into()));
            let (sent, intended) =
                (line["sent_s"].as_f64().unwrap(), line["intended_arrival_s"].as_f64().unwrap());
            assert!(sent >= intended, "{line}");
        }
        let hits: u64 = lines.iter().map(|line| line["cached_tokens"].as_u64().unwrap()).sum();
        assert!(hits >= 32, "the shared prefix was found in the cache: {hits}");
    }
}

#[test]
fn the_first_minute_of_azures_trace_is_replayed_whole() {
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/azure/AzureLLMInferenceTrace_conv.csv");
    if !std::path::Path::new(trace).exists() {
        eprintln!("skipped: there is no ../shared");
        return;
    }
    let scratch = Scratch::new("replay-azure");
    let out = scratch.path("run");
    let mut arguments = vec!["--workload", "azure", "--path", trace, "--limit", "200"];
    arguments.extend(["--length-scale", "0.05", "--speed", "20"]);
    arguments.extend(["--threads", "1", "--enforce-eager", "--num-blocks", "2048"]);
    done(&replay(&out, &arguments));
    let lines = scratch.json_lines("run/requests.jsonl");
    let rows: Vec<(f64, f64)> = std::fs::read_to_string(trace)
        .unwrap()
        .lines()
        .skip(1)
        .take(200)
        .map(|row| {
            let mut fields = row.split(',').skip(1).map(|field| field.parse::<f64>().unwrap());
            (fields.next().unwrap(), fields.next().unwrap())
        })
        .collect();
    assert_eq!(lines.len(), 200);
    for line in &lines {
        let (prompt, output) = rows[line["request_id"].as_str().unwrap().parse::<usize>().unwrap()];
        assert_eq!(
            (&line["status"], &line["finish_reason"]),
            (&"finished".into(), &"length".into()),
            "{line}"
        );
        let tokens = |key: &str| line[key].as_f64().unwrap();
        assert_eq!(tokens("prompt_tokens"), (prompt * 0.05).round().max(1.0), "{line}");
        assert_eq!(tokens("output_tokens"), (output * 0.05).round().max(1.0), "{line}");
    }
    let check = pagedraft(&["trace", "check", &out]);
    assert_eq!(check.code, Some(0), "{}", check.stderr);
    assert!(check.stdout.contains("200 requests, 200 finished"), "{}", check.stdout);
}
