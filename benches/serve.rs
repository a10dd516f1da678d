//! What the server costs: clients on sockets beside the engine alone.
//!
//! `cargo bench --bench serve [-- --rounds N] [--streams N] [--tokens N] [--threads N]`
//!
//! - throughput: `--streams` requests at once, `--tokens` tokens each, streamed to clients on sockets; and the same requests read from the
//!   engine's handle in the same process. The ratio is taken within a round.
//! - time to first token: one request at a time, from the client's connection to the first event; and from the call of the handle to the
//!   first delta.
//!
//! Every round runs both ways, in turns. The clients run in this process too: what they take of the cores counts against the server.
#![allow(clippy::expect_used, reason = "a bench that fails says where")]

#[path = "support/flag.rs"]
mod flag;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use flag::flag;
use pagedraft::engine::handle::{EngineHandle, Limits as EngineLimits};
use pagedraft::serve::{Limits, ServeOptions, Server};
use pagedraft::session::{EngineOptions, ModelRef, Request, Session};

const PROMPT: u32 = 32;

fn prompt(i: u32) -> Vec<u32> {
    (0..PROMPT).map(|p| 5 + (i * 7919 + p * 104_729) % 2000).collect()
}

fn request(i: u32, tokens: u32) -> Request {
    let mut request = Request::new(i.to_string(), prompt(i), tokens);
    request.ignore_eos = true;
    request
}

/// A client's request, sent.
fn send(address: SocketAddr, i: u32, tokens: u32) -> TcpStream {
    let body = format!(
        "{{\"prompt\":{:?},\"max_tokens\":{tokens},\"temperature\":0,\"ignore_eos\":true,\"stream\":true}}",
        prompt(i)
    );
    let mut socket = TcpStream::connect(address).expect("the server listens");
    socket.set_nodelay(true).expect("TCP knows it");
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).expect("the server reads");
    socket
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// Tokens a second of the engine's handle.
fn alone(engine: &EngineHandle, streams: u32, tokens: u32) -> f64 {
    let start = Instant::now();
    let total = runtime().block_on(async {
        let requests = (0..streams).map(|i| engine.submit(request(i, tokens)));
        let outputs = futures_util::future::try_join_all(requests).await.expect("they are taken");
        let mut news = futures_util::stream::select_all(outputs);
        let mut total = 0;
        while let Some(delta) = futures_util::StreamExt::next(&mut news).await {
            total += delta.token_ids.len();
        }
        total
    });
    assert_eq!(total, (streams * tokens) as usize);
    total as f64 / start.elapsed().as_secs_f64()
}

/// Tokens a second that clients receive. They look every millisecond what there is.
fn served(address: SocketAddr, streams: u32, tokens: u32) -> f64 {
    let start = Instant::now();
    let mut sockets: Vec<_> = (0..streams).map(|i| (send(address, i, tokens), Vec::new())).collect();
    for (socket, _) in &sockets {
        socket.set_nonblocking(true).expect("the system knows it");
    }
    let mut events = 0;
    let mut buffer = vec![0; 64 << 10];
    while !sockets.is_empty() {
        sockets.retain_mut(|(socket, tail): &mut (TcpStream, Vec<u8>)| {
            match socket.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => tail.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => unreachable!("a stream broke: {error}"),
            }
            events += tail.windows(8).filter(|bytes| bytes == b"data: {\"").count() as u32;
            let done = tail.ends_with(b"0\r\n\r\n");
            // An event may lie across two reads.
            tail.drain(..tail.len().saturating_sub(7));
            !done
        });
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(events, streams * tokens);
    f64::from(events) / start.elapsed().as_secs_f64()
}

/// Seconds from the call to the first delta.
fn first_alone(engine: &EngineHandle, i: u32) -> f64 {
    let start = Instant::now();
    runtime().block_on(async {
        let mut output = engine.submit(request(i, 2)).await.expect("it is taken");
        output.next().await.expect("there is a token");
        let seconds = start.elapsed().as_secs_f64();
        while output.next().await.is_some() {}
        seconds
    })
}

/// Seconds from the connection to the first event.
fn first_served(address: SocketAddr, i: u32) -> f64 {
    let start = Instant::now();
    let mut socket = send(address, i, 2);
    let mut told = Vec::new();
    let mut buffer = [0; 4096];
    while !told.windows(6).any(|bytes| bytes == b"data: ") {
        let n = socket.read(&mut buffer).expect("the server answers");
        told.extend_from_slice(&buffer[..n]);
    }
    let seconds = start.elapsed().as_secs_f64();
    while !told.ends_with(b"0\r\n\r\n") {
        let n = socket.read(&mut buffer).expect("the server goes on");
        told.extend_from_slice(&buffer[..n]);
    }
    seconds
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn main() {
    let (rounds, streams, tokens) = (flag("--rounds", 9), flag("--streams", 64), flag("--tokens", 128));
    let options = EngineOptions {
        threads: flag("--threads", 1),
        max_model_len: Some(512),
        num_blocks: Some(4096),
        enable_prefix_caching: false,
        ..EngineOptions::new(ModelRef::Builtin("target".into()))
    };
    let session = Session::open(&options).expect("the embedded model loads");
    let capacity = session.capacity();
    let (engine, _thread) = EngineHandle::start(session, EngineLimits::default()).expect("a thread");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    let names = vec!["target".to_owned()];
    let served_as = ServeOptions { names, capacity, limits: Limits::default(), ..ServeOptions::default() };
    let server = Server::new(engine.clone(), served_as);
    std::thread::spawn(move || server.run(listener, std::future::pending()));

    alone(&engine, streams, tokens);
    served(address, streams, tokens);
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let pair = if round % 2 == 0 {
            let own = alone(&engine, streams, tokens);
            (own, served(address, streams, tokens))
        } else {
            let through = served(address, streams, tokens);
            (alone(&engine, streams, tokens), through)
        };
        println!("round {round}: {:.0} tokens/s of the engine, {:.0} through the server", pair.0, pair.1);
        ratios.push(pair.1 / pair.0);
    }
    let ratios = sorted(ratios);
    println!(
        "throughput, {streams} streams of {tokens} tokens: the server's share of the engine's is {:.3} (median of {rounds}; {:.3} to {:.3})",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1]
    );
    let (mut own, mut through) = (Vec::new(), Vec::new());
    for i in 0..rounds as u32 * 40 {
        own.push(first_alone(&engine, i) * 1e3);
        through.push(first_served(address, i) * 1e3);
    }
    let (own, through) = (sorted(own), sorted(through));
    let at = |values: &[f64], share: usize| values[values.len() * share / 100];
    for (share, name) in [(0, "least"), (50, "p50"), (90, "p90")] {
        let (own, through) = (at(&own, share), at(&through, share));
        println!(
            "time to first token, {name}: {own:.2} ms of the engine, {through:.2} ms at the client, {:.2} ms added",
            through - own
        );
    }
}
