//! `/metrics`: the names, kinds and buckets that boards look for.

use std::collections::BTreeMap;

use serde_json::json;

use crate::client::{get, post};
use crate::place::{NAME, Place};

/// The samples of a page by their names and labels, after a check that every name was announced with its kind.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let kinds: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let family = name.split('{').next().unwrap();
            let part = |end: &str| family.strip_suffix(end).and_then(|family| kinds.get(family));
            let of_histogram =
                ["_bucket", "_sum", "_count"].into_iter().any(|end| part(end) == Some(&"histogram"));
            assert!(of_histogram || kinds.contains_key(family), "{line}");
            let value = value.parse().unwrap();
            (name.replace(&format!("model_name=\"{NAME}\",engine=\"0\""), ""), value)
        })
        .collect()
}

#[test]
fn the_figures_of_the_engine_have_the_names_that_boards_look_for() {
    let place = Place::new();
    let prompt: Vec<u32> = (5..105).collect();
    for _ in 0..2 {
        let body = json!({"prompt": prompt, "max_tokens": 10, "ignore_eos": true});
        post(place.address, "/v1/completions", &body).answer();
    }
    place.wait_for("both are counted", |stats| stats.ended[1] == 2 && stats.running == 0);
    let reply = get(place.address, "/metrics");
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let found = samples(&reply.text);
    for (name, expected) in [
        ("vllm:num_requests_running{}", 0.0),
        ("vllm:num_requests_waiting{}", 0.0),
        ("vllm:num_requests_waiting_by_reason{,reason=\"capacity\"}", 0.0),
        ("vllm:num_requests_waiting_by_reason{,reason=\"deferred\"}", 0.0),
        ("vllm:kv_cache_usage_perc{}", 0.0),
        ("vllm:prompt_tokens_total{}", 200.0),
        ("vllm:prefix_cache_queries_total{}", 200.0),
        ("vllm:prefix_cache_hits_total{}", 96.0),
        ("vllm:generation_tokens_total{}", 20.0),
        ("vllm:num_preemptions_total{}", 0.0),
        ("vllm:request_success_total{,finished_reason=\"length\"}", 2.0),
        ("vllm:request_success_total{,finished_reason=\"stop\"}", 0.0),
        ("vllm:time_to_first_token_seconds_count{}", 2.0),
        ("vllm:time_to_first_token_seconds_bucket{,le=\"2560.0\"}", 2.0),
        ("vllm:inter_token_latency_seconds_count{}", 18.0),
        ("vllm:inter_token_latency_seconds_bucket{,le=\"80.0\"}", 18.0),
        ("vllm:e2e_request_latency_seconds_bucket{,le=\"+Inf\"}", 2.0),
        ("vllm:request_prompt_tokens_bucket{,le=\"100.0\"}", 2.0),
        ("vllm:request_prompt_tokens_bucket{,le=\"50.0\"}", 0.0),
        ("vllm:request_generation_tokens_sum{}", 20.0),
        ("vllm:iteration_tokens_total_sum{}", 104.0 + 20.0),
        ("vllm:request_params_max_tokens_sum{}", 20.0),
        ("vllm:spec_decode_num_drafts_total{}", 0.0),
        ("pagedraft:steps_failed_total{}", 0.0),
    ] {
        assert_eq!(found.get(name), Some(&expected), "{name}\n{}", reply.text);
    }
    assert!(found["pagedraft:step_seconds_sum{}"] > 0.0);
    assert!(found["pagedraft:step_stage_seconds_total{,stage=\"execute\"}"] > 0.0);
    let info = found.keys().find(|name| name.starts_with("vllm:cache_config_info")).unwrap();
    assert!(info.contains("block_size=\"16\""), "{info}");
}
