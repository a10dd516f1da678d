//! What a run generates.

use super::{done, replay, said};
use crate::program::Scratch;

#[test]
fn the_same_replay_gives_the_same_tokens_whatever_proposes_drafts() {
    let scratch = Scratch::new("replay-same");
    let mut arguments =
        vec!["--workload", "random", "--num-requests", "8", "--input-len", "40", "--output-len", "12"];
    arguments.extend(["--random-range-ratio", "0.5", "--threads", "1", "--num-blocks", "512"]);
    let variants: [&[&str]; 5] = [
        &[],
        &["--max-concurrency", "2"],
        &["--draft", "ngram", "--num-speculative-tokens", "3", "--request-rate", "50"],
        &["--draft", "synthetic:0.8", "--num-speculative-tokens", "4"],
        &["--no-enable-prefix-caching", "--max-num-batched-tokens", "64", "--no-trace"],
    ];
    let mut first = None;
    for (i, more) in variants.into_iter().enumerate() {
        let run = replay(&scratch.path(&format!("{i}")), &[&arguments[..], more].concat());
        done(&run);
        let said = said(&scratch, &format!("{i}"));
        assert_eq!(said.len(), 8);
        assert!(said.values().all(|line| line[3].is_string()));
        assert_eq!(first.get_or_insert_with(|| said.clone()), &said, "{more:?}");
        assert_eq!(run.stderr.contains("run once without drafts first"), i == 3, "{}", run.stderr);
    }
    let drafted: u64 = scratch
        .json_lines("3/requests.jsonl")
        .iter()
        .flat_map(|line| line["accepted_by_position"].as_array().unwrap().clone())
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert!(drafted > 0, "synthetic drafts were accepted");
    assert!(!scratch.names().contains(&"4/trace_steps.jsonl".to_owned()));
}
