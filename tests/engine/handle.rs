//! An engine on a thread of its own, held by a handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pagedraft::engine::handle::{End, EngineHandle, EngineThread, Limits, Output, SubmitError};
use pagedraft::session::{EngineOptions, ModelRef, Request, RequestOutput, Session};

fn options() -> EngineOptions {
    let mut options = EngineOptions::new(ModelRef::Builtin("target".to_owned()));
    options.num_blocks = Some(256);
    options.threads = 1;
    options
}

fn start(options: &EngineOptions, limits: Limits) -> (EngineHandle, EngineThread) {
    EngineHandle::start(Session::open(options).unwrap(), limits).unwrap()
}

fn requests() -> Vec<Request> {
    let request = |i: u32| {
        let prompt = (0..5 + 7 * i).map(|t| 10 + (t * 31 + i * 17) % 900).collect();
        let mut request = Request::new(format!("r{i}"), prompt, 6 + i);
        request.ignore_eos = true;
        request
    };
    (0..12).map(request).collect()
}

/// What each request generates in a session that has it alone.
fn alone(options: &EngineOptions, requests: &[Request]) -> Vec<RequestOutput> {
    let mut session = Session::open(options).unwrap();
    let mut run = |request: &Request| {
        let ids = session.submit(request.clone()).unwrap();
        while session.has_unfinished() {
            session.step().unwrap();
        }
        session.take_output(ids[0]).unwrap()
    };
    requests.iter().map(&mut run).collect()
}

/// Reads an output to its end. Returns the tokens and the text of the deltas, and how the sample ended.
async fn read(mut output: Output) -> (Vec<u32>, String, End) {
    let (mut tokens, mut text, mut end) = (Vec::new(), String::new(), None);
    while let Some(delta) = output.next().await {
        tokens.extend(delta.token_ids);
        text.push_str(&delta.text);
        end = delta.end.or(end);
    }
    (tokens, text, end.unwrap())
}

fn finished(end: End) -> RequestOutput {
    match end {
        End::Finished(output) => *output,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_streamed_is_what_a_session_generates_for_each_request_alone() {
    let (options, requests) = (options(), requests());
    let expected = alone(&options, &requests);
    let (engine, thread) = start(&options, Limits::default());
    let mut reads = Vec::new();
    for request in &requests {
        reads.push(tokio::spawn(read(engine.submit(request.clone()).await.unwrap())));
    }
    for (read, expected) in reads.into_iter().zip(&expected) {
        let (tokens, text, end) = read.await.unwrap();
        let output = finished(end);
        assert_eq!((&tokens, &text), (&expected.token_ids, &expected.text));
        assert_eq!((&output.token_ids, &output.text), (&expected.token_ids, &expected.text));
    }
    engine.drain().await;
    let stats = engine.stats();
    let generated: usize = expected.iter().map(|output| output.token_ids.len()).sum();
    assert_eq!(stats.generation_tokens, generated as u64);
    assert_eq!((stats.running, stats.waiting, stats.pool.used), (0, 0, 0));
    assert_eq!(stats.time_to_first_token.count(), 12);
    assert_eq!(stats.inter_token_latency.count(), (generated - 12) as u64);
    drop(engine);
    assert!(!thread.join().unwrap().has_unfinished());
}

#[tokio::test]
async fn an_output_that_is_dropped_gives_its_blocks_back_and_leaves_the_others_alone() {
    let (options, requests) = (options(), requests());
    let expected = alone(&options, &requests[..2]);
    let (engine, thread) = start(&options, Limits::default());
    let mut long = requests[3].clone();
    (long.max_tokens, long.n) = (1000, 3);
    let mut dropped = engine.submit(long).await.unwrap();
    dropped.next().await.unwrap();
    let kept = engine.submit(requests[1].clone()).await.unwrap();
    drop(dropped);
    assert_eq!(finished(read(kept).await.2).token_ids, expected[1].token_ids);
    engine.drain().await;
    assert_eq!(engine.stats().pool.used, 0);
    drop(engine);
    thread.join().unwrap();
}

#[tokio::test]
async fn a_reader_that_is_too_slow_loses_its_request_and_is_told_so() {
    let (options, requests) = (options(), requests());
    let expected = alone(&options, &requests[..3]);
    let (engine, thread) = start(&options, Limits { deltas: 16, ..Limits::default() });
    let mut long = requests[5].clone();
    (long.max_tokens, long.n) = (1000, 2);
    let unread = engine.submit(long).await.unwrap();
    // Others are read, and are not held up: this one has fewer tokens than a reader may be behind.
    let (tokens, ..) = read(engine.submit(requests[2].clone()).await.unwrap()).await;
    assert_eq!(tokens, expected[2].token_ids);
    engine.drain().await;
    let (tokens, _, end) = read(unread).await;
    assert!(matches!(end, End::TooSlow), "{end:?}");
    // There is room for 16 steps of each of its two samples.
    assert_eq!(tokens.len(), 32);
    assert_eq!((engine.stats().too_slow, engine.stats().pool.used), (1, 0));
    drop(engine);
    thread.join().unwrap();
}

#[tokio::test]
async fn each_refusal_has_its_kind() {
    let (engine, thread) = start(&options(), Limits { max_queue: 0, ..Limits::default() });
    let full = engine.submit(requests().remove(0)).await.err().unwrap();
    assert!(matches!(full, SubmitError::QueueFull { waiting: 0, max_queue: 0 }), "{full}");
    assert_eq!(engine.stats().refused, 1);
    drop(engine);
    thread.join().unwrap();

    let (engine, thread) = start(&options(), Limits::default());
    let bad = engine.submit(Request::new("empty", Vec::new(), 3)).await.err().unwrap();
    assert!(matches!(&bad, SubmitError::Bad(why) if why.contains("empty")), "{bad}");
    engine.drain().await;
    let late = engine.submit(requests().remove(0)).await.err().unwrap();
    assert!(matches!(late, SubmitError::Draining), "{late}");
    drop(engine);
    thread.join().unwrap();
}

#[tokio::test]
async fn a_step_that_fails_fails_its_requests_and_the_engine_goes_on() {
    let (mut options, requests) = (options(), requests());
    let expected = alone(&options, &requests[..2]);
    let flag = Arc::new(AtomicBool::new(true));
    options.interrupt = Some(Arc::clone(&flag));
    let (engine, thread) = start(&options, Limits::default());
    let (.., end) = read(engine.submit(requests[0].clone()).await.unwrap()).await;
    assert!(matches!(end, End::StepFailed(_)), "{end:?}");
    flag.store(false, Ordering::Relaxed);
    let (tokens, ..) = read(engine.submit(requests[1].clone()).await.unwrap()).await;
    assert_eq!(tokens, expected[1].token_ids);
    engine.drain().await;
    assert_eq!((engine.stats().failed_steps, engine.stats().pool.used), (1, 0));
    drop(engine);
    thread.join().unwrap();
}

#[tokio::test]
async fn samples_of_one_prompt_share_it_and_each_ends_by_itself() {
    let (engine, thread) = start(&options(), Limits::default());
    let mut request = requests().remove(7);
    (request.n, request.sampling.temperature, request.sampling.logprobs) = (4, 1.0, Some(2));
    let mut output = engine.submit(request.clone()).await.unwrap();
    let (mut lens, mut ends, mut logprobs) = ([0; 4], 0, 0);
    while let Some(delta) = output.next().await {
        assert_eq!(delta.prompt.is_some(), lens[delta.sample as usize] == 0);
        lens[delta.sample as usize] += delta.token_ids.len();
        logprobs += delta.logprobs.len();
        ends += u32::from(delta.end.is_some());
    }
    assert_eq!(
        (lens, ends, logprobs),
        ([request.max_tokens as usize; 4], 4, 4 * request.max_tokens as usize)
    );
    drop((output, engine));
    thread.join().unwrap();
}
