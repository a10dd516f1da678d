//! `pagedraft bench scheduler`, and `pagedraft trace check` on what it writes.

use serde_json::{Value, json};

use crate::program::{Scratch, pagedraft};

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn workload(dice: &mut Dice, requests: u64) -> Value {
    let request = |i: u64, dice: &mut Dice| {
        let accepted: Vec<u64> = (0..dice.below(6)).map(|_| dice.below(4)).collect();
        let prompt = 1 + dice.below(90);
        json!({"id": format!("r{i}"), "arrival_step": dice.below(40), "prompt_len": prompt, "prefix_group": dice.below(2),
            "shared_prefix_len": dice.below(prompt), "output_len": 1 + dice.below(60), "accepted": accepted})
    };
    json!({"requests": (0..requests).map(|i| request(i, dice)).collect::<Vec<_>>()})
}

fn run(scratch: &Scratch, name: &str, workload: &Value, config: &Value) -> Vec<Value> {
    let workload = scratch.write(&format!("{name}.workload.json"), workload.to_string().as_bytes());
    let config = scratch.write(&format!("{name}.config.json"), config.to_string().as_bytes());
    let arguments = [
        "bench",
        "scheduler",
        "--workload",
        &workload,
        "--config",
        &config,
        "--trace-out",
        &scratch.path(name),
    ];
    let run = pagedraft(&arguments);
    assert_eq!(run.code, Some(0), "{run:?}");
    scratch.json_lines(&format!("{name}/trace_steps.jsonl"))
}

#[test]
fn traces_of_random_workloads_pass_the_check() {
    let scratch = Scratch::new("random-workloads");
    let mut preempted = 0;
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let workload = workload(&mut dice, 20);
        let config = json!({"block_size": 16, "num_blocks": 14 + dice.below(20), "max_num_seqs": 1 + dice.below(8),
            "max_num_batched_tokens": 4 + dice.below(100), "max_model_len": 400, "enable_chunked_prefill": true,
            "enable_prefix_caching": seed % 3 != 0, "num_speculative_tokens": dice.below(4)});
        let name = format!("seed{seed}");
        let steps = run(&scratch, &name, &workload, &config);
        preempted += steps.iter().map(|step| step["preempted"].as_array().unwrap().len()).sum::<usize>();
        let check = pagedraft(&["trace", "check", &scratch.path(&name)]);
        assert_eq!(check.code, Some(0), "seed {seed}: {check:?}");
        assert!(check.stdout.starts_with(&format!("trace ok: {} steps", steps.len())), "{check:?}");
        let finished: usize = steps
            .iter()
            .flat_map(|s| s["outcome"].as_array().unwrap())
            .filter(|o| !o["finish_reason"].is_null())
            .count();
        assert_eq!(finished, 20, "seed {seed}");
        assert!(check.stdout.contains(" 0 blocks still held"), "{check:?}");
        for step in &steps {
            let outcome = step["outcome"].as_array().unwrap();
            let ended = outcome.iter().filter(|o| !o["finish_reason"].is_null()).map(|o| &o["request_id"]);
            let told: Vec<&Value> = step["finished"].as_array().unwrap().iter().collect();
            assert_eq!(ended.collect::<Vec<_>>(), told, "seed {seed}: an end is told in its own line");
            let rows = step["plan_rows"].as_array().unwrap();
            assert_eq!(rows.len(), step["metadata"]["seq_lens"].as_array().unwrap().len(), "seed {seed}");
        }
    }
    assert!(preempted > 0, "no preemption was tried");
}

#[test]
fn a_step_has_the_fields_of_the_contract() {
    let scratch = Scratch::new("fields");
    let workload = json!({"requests": [{"id": 7, "arrival_step": 5, "prompt_token_ids": [4, 5, 6], "output_len": 3, "accepted": [1]}]});
    let config = json!({"block_size": 16, "num_blocks": 4, "num_speculative_tokens": 2});
    let steps = run(&scratch, "t", &workload, &config);
    let step = &steps[0];
    let keys = [
        "event",
        "step",
        "time_us",
        "mode",
        "graph_key",
        "rows",
        "input_tokens",
        "input_positions",
        "plan_rows",
        "metadata",
        "groups",
        "outcome",
        "preempted",
        "finished",
        "pool",
    ];
    assert!(keys.iter().all(|key| step.get(key).is_some()), "{step}");
    assert!(
        ["schedule", "metadata", "propose", "execute", "sample"]
            .iter()
            .all(|key| step["time_us"][key].is_number())
    );
    assert_eq!(step["input_tokens"], json!([4, 5, 6]));
    assert_eq!(step["rows"][0]["request_id"], json!("7"));
    assert_eq!((&step["rows"][0]["kind"], &step["rows"][0]["num_new"]), (&json!("prefill"), &json!(3)));
    assert_eq!(step["metadata"]["slot_mapping"], json!([0, 1, 2]));
    assert_eq!(step["metadata"]["block_tables"], json!([[0]]));
    assert_eq!(step["pool"]["num_blocks"], json!(4));
    let verify = &steps[1];
    assert_eq!(verify["rows"][0]["kind"], json!("verify"));
    assert_eq!(
        verify["input_tokens"].as_array().unwrap().len() as u64,
        verify["rows"][0]["num_new"].as_u64().unwrap()
    );
    assert_eq!(verify["outcome"][0]["finish_reason"], json!("length"));
    let config = scratch.json("t/config.json");
    assert_eq!((&config["schema_version"], &config["block_size"]), (&json!(2), &json!(16)));
    assert_eq!(scratch.json("t/summary.json")["output_tokens"], json!(3));
}

#[test]
fn a_trace_that_was_changed_fails_the_check_and_the_first_record_is_named() {
    let scratch = Scratch::new("changed");
    let workload = workload(&mut Dice(3), 8);
    let config = json!({"block_size": 16, "num_blocks": 40});
    let mut steps = run(&scratch, "t", &workload, &config);
    let slot = &mut steps[4]["metadata"]["slot_mapping"][0];
    *slot = json!(slot.as_i64().unwrap() + 1);
    let text: String = steps.iter().map(|step| format!("{step}\n")).collect();
    scratch.write("t/trace_steps.jsonl", text.as_bytes());
    let check = pagedraft(&["trace", "check", &scratch.path("t")]);
    assert_eq!(check.code, Some(1), "{check:?}");
    let number = steps[4]["step"].to_string();
    for word in ["`slot`", "line 5", &format!("step {number}"), "request", "trace_steps.jsonl:5"] {
        assert!(check.stderr.contains(word), "{word}: {check:?}");
    }
    // A killed process leaves a cut last line, which is no fault.
    let whole: String = steps[..4].iter().map(|step| format!("{step}\n")).collect();
    scratch.write("t/trace_steps.jsonl", format!("{whole}{{\"event\": \"st").as_bytes());
    let check = pagedraft(&["trace", "check", &scratch.path("t")]);
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(check.stdout.contains("4 steps") && check.stdout.contains("incomplete"), "{check:?}");
}

#[test]
fn a_steady_step_is_timed_and_its_allocations_are_counted() {
    let scratch = Scratch::new("steady");
    let out = scratch.path("out.json");
    for more in [&[][..], &["--num-speculative-tokens", "3", "--block-size", "32"], &["--churn"]] {
        let arguments = ["bench", "scheduler", "--running", "32", "--steps", "200", "--output-json", &out];
        let run = pagedraft(&[&arguments, more].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        let json = scratch.json("out.json");
        assert_eq!((&json["running"], &json["steps"]), (&json!(32), &json!(200)));
        for part in ["schedule_us", "apply_us", "metadata_us"] {
            assert!(["mean", "p50", "p99"].iter().all(|key| json[part][key].as_f64() > Some(0.0)), "{json}");
        }
        assert!(json["heap_allocations_per_step"].is_number(), "{json}");
        // Tables grow with their sequences, so a buffer doubles now and then; no step allocates by itself.
        if !more.contains(&"--churn") {
            assert!(json["heap_allocations_per_step"].as_f64() <= Some(0.02), "{json}");
        }
    }
}

#[test]
fn requests_come_and_go_whatever_their_number_and_drafts() {
    let scratch = Scratch::new("churn");
    let out = scratch.path("out.json");
    for (running, drafts, steps) in
        [("256", "8", "100"), ("500", "1", "50"), ("300", "4", "60"), ("1", "2", "300")]
    {
        let arguments = ["bench", "scheduler", "--running", running, "--num-speculative-tokens", drafts];
        let more = ["--steps", steps, "--churn", "--output-json", &out];
        let run = pagedraft(&[&arguments[..], &more[..]].concat());
        assert_eq!(run.code, Some(0), "{running} running, {drafts} drafts: {run:?}");
        assert!(scratch.json("out.json")["requests_ended"].as_u64() > Some(0), "{run:?}");
        assert_eq!(scratch.json("out.json")["steps"].to_string(), steps);
    }
}

#[test]
fn more_steps_than_memory_has_room_for_are_refused() {
    let run = pagedraft(&["bench", "scheduler", "--steps", "400000000"]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("fewer steps") && run.stderr.contains("--churn"), "{run:?}");
}

#[test]
fn null_stands_for_a_field_that_is_not_there_and_unknown_fields_are_left_alone() {
    let scratch = Scratch::new("nulls");
    let plain = json!({"requests": [{"id": "a", "prompt_len": 20, "output_len": 5}]});
    let nulls = json!({"made_by": "a script", "requests": [{"id": "a", "arrival_step": null, "prompt_token_ids": null,
        "prompt_len": 20, "prefix_group": null, "shared_prefix_len": null, "output_len": 5, "accepted": null,
        "priority": null, "comment": {"x": null}}]});
    let config = json!({"block_size": 16, "num_blocks": 9, "max_model_len": null, "prefill_chunk": null, "policy": null,
        "num_speculative_tokens": null, "seed": 7, "notes": null});
    let mut steps = run(&scratch, "nulls", &nulls, &config);
    let mut same = run(&scratch, "plain", &plain, &json!({"num_blocks": 9}));
    steps.iter_mut().chain(&mut same).for_each(|step| step["time_us"] = Value::Null);
    assert_eq!(steps, same);
}

#[test]
fn workloads_that_cant_be_driven_are_refused_by_name() {
    let scratch = Scratch::new("bad-workloads");
    let config = scratch.write("c.json", b"{}");
    let trace = scratch.path("t");
    let bad = [
        ("{", "w.json"),
        ("{\"requests\": [{\"id\": \"x\", \"output_len\": 3}]}", "prompt_len"),
        ("{\"requests\": [{\"id\": \"x\", \"prompt_len\": 0, \"output_len\": 3}]}", "x"),
        ("{\"requests\": [{\"id\": \"x\", \"prompt_len\": 3, \"output_len\": 0}]}", "output_len"),
        ("{\"requests\": [{\"id\": \"x\", \"prompt_len\": 3}]}", "requests[0]"),
    ]
    .map(|(text, word)| (text.to_owned(), vec![word]));
    let request = |id: Value, prompt: u64, arrival: u64| json!({"id": id, "prompt_len": prompt, "output_len": 2, "arrival_step": arrival});
    let more = [
        (
            vec![request(json!("x"), 3, 0), request(json!("y"), 3, 0), request(json!("x"), 3, 0)],
            vec!["\"x\"", "requests[0]", "requests[2]"],
        ),
        (
            vec![request(json!(7), 3, 0), request(json!("7"), 3, 0)],
            vec!["\"7\"", "requests[0]", "requests[1]"],
        ),
        (vec![request(json!("x"), 4_000_000_000, 0)], vec!["\"x\"", "4000000000", "max_model_len 8192"]),
        (vec![request(json!("x"), 8192, 0)], vec!["\"x\"", "max_model_len 8192"]),
        (vec![request(json!("x"), 3, u64::MAX)], vec!["\"x\"", "arrival_step 18446744073709551615"]),
        (vec![request(json!("x"), 3, (1 << 53) + 1)], vec!["arrival_step"]),
    ]
    .map(|(requests, words)| (json!({ "requests": requests }).to_string(), words));
    for (text, words) in bad.into_iter().chain(more) {
        let workload = scratch.write("w.json", text.as_bytes());
        let run = pagedraft(&[
            "bench",
            "scheduler",
            "--workload",
            &workload,
            "--config",
            &config,
            "--trace-out",
            &trace,
        ]);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{words:?}: {run:?}");
    }
    assert_eq!(scratch.names(), ["c.json", "w.json"], "nothing half-written");
}
