//! A step that is interrupted in the middle ends soon, and nothing of it stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pagedraft::session::{
    DraftLength, DraftRef, EngineOptions, ModelRef, Request, Session, SpeculationOptions, TraceOptions,
};

use crate::models::directory;

const PROMPT: u32 = 3_000;

fn options() -> EngineOptions {
    EngineOptions {
        num_blocks: Some(1024),
        max_num_batched_tokens: PROMPT,
        speculation: SpeculationOptions {
            draft: Some(DraftRef::Model(ModelRef::Builtin("draft".into()))),
            length: DraftLength::Fixed(3),
            ..SpeculationOptions::default()
        },
        ..EngineOptions::new(ModelRef::Builtin("target".into()))
    }
}

fn request() -> Request {
    Request { ignore_eos: true, ..Request::new("r", (0..PROMPT).map(|i| i * 7 % 900).collect(), 12) }
}

#[test]
fn a_step_that_is_interrupted_ends_soon_and_is_as_if_it_had_not_begun() {
    let mut plain = Session::open(&options()).unwrap();
    let id = plain.submit(request()).unwrap()[0];
    let begun = Instant::now();
    plain.step().unwrap();
    let whole = begun.elapsed();
    while plain.has_unfinished() {
        plain.step().unwrap();
    }
    let expected = plain.take_output(id).unwrap().token_ids;

    let dir = directory("interrupted");
    let flag = Arc::new(AtomicBool::new(false));
    let trace = TraceOptions { dir: dir.clone(), tables: Default::default(), format: Default::default() };
    let options = EngineOptions { interrupt: Some(Arc::clone(&flag)), trace: Some(trace), ..options() };
    let mut session = Session::open(&options).unwrap();
    let id = session.submit(request()).unwrap()[0];
    let setter = std::thread::spawn({
        let flag = Arc::clone(&flag);
        move || {
            std::thread::sleep(whole / 10);
            flag.store(true, Ordering::Relaxed);
        }
    });
    let begun = Instant::now();
    let error = session.step().unwrap_err();
    let cut = begun.elapsed();
    setter.join().unwrap();
    assert!(error.is_interrupt(), "{error:#}");
    assert!(cut < whole / 2 + Duration::from_millis(20), "{cut:?} of {whole:?}");
    // The draft model's own passes look at it as well, and a small step does.
    flag.store(false, Ordering::Relaxed);
    session.step().unwrap();
    flag.store(true, Ordering::Relaxed);
    assert!(session.step().unwrap_err().is_interrupt());
    flag.store(false, Ordering::Relaxed);
    while session.has_unfinished() {
        session.step().unwrap();
    }
    assert_eq!(session.take_output(id).unwrap().token_ids, expected);
    session.close(&serde_json::Value::Null).unwrap();
    let lines = std::fs::read_to_string(dir.join("trace_steps.jsonl")).unwrap();
    let steps = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let prefilled: u64 = steps
        .filter(|step| step["rows"][0]["kind"] == "prefill")
        .map(|step| step["rows"][0]["num_new"].as_u64().unwrap())
        .sum();
    // Once whole, and once again behind what the second interrupted step left in the cache.
    assert!((u64::from(PROMPT)..2 * u64::from(PROMPT)).contains(&prefilled), "{prefilled}");
}
