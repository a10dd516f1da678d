//! Closed loops: so many requests at a time.

use serde_json::Value;

use super::{TINY, done, replay};
use crate::program::Scratch;

#[test]
fn a_limit_of_concurrency_is_kept() {
    let scratch = Scratch::new("replay-concurrency");
    for executor in ["real", "sim"] {
        let mut arguments =
            vec!["--workload", "random", "--num-requests", "10", "--input-len", "20", "--output-len", "6"];
        arguments.extend(["--max-concurrency", "3", "--executor", executor]);
        arguments.extend(TINY);
        done(&replay(&scratch.path(executor), &arguments));
        let lines = scratch.json_lines(&format!("{executor}/requests.jsonl"));
        let time = |line: &Value, key: &str| line[key].as_f64().unwrap();
        for line in &lines {
            let at = time(line, "sent_s");
            let flying = lines.iter().filter(|l| time(l, "sent_s") <= at && at < time(l, "finish_s")).count();
            assert!((1..=3).contains(&flying), "{executor}: {flying}");
            // In a closed loop nobody was late: the next one is asked for when a seat is free.
            assert!(at - time(line, "intended_arrival_s") < 0.5, "{line}");
        }
    }
}

#[test]
fn freed_seats_are_filled_before_the_next_step_as_in_the_simulation() {
    let scratch = Scratch::new("replay-hand-over");
    let mut arguments =
        vec!["--workload", "random", "--num-requests", "60", "--input-len", "16", "--output-len", "4"];
    arguments.extend(["--max-concurrency", "3", "--trace-format", "jsonl", "--enforce-eager"]);
    arguments.extend(["--num-blocks", "512"]);
    let steps = |out: &str, more: &[&str]| {
        done(&replay(&scratch.path(out), &[&arguments[..], more].concat()));
        scratch.json_lines(&format!("{out}/trace_steps.jsonl")).len()
    };
    // A prompt's step gives the first of 4 tokens: 60 requests take 80 steps, if no seat stays empty.
    assert_eq!(steps("sim", &["--executor", "sim", "--trace-steps"]), 80);
    // A machine that is busy with other things may be too slow for it once.
    let live: Vec<usize> = (0..5).map(|i| steps(&format!("{i}"), &["--threads", "1"])).collect();
    assert_eq!(live.iter().min(), Some(&80), "{live:?}");
}
