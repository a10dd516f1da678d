//! How a server begins and ends, as a process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{get, post, stream};
use crate::place::Place;
use crate::program::{Scratch, command, pagedraft};

/// A server on a free port.
fn server(flags: &[&str]) -> (Child, SocketAddr) {
    let mut arguments =
        vec!["serve", "--port", "0", "--max-model-len", "4096", "--num-blocks", "600", "--threads", "1"];
    arguments.extend(flags);
    let mut child = command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}"));
    (child, address.parse().unwrap())
}

fn terminate(child: &Child) {
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_server_that_is_told_to_end_finishes_what_runs_and_refuses_what_comes() {
    let scratch = Scratch::new("serve-ends");
    let trace = scratch.path("trace");
    let (mut child, address) = server(&["--trace-out", &trace]);
    let body = json!({"prompt": "The king", "max_tokens": 1500, "ignore_eos": true, "temperature": 0});
    let mut running = stream(address, "/v1/completions", &body);
    running.event().unwrap();
    terminate(&child);
    let start = Instant::now();
    let refused = loop {
        let reply = post(address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 1}));
        if reply.status != 200 {
            break reply;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "it goes on");
    };
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(get(address, "/health").status, 503);
    let events = running.events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // The trace of what was served is whole.
    let checked = pagedraft(&["trace", "check", &trace]);
    assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
}

#[test]
fn a_request_that_outlasts_the_time_of_grace_is_told_so() {
    let (mut child, address) = server(&["--grace-period", "0"]);
    let body = json!({"prompt": "The king", "max_tokens": 4000, "ignore_eos": true});
    let mut running = stream(address, "/v1/completions", &body);
    running.event().unwrap();
    terminate(&child);
    let events = running.events();
    let error = events.last().unwrap()["error"]["message"].as_str().unwrap().to_owned();
    assert!(error.contains("shutting down"), "{error}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_server_on_a_port_says_what_is_wrong() {
    let place = Place::new();
    let port = place.address.port().to_string();
    let start = Instant::now();
    let second = pagedraft(&["serve", "--port", &port]);
    assert_eq!(second.code, Some(2), "{}", second.stderr);
    for told in [&format!("can't listen on 127.0.0.1:{port}"), "another server runs there", "--port"] {
        assert!(second.stderr.contains(told), "{}", second.stderr);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "a model was loaded first");
    assert_eq!(get(place.address, "/health").status, 200);
}

#[test]
fn flags_that_a_server_can_not_serve_are_refused() {
    for (flags, told) in [
        (&["--draft", "synthetic:0.5"][..], "--draft"),
        (&["--chat-template", "/nothing/here.jinja"], "/nothing/here.jinja"),
        (&["--model", "/nothing/here"], "/nothing/here"),
        (&["--host", "somewhere"], "--host"),
        (&["--api-key", ""], "--api-key"),
    ] {
        let run = pagedraft(&[&["serve", "--port", "0"], flags].concat());
        assert_eq!(run.code, Some(2), "{flags:?}: {}", run.stderr);
        assert!(run.stderr.contains(told), "{flags:?}: {}", run.stderr);
    }
}

#[test]
fn an_engine_outlives_no_server() {
    let place = Place::new();
    post(place.address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 1})).answer();
    let session = place.end();
    assert!(!session.has_unfinished());
}
