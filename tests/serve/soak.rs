//! Clients of every kind at once, good and bad, and now and then ten times as many as the server has room for.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagedraft::session::Request;
use serde_json::{Value, json};

use crate::answers::tokenizer;
use crate::client::{Connection, get, post, request, send};
use crate::mutated;
use crate::place::generate;
use crate::process::Process;
use crate::random::Random;

const COMPLETIONS: &str = "/v1/completions";
/// How many samples the server runs at once, and how many may wait.
const RUNNING: usize = 8;
const WAITING: usize = 16;
/// So many requests come at once from time to time.
const OVERLOAD: usize = 10 * (RUNNING + WAITING);
const CLIENTS: u64 = 8;
const LONGEST: usize = 96;
/// How much the server may grow once it is warm.
const GROWTH: u64 = 16 << 20;
const PROMPTS: [&str; 6] = [
    "The king said to the",
    "Once upon a time there was",
    "Speak, and be brief:",
    "It was the best of days, and",
    "The old man went down to the sea, and the sea was calm. He looked for his boat, and for his net, and he",
    "The old man went down to the sea, and the sea was calm. He looked for his boat, and for his net, but the",
];

/// What a prompt is continued with when nobody else is there.
struct Known {
    prompt: &'static str,
    tokens: Vec<u32>,
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    refused: AtomicU64,
    left: AtomicU64,
    changed: AtomicU64,
    garbage: AtomicU64,
    slow: AtomicU64,
    overloads: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Soak {
    address: SocketAddr,
    known: Vec<Known>,
    tally: Tally,
}

impl Soak {
    /// A request, and the tokens that answer it.
    fn ask(&self, random: &mut Random) -> (Value, &[u32]) {
        let known = &self.known[random.below(self.known.len())];
        let tokens = random.between(1, LONGEST);
        let body = json!({"prompt": known.prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "return_token_ids": true});
        (body, &known.tokens[..tokens])
    }

    fn answered(&self, told: &[u32], expected: &[u32]) {
        assert_eq!(told, expected);
        count(&self.tally.answered);
    }

    fn whole(&self, random: &mut Random) {
        let (body, expected) = self.ask(random);
        let reply = post(self.address, COMPLETIONS, &body);
        if reply.status == 429 {
            assert!(reply.header("retry-after").is_some());
            return count(&self.tally.refused);
        }
        self.answered(&tokens(&reply.answer()), expected);
    }

    fn streamed(&self, random: &mut Random) {
        let (mut body, expected) = self.ask(random);
        body["stream"] = true.into();
        let response = send(self.address, &request("POST", COMPLETIONS, "", &body.to_string()));
        if response.status == 429 {
            return count(&self.tally.refused);
        }
        let told: Vec<u32> = response.events().iter().flat_map(tokens).collect();
        self.answered(&told, expected);
    }

    /// Goes away before the answer is whole.
    fn leaves(&self, random: &mut Random) {
        let (mut body, _) = self.ask(random);
        body["stream"] = (random.below(2) == 0).into();
        body["n"] = random.between(1, 4).into();
        let mut socket = self.connect();
        socket.write_all(&request("POST", COMPLETIONS, "", &body.to_string())).unwrap();
        let mut some = vec![0; random.below(2000)];
        if !some.is_empty() {
            let _ = socket.read(&mut some).unwrap();
        }
        count(&self.tally.left);
    }

    /// Reads some bytes at a time.
    fn slow(&self, random: &mut Random) {
        let (mut body, _) = self.ask(random);
        body["stream"] = true.into();
        let mut socket = self.connect();
        socket.write_all(&request("POST", COMPLETIONS, "", &body.to_string())).unwrap();
        let mut some = vec![0; random.between(1, 64)];
        for _ in 0..random.below(100) {
            if socket.read(&mut some).unwrap() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(random.below(20) as u64));
        }
        count(&self.tally.slow);
    }

    fn changed(&self, random: &mut Random) {
        let mut connection = Connection::new(self.address);
        for _ in 0..random.between(1, 20) {
            let (path, body) = mutated::body(random);
            mutated::check(&connection.post(path, &body));
            count(&self.tally.changed);
        }
    }

    /// Sends what is no request, and waits until the server has closed the connection.
    fn garbage(&self, random: &mut Random) {
        let (body, _) = self.ask(random);
        let mut bytes = request("POST", COMPLETIONS, "", &body.to_string());
        match random.below(3) {
            0 => bytes.truncate(random.below(bytes.len())),
            1 => bytes[random.below(40)] ^= 1 << random.below(8),
            _ => bytes = (0..random.between(1, 5000)).map(|_| random.next() as u8).collect(),
        }
        let mut socket = self.connect();
        // The server may have closed it in the middle.
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
        let _ = socket.read_to_end(&mut Vec::new());
        count(&self.tally.garbage);
    }

    /// A connection on which half a request is sent, and nothing more.
    fn half_open(&self, random: &mut Random) -> TcpStream {
        let (body, _) = self.ask(random);
        let bytes = request("POST", COMPLETIONS, "", &body.to_string());
        let mut socket = self.connect();
        socket.write_all(&bytes[..random.below(bytes.len())]).unwrap();
        socket
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    }

    /// One client until `end`.
    fn client(&self, seed: u64, end: Instant) {
        let mut random = Random(seed);
        let mut open = Vec::new();
        while Instant::now() < end {
            match random.below(16) {
                0..4 => self.whole(&mut random),
                4..8 => self.streamed(&mut random),
                8..10 => self.leaves(&mut random),
                10 => self.slow(&mut random),
                11..13 => self.changed(&mut random),
                13 => self.garbage(&mut random),
                14 => {
                    open.push(self.half_open(&mut random));
                    if open.len() > 32 {
                        drop(open.remove(0));
                    }
                }
                _ => {
                    assert_eq!(get(self.address, "/metrics").status, 200);
                    if random.below(8) == 0 {
                        post(self.address, "/reset_prefix_cache", &json!({})).answer();
                    }
                }
            }
        }
    }

    /// Ten times as many requests at once as there is room for.
    fn overload(&self, seed: u64) {
        std::thread::scope(|scope| {
            for i in 0..OVERLOAD as u64 {
                scope.spawn(move || self.whole(&mut Random(seed ^ (i << 32))));
            }
        });
        count(&self.tally.overloads);
    }

    /// The figure of the server of this name.
    fn figure(&self, name: &str) -> f64 {
        let page = get(self.address, "/metrics").text;
        let line = page.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn wait_for_quiet(&self) {
        let start = Instant::now();
        for name in ["vllm:num_requests_running", "vllm:num_requests_waiting", "pagedraft:kv_bytes_used"] {
            while self.figure(name) != 0.0 {
                assert!(start.elapsed() < Duration::from_secs(10), "{name} stays at {}", self.figure(name));
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn tokens(answer: &Value) -> Vec<u32> {
    serde_json::from_value(answer["choices"][0]["token_ids"].clone()).unwrap()
}

fn known() -> Vec<Known> {
    let tokenizer = tokenizer();
    let request = |prompt: &&str| Request {
        ignore_eos: true,
        ..Request::new(*prompt, tokenizer.encode(prompt, true).unwrap(), LONGEST as u32)
    };
    let outputs = generate(PROMPTS.iter().map(request).collect());
    let known = PROMPTS.iter().zip(outputs);
    known.map(|(prompt, output)| Known { prompt, tokens: output[0].token_ids.clone() }).collect()
}

fn soak(time: Duration, seed: u64) {
    eprintln!("seed {seed}");
    let (running, waiting) = (RUNNING.to_string(), WAITING.to_string());
    // The pool holds about half of what may run, so that requests are preempted.
    let pool = ["--num-blocks", "30", "--max-model-len", "256"];
    let server =
        Process::start(&[&["--max-num-seqs", &running, "--max-queue", &waiting][..], &pool[..]].concat());
    let soak = Soak { address: server.address, known: known(), tally: Tally::default() };
    let (start, end) = (Instant::now(), Instant::now() + time);
    let mut memory: Vec<Option<u64>> = Vec::new();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let soak = &soak;
            scope.spawn(move || soak.client(seed.wrapping_mul(1000) + client, end));
        }
        for i in 0.. {
            soak.overload(seed.wrapping_mul(1000) + 500 + i);
            memory.push(server.resident_bytes());
            if Instant::now() >= end {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    soak.wait_for_quiet();
    for name in ["pagedraft:steps_failed_total", "pagedraft:readers_too_slow_total"] {
        assert_eq!(soak.figure(name), 0.0, "{name}");
    }
    let preemptions = soak.figure("vllm:num_preemptions_total");
    for known in &soak.known {
        let body = json!({"prompt": known.prompt, "max_tokens": LONGEST, "temperature": 0, "ignore_eos": true, "return_token_ids": true});
        assert_eq!(tokens(&post(soak.address, COMPLETIONS, &body).answer()), known.tokens);
    }
    // It is warm after a third of the time.
    let memory: Vec<u64> = memory.into_iter().flatten().collect();
    let (warm, later) = memory.split_at(memory.len().div_ceil(3));
    let most = |of: &[u64]| of.iter().max().copied().unwrap_or(0);
    eprintln!("{:?} of {:?}, {preemptions} preemptions", soak.tally, start.elapsed());
    eprintln!("memory: {} kB at most once warm, {} kB later", most(warm) >> 10, most(later) >> 10);
    assert!(most(later) <= most(warm) + GROWTH, "the server grows: {memory:?}");
    server.terminate();
    let (code, told) = server.wait();
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("panicked"), "{told}");
    let seen = [&soak.tally.answered, &soak.tally.refused, &soak.tally.left, &soak.tally.changed];
    let seen = seen.into_iter().chain([&soak.tally.garbage, &soak.tally.slow]);
    assert!(seen.map(|count| count.load(Ordering::Relaxed)).all(|count| count > 0), "{:?}", soak.tally);
}

#[test]
fn clients_of_every_kind_leave_a_server_as_they_found_it() {
    soak(Duration::from_secs(8), 1);
}

/// Half an hour, or as many seconds as PAGEDRAFT_SOAK says.
#[test]
#[ignore = "takes half an hour"]
fn clients_of_every_kind_leave_a_server_as_they_found_it_for_long() {
    let seconds = std::env::var("PAGEDRAFT_SOAK").map_or(1800, |seconds| seconds.parse().unwrap());
    soak(Duration::from_secs(seconds), 2);
}
