//! Bodies that are wrong: each is refused with the status and the words that say why.

use std::time::Duration;

use pagedraft::serve::Limits;
use serde_json::{Value, json};

use crate::client::{get, post, request, send};
use crate::place::{Place, Setup};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_malformed_body_is_refused_by_the_field_that_is_wrong() {
    let place = Place::new();
    let long = "word ".repeat(4000);
    let long = json!({"prompt": long}).to_string();
    for (path, body, status, told) in [
        (COMPLETIONS, "", 400, "no JSON object"),
        (COMPLETIONS, "{\"prompt\": \"a\"", 400, "is it cut"),
        (COMPLETIONS, "[]", 400, "no JSON object"),
        (COMPLETIONS, "\u{feff}{}", 400, "no JSON object"),
        (COMPLETIONS, "{}", 400, "`prompt` is missing"),
        (COMPLETIONS, r#"{"prompt": ""}"#, 400, "the prompt is empty"),
        (COMPLETIONS, r#"{"prompt": {"a": 1}}"#, 400, "`prompt`"),
        (COMPLETIONS, r#"{"prompt": [99999999]}"#, 400, "99999999"),
        (COMPLETIONS, r#"{"prompt": "a", "model": "other"}"#, 404, "other"),
        (COMPLETIONS, r#"{"prompt": "a", "max_tokens": 0}"#, 400, "max_tokens"),
        (COMPLETIONS, r#"{"prompt": "a", "max_tokens": 2048}"#, 400, "2048 tokens at most"),
        (COMPLETIONS, &long, 400, "2048 tokens at most"),
        (COMPLETIONS, r#"{"prompt": "a", "temperature": -1}"#, 400, "temperature"),
        (COMPLETIONS, r#"{"prompt": "a", "temperature": 1e99}"#, 400, "out of range"),
        (COMPLETIONS, r#"{"prompt": "a", "top_k": -2}"#, 400, "top_k"),
        (COMPLETIONS, r#"{"prompt": "a", "presence_penalty": 3}"#, 400, "presence_penalty"),
        (COMPLETIONS, r#"{"prompt": "a", "logit_bias": {"x": 1}}"#, 400, "logit_bias names \"x\""),
        (COMPLETIONS, r#"{"prompt": "a", "logit_bias": {"99999999": 1}}"#, 400, "99999999"),
        (COMPLETIONS, r#"{"prompt": "a", "min_tokens": 20}"#, 400, "min_tokens"),
        (COMPLETIONS, r#"{"prompt": "a", "seed": 99999999999999999999}"#, 400, "seed"),
        (COMPLETIONS, r#"{"prompt": "a", "stop_token_ids": [99999999]}"#, 400, "99999999"),
        (COMPLETIONS, r#"{"prompt": "a", "prune": "/etc/passwd"}"#, 400, "prune"),
        (
            COMPLETIONS,
            r#"{"prompt": "a", "prune": {"layers": [1], "keep_ratio": 0.5, "modules": "/etc/passwd"}}"#,
            422,
            "prune",
        ),
        (
            COMPLETIONS,
            r#"{"prompt": "a", "response_format": {"type": "json_schema"}}"#,
            422,
            "response_format",
        ),
        (COMPLETIONS, r#"{"prompt": "a", "return_indexer_topk": true}"#, 400, "indexer"),
        (CHAT, r#"{"messages": []}"#, 400, "messages"),
        (CHAT, r#"{"messages": [{"role": "user"}]}"#, 400, "messages[0].content"),
        (CHAT, r#"{"messages": [{"role": "user", "content": "a"}], "echo": true}"#, 422, "echo"),
        ("/tokenize", r#"{"prompt": ["a", "b"]}"#, 400, "one text"),
        ("/detokenize", r#"{"tokens": "a"}"#, 400, "`tokens`"),
        ("/v1/embeddings", "{}", 404, "/v1/embeddings"),
    ] {
        let reply = send(place.address, &request("POST", path, "", body)).whole();
        assert_eq!(reply.status, status, "{path} {body:.80}: {}", reply.text);
        let error = reply.json()["error"].clone();
        assert!(error["message"].as_str().unwrap().contains(told), "{path} {body:.80}: {error}");
        for field in ["type", "param", "code"] {
            assert!(error.get(field).is_some(), "{error}");
        }
    }
    let many = json!({"prompt": vec![[1]; 1025], "n": 2}).to_string();
    let reply = send(place.address, &request("POST", COMPLETIONS, "", &many)).whole();
    assert_eq!(reply.status, 400, "{}", reply.text);
    assert!(reply.text.contains("2050 samples"), "{}", reply.text);
    let nested = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(send(place.address, &request("POST", COMPLETIONS, "", &nested)).whole().status, 400);
    assert_eq!(get(place.address, COMPLETIONS).status, 405);
    // Nobody was harmed.
    post(place.address, COMPLETIONS, &json!({"prompt": "a", "max_tokens": 1})).answer();
}

#[test]
fn a_body_that_is_too_large_is_refused_whether_or_not_it_says_its_length() {
    let limits = Limits { body_bytes: 1000, ..Limits::default() };
    let place = Place::with(Setup { limits, ..Setup::default() });
    let body = json!({"prompt": "a".repeat(2000)}).to_string();
    let chunked = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    for request in [request("POST", COMPLETIONS, "", &body), chunked.into_bytes()] {
        let reply = send(place.address, &request).whole();
        assert_eq!(reply.status, 413, "{}", reply.text);
        assert!(reply.text.contains("1000 bytes"), "{}", reply.text);
    }
}

#[test]
fn a_request_that_does_not_come_is_not_waited_for() {
    let soon = Duration::from_millis(200);
    let limits = Limits { body_time: soon, idle_time: soon, ..Limits::default() };
    let place = Place::with(Setup { limits, ..Setup::default() });
    let half = format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{");
    assert_eq!(send(place.address, half.as_bytes()).whole().status, 408);
    // Half a head is answered with 408 or with a closed connection, but never waited for.
    use std::io::{Read, Write};
    let mut slow = std::net::TcpStream::connect(place.address).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    slow.write_all(b"GET /health HTT").unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
}

#[test]
fn a_full_queue_is_told_with_the_time_to_come_back() {
    let place = Place::with(Setup { max_queue: Some(0), ..Setup::default() });
    let reply = post(place.address, COMPLETIONS, &json!({"prompt": "a"}));
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    let error: Value = reply.json();
    assert_eq!(error["error"]["type"], "rate_limit_error");
}
