//! Bodies that were changed at random: each is answered, or refused with an error object and the right status.

use serde_json::json;

use crate::client::{Connection, Reply, post};
use crate::place::{Place, Setup};
use crate::random::Random;

/// Paths, and bodies that are well formed.
const SEEDS: [(&str, &str); 5] = [
    (
        "/v1/completions",
        r#"{"model": "builtin:target", "prompt": "The king", "max_tokens": 2, "temperature": 0.5, "seed": 7, "stop": ["x"], "logit_bias": {"5": 1.5}}"#,
    ),
    (
        "/v1/completions",
        r#"{"prompt": [[5, 6, 7], [8]], "max_tokens": 1, "n": 2, "echo": true, "logprobs": 1, "stop_token_ids": [3], "cache_salt": "a"}"#,
    ),
    (
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": "Speak."}], "max_completion_tokens": 2, "stream": true, "stream_options": {"include_usage": true}}"#,
    ),
    ("/tokenize", r#"{"prompt": "The king said", "add_special_tokens": false}"#),
    ("/detokenize", r#"{"tokens": [5, 6, 7]}"#),
];
/// Fields that are put into a body, of which some are refused.
const FIELDS: [&str; 26] = [
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "min_tokens",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "echo",
    "stream",
    "stream_options",
    "prune",
    "response_format",
    "num_speculative_tokens",
    "tools",
];
/// What is written where something else was.
const PIECES: [&str; 28] = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "3",
    "1.5",
    "-0.0",
    "1e400",
    "1e-400",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "-9223372036854775809",
    "\"\"",
    "\"a\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\u{e9}\u{1f600}\"",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[0,0]",
    "{\"a\":1}",
    "[[[[[[[[",
    "\"",
    "\\",
];

/// One of the seeds, changed once or a few times.
pub fn body(random: &mut Random) -> (&'static str, Vec<u8>) {
    let (path, seed) = random.pick(&SEEDS);
    let mut body = seed.as_bytes().to_vec();
    for _ in 0..random.between(1, 4) {
        change(&mut body, random);
    }
    (path, body)
}

fn change(body: &mut Vec<u8>, random: &mut Random) {
    if body.is_empty() {
        return;
    }
    let at = random.below(body.len());
    let to = random.between(at, body.len().min(at + 12));
    match random.below(8) {
        0 => body[at] ^= 1 << random.below(8),
        1 => body.truncate(at),
        2 => drop(body.drain(at..to)),
        3 => drop(body.splice(at..at, random.pick(&PIECES).bytes())),
        4 => {
            let twice = body[at..to].to_vec();
            body.splice(at..at, twice);
        }
        // A value in place of another one, so that most of these bodies are still JSON.
        5 | 6 => {
            let Some(colon) = body[at..].iter().position(|&byte| byte == b':') else { return };
            let from = at + colon + 1;
            let end = body[from..].iter().position(|byte| b",}]".contains(byte)).unwrap_or(0);
            body.splice(from..from + end, random.pick(&PIECES).bytes());
        }
        _ => {
            let field = format!("{{\"{}\": {}, ", random.pick(&FIELDS), random.pick(&PIECES));
            if body[0] == b'{' {
                body.splice(..1, field.into_bytes());
            }
        }
    }
}

/// Panics unless it is an answer, or an error of the kind that its status says.
pub fn check(reply: &Reply) {
    if reply.status == 200 {
        let mut events = reply.text.lines().filter_map(|line| line.strip_prefix("data: "));
        if reply.header("content-type") == Some("text/event-stream") {
            assert_eq!(events.next_back(), Some("[DONE]"), "{reply:?}");
        } else {
            reply.json();
        }
        return;
    }
    let error = &reply.json()["error"];
    let kind = match reply.status {
        400 | 404 | 422 => "invalid_request_error",
        429 => "rate_limit_error",
        status => panic!("{status}: {reply:?}"),
    };
    assert_eq!(error["type"], kind, "{reply:?}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{reply:?}");
    assert!(error["param"].is_null() || error["param"].is_string(), "{reply:?}");
    assert!(error.get("code").is_some(), "{reply:?}");
}

fn campaign(bodies: usize, seed: u64) {
    eprintln!("seed {seed}");
    let place = Place::with(Setup { max_model_len: Some(64), ..Setup::default() });
    let valid = json!({"prompt": "The king", "max_tokens": 4, "temperature": 0});
    let expected = post(place.address, "/v1/completions", &valid).answer()["choices"].clone();
    let (mut random, mut connection) = (Random(seed), Connection::new(place.address));
    let mut answered = 0;
    for _ in 0..bodies {
        let (path, body) = body(&mut random);
        let reply = connection.post(path, &body);
        check(&reply);
        answered += usize::from(reply.status == 200);
    }
    // Both kinds are there, so that the campaign looks behind the parser too.
    assert!(answered > bodies / 50 && answered < bodies / 2, "{answered} of {bodies} were answered");
    assert_eq!(post(place.address, "/v1/completions", &valid).answer()["choices"], expected);
    let stats = place.wait_for("nothing runs", |stats| stats.running == 0 && stats.waiting == 0);
    assert_eq!((stats.pool.used, stats.failed_steps), (0, 0));
    // A server or an engine that panicked is told of here.
    place.end();
}

#[test]
fn a_body_that_was_changed_at_random_is_answered_or_refused() {
    campaign(10_000, 1);
}

/// A million bodies, or as many as PAGEDRAFT_BODIES says.
#[test]
#[ignore = "takes minutes"]
fn a_million_bodies_that_were_changed_at_random_are_answered_or_refused() {
    let bodies = std::env::var("PAGEDRAFT_BODIES").map_or(1_000_000, |bodies| bodies.parse().unwrap());
    campaign(bodies, 2);
}
