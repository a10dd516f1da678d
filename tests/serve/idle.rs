//! Connections that nobody uses.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{get, post};
use crate::process::Process;

/// The most bytes that a connection may cost.
const MOST: u64 = 50 << 10;

#[test]
fn idle_connections_cost_little_and_keep_no_request_waiting() {
    open(200);
}

/// Systems that let a process have no more than 1,024 files need `ulimit -n 4096` before.
#[test]
#[ignore = "more open files than some systems allow"]
fn a_thousand_idle_connections_cost_little() {
    open(1000);
}

fn open(count: usize) {
    let server = Process::start(&[]);
    let body = json!({"prompt": "The king", "max_tokens": 8, "temperature": 0});
    let expected = post(server.address, "/v1/completions", &body).answer()["choices"].clone();
    let before = server.resident_bytes();
    let mut idle = Vec::with_capacity(count);
    for i in 0..count {
        let mut socket = TcpStream::connect(server.address).unwrap();
        // Some were used, some are in the middle of a head, and some never said anything.
        let said: &[u8] = match i % 3 {
            0 => b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            1 => b"POST /v1/completions HTTP/1.1\r\nHost",
            _ => b"",
        };
        socket.write_all(said).unwrap();
        idle.push(socket);
    }
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(post(server.address, "/v1/completions", &body).answer()["choices"], expected);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "10 answers took {:?}", start.elapsed());
    assert_eq!(get(server.address, "/health").status, 200);
    let (Some(before), Some(after)) = (before, server.resident_bytes()) else {
        eprintln!("memory was not measured: this system does not tell");
        return;
    };
    let cost = after.saturating_sub(before);
    eprintln!("{count} idle connections cost {} kB", cost >> 10);
    assert!(cost < MOST * count as u64, "{count} idle connections cost {cost} bytes");
}
