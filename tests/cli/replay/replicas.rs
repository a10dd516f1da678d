//! Several real engines behind a router.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{TINY, done, replay};
use crate::program::{Scratch, pagedraft};

/// Prompts of which many begin alike, and come while others run.
const WORKLOAD: [&str; 12] = [
    "--workload",
    "random",
    "--num-requests",
    "24",
    "--input-len",
    "96",
    "--output-len",
    "8",
    "--prefix-share",
    "0.5",
    "--request-rate",
    "200",
];

/// The token ids of each finished request.
fn outputs(scratch: &Scratch, out: &str) -> BTreeMap<String, Value> {
    let lines = scratch.json_lines(&format!("{out}/requests.jsonl"));
    lines
        .into_iter()
        .map(|line| {
            assert_eq!(line["status"], "finished", "{line}");
            (line["request_id"].as_str().unwrap().to_owned(), line["token_ids"].clone())
        })
        .collect()
}

#[test]
fn two_engines_give_the_tokens_of_one_whatever_the_router_and_each_has_a_trace() {
    let scratch = Scratch::new("replay-fleet");
    done(&replay(&scratch.path("one"), &[&WORKLOAD[..], &TINY, &["--save-outputs", "--no-trace"]].concat()));
    let wanted = outputs(&scratch, "one");
    assert_eq!(wanted.len(), 24);
    for router in ["round-robin", "least-loaded", "prefix-aware"] {
        let more = ["--save-outputs", "--replicas", "2", "--router", router];
        done(&replay(&scratch.path(router), &[&WORKLOAD[..], &TINY, &more].concat()));
        assert_eq!(outputs(&scratch, router), wanted, "{router}");
        let summary = scratch.json(&format!("{router}/summary.json"));
        assert_eq!(summary["completed"], 24, "{router}: {summary:#}");
        assert_eq!((&summary["replicas"], &summary["router"]), (&2.into(), &router.into()), "{summary:#}");
        assert!(summary["mean_ttft_ms"].as_f64().unwrap() > 0.0, "{summary:#}");
        let requests = [0, 1].map(|replica| {
            let check = pagedraft(&["trace", "check", &scratch.path(&format!("{router}/replica-{replica}"))]);
            assert_eq!(check.code, Some(0), "{router}, engine {replica}: {}", check.stderr);
            let told = check.stdout.split(" requests, ").next().unwrap_or_default();
            told.rsplit(' ').next().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
        });
        assert_eq!(requests.iter().sum::<u32>(), 24, "{router}: {requests:?}");
        match router {
            "round-robin" => assert_eq!(requests, [12, 12]),
            "least-loaded" => assert!(requests.iter().all(|&count| count > 0), "{requests:?}"),
            // How many came before a first prefix was cached depends on the machine.
            _ => assert!(summary["prefix_cache"]["cached_tokens"].as_u64().unwrap() > 0, "{summary:#}"),
        }
    }
    // The traces of engines that have ended can't go on.
    let more = ["--save-outputs", "--replicas", "2", "--router", "round-robin", "--resume"];
    let refused = replay(&scratch.path("round-robin"), &[&WORKLOAD[..], &TINY, &more].concat());
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--no-trace"), "{refused:?}");
}
