//! What a load generator costs: `pagedraft replay --endpoint` against a server that does nothing.
//!
//! `cargo bench --bench load_generator [-- --rate R] [--seconds S] [--delay MS] [--tokens N] [--gap MS] [--rounds N] [--core N]`
//!
//! The server answers each request after a delay with all its tokens at once, or with a gap between them. The program is the one
//! that a user runs, and its own `summary.json` says how late it sent. Its processor time is that of the whole process, so one core
//! is enough for it if that is below 100 %; with `--core` it may use that core alone (`taskset`).
#![allow(clippy::expect_used, clippy::panic, reason = "a bench that fails says where")]

#[path = "support/flag.rs"]
mod flag;

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flag::flag;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pagedraft");

/// How the server answers.
#[derive(Clone)]
struct Answer {
    delay: Duration,
    gap: Duration,
    /// The head of the answer and each piece of its body.
    head: Vec<u8>,
    pieces: Vec<Vec<u8>>,
}

impl Answer {
    fn new(tokens: u32, delay: Duration, gap: Duration) -> Self {
        let chunk = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8).into_bytes();
        let piece = |n: u32| {
            let reason = if n == tokens { json!("length") } else { Value::Null };
            json!({"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1_764_500_000, "model": "mock",
                "choices": [{"index": 0, "text": " word", "logprobs": null, "finish_reason": reason}],
                "usage": {"prompt_tokens": 64, "completion_tokens": n, "total_tokens": 64 + n}})
        };
        let mut pieces: Vec<Vec<u8>> = (1..=tokens).map(|n| chunk(&piece(n).to_string())).collect();
        if let Some(last) = pieces.last_mut() {
            last.extend(chunk("[DONE]"));
            last.extend(b"0\r\n\r\n");
        }
        let head =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_vec();
        if gap.is_zero() {
            pieces = vec![pieces.concat()];
        }
        Self { delay, gap, head, pieces }
    }

    /// Answers the requests of a connection until it ends.
    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        let (mut line, mut body) = (String::new(), Vec::new());
        loop {
            let mut length = 0;
            loop {
                line.clear();
                if stream.read_line(&mut line).await? == 0 {
                    return Ok(());
                }
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
                if line == "\r\n" {
                    break;
                }
            }
            body.resize(length, 0);
            stream.read_exact(&mut body).await?;
            sleep(self.delay).await;
            let first = self.pieces.first().map_or(&[][..], Vec::as_slice);
            stream.write_all(&[&self.head, first].concat()).await?;
            for piece in self.pieces.iter().skip(1) {
                sleep(self.gap).await;
                stream.write_all(piece).await?;
            }
        }
    }
}

/// Starts the server on a thread of its own, which ends with the process.
fn start(answer: Answer) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("a listener that does not block");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let answer = Arc::new(answer);
            while let Ok((stream, _)) = listener.accept().await {
                let answer = Arc::clone(&answer);
                tokio::spawn(async move { drop(answer.serve(stream).await) });
            }
        });
    });
    address
}

/// The processor time of the children that have ended, in seconds.
fn children_seconds() -> f64 {
    // SAFETY: all zeroes are a value of this struct of numbers, and the call writes to nothing else.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage), 0);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn main() {
    let (rate, seconds): (f64, f64) = (flag("--rate", 2000.0), flag("--seconds", 10.0));
    let (delay, gap): (u64, u64) = (flag("--delay", 500), flag("--gap", 0));
    let (tokens, rounds): (u32, u32) = (flag("--tokens", 16), flag("--rounds", 3));
    let core: String = flag("--core", String::new());
    let answer = Answer::new(tokens, Duration::from_millis(delay), Duration::from_millis(gap));
    // Connections are many: this process may have as many as the program raises its own limit to.
    // SAFETY: both calls read and write one struct of numbers.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    let url = format!("http://{}", start(answer));
    let out = std::env::temp_dir().join(format!("pagedraft-load-{}", std::process::id()));
    println!("{rate} requests/s for {seconds} s, {tokens} tokens after {delay} ms, {gap} ms between them");
    println!("  sent/s   late p50      p99      max   TTFT p50      p99   in flight   failed   processor");
    for _ in 0..rounds {
        let _ = std::fs::remove_dir_all(&out);
        let mut command = match core.as_str() {
            "" => Command::new(PROGRAM),
            core => {
                let mut pinned = Command::new("taskset");
                pinned.args(["-c", core, PROGRAM]);
                pinned
            }
        };
        let before = children_seconds();
        let ended = command
            .args([
                "replay",
                "--endpoint",
                &url,
                "--endpoint-model",
                "mock",
                "--workload",
                "random",
                "--no-report",
            ])
            .args(["--arrival-process", "constant", "--input-len", "64", "--out"])
            .arg(&out)
            .args(["--request-rate", &rate.to_string(), "--output-len", &tokens.to_string()])
            .args(["--num-requests", &((rate * seconds) as u64).to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the program runs");
        assert!(ended.success(), "{ended}");
        let spent = children_seconds() - before;
        let text = std::fs::read(out.join("summary.json")).expect("a summary");
        let summary: Value = serde_json::from_slice(&text).expect("a summary");
        let of = |pointer: &str| summary.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
        println!(
            "{:8.1} {:7.3} ms {:5.3} ms {:5.2} ms {:7.1} ms {:5.1} ms {:11} {:8} {:9.1} %",
            of("/rate_sent"),
            of("/send_lateness_ms/median"),
            of("/send_lateness_ms/p99"),
            of("/send_lateness_ms/max"),
            of("/median_ttft_ms"),
            of("/p99_ttft_ms"),
            of("/max_concurrent_requests"),
            of("/failed"),
            100.0 * spent / of("/duration"),
        );
    }
    let _ = std::fs::remove_dir_all(&out);
}
