//! Clients that read slowly, or not at all.

use std::io::Read;
use std::time::{Duration, Instant};

use pagedraft::serve::Limits;
use serde_json::json;

use crate::client::{post, request, send, stream};
use crate::place::{Place, Setup};

const COMPLETIONS: &str = "/v1/completions";

#[test]
fn a_client_that_reads_a_byte_a_second_keeps_nobody_waiting() {
    let place = Place::new();
    let body = json!({"prompt": "The king", "max_tokens": 600, "ignore_eos": true, "temperature": 0});
    let expected = post(place.address, COMPLETIONS, &body).answer();
    let slow = stream(place.address, COMPLETIONS, &body);
    let mut bytes = Vec::new();
    let read_one = |bytes: &mut Vec<u8>| {
        let mut byte = [0];
        slow.socket().read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    };
    for _ in 0..3 {
        read_one(&mut bytes);
        let start = Instant::now();
        let quick = post(place.address, COMPLETIONS, &json!({"prompt": "Once", "max_tokens": 8})).answer();
        assert_eq!(quick["object"], "text_completion");
        std::thread::sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
    }
    // The engine was done with it long ago.
    place.wait_for("nothing runs", |stats| stats.running == 0 && stats.pool.used == 0);
    slow.socket().read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("data: [DONE]"));
    let told = text.lines().filter_map(|line| line.strip_prefix("data: {")).filter_map(|json| {
        let event: serde_json::Value = serde_json::from_str(&format!("{{{json}")).ok()?;
        Some(event["choices"][0]["text"].as_str()?.to_owned())
    });
    // The first event began in the buffer of the client, so that only what follows is whole.
    let told: String = told.collect();
    assert!(expected["choices"][0]["text"].as_str().unwrap().ends_with(&told) && told.len() > 500);
}

#[test]
fn a_client_that_goes_away_frees_its_blocks() {
    let place = Place::new();
    let body = json!({"prompt": "The king", "max_tokens": 2000, "ignore_eos": true});
    let mut leaving = stream(place.address, COMPLETIONS, &body);
    leaving.event().unwrap();
    assert!(place.engine.stats().pool.used > 0);
    drop(leaving);
    let stats = place.wait_for("a stream's blocks are free", |stats| stats.running == 0);
    assert_eq!((stats.pool.used, stats.ended), (0, [0, 0, 1, 0]));
    // One that waits for a whole answer as well.
    let mut socket = std::net::TcpStream::connect(place.address).unwrap();
    std::io::Write::write_all(&mut socket, &request("POST", COMPLETIONS, "", &body.to_string())).unwrap();
    place.wait_for("it runs", |stats| stats.running == 1);
    drop(socket);
    let stats = place.wait_for("its blocks are free", |stats| stats.running == 0);
    assert_eq!((stats.pool.used, stats.ended), (0, [0, 0, 2, 0]));
    assert!(stats.generation_tokens < 3000, "they were not run to their ends");
}

#[test]
fn a_client_that_takes_nothing_is_given_up() {
    let limits = Limits { stalled_time: Duration::from_millis(300), ..Limits::default() };
    let place = Place::with(Setup { limits, ..Setup::default() });
    // Each event has the log probabilities of 20 tokens: more than the buffers of a socket hold in all.
    let body = json!({"prompt": "The king", "max_tokens": 2000, "n": 24, "ignore_eos": true, "logprobs": 20});
    let deaf = stream(place.address, COMPLETIONS, &body);
    place.wait_for("it runs", |stats| stats.running > 0);
    place.wait_for("it was given up", |stats| stats.running == 0 && stats.waiting == 0);
    drop(deaf);
    // The server serves others.
    let other = send(place.address, &request("GET", "/health", "", "")).status;
    assert_eq!(other, 200);
}
