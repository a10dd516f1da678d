//! The trace of a run with drafts is what ran: what it says was emitted is the output, and `trace check` finds nothing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use pagedraft::session::{DraftRef, EngineOptions, ModelRef, Request, RequestOutput, Session, TraceOptions};
use pagedraft::spec_decode::Scorer;
use pagedraft::spec_decode::sampling::SamplingParams;
use pagedraft_workloads::trace::{STEPS_FILE, StepRecord, TraceTables, check_dir};
use serde_json::json;

use crate::program::Scratch;
use crate::requests::speculation;

const TOKENS: u32 = 40;

fn options() -> EngineOptions {
    EngineOptions {
        num_blocks: Some(256),
        max_model_len: Some(256),
        ..EngineOptions::new(ModelRef::Builtin("target".into()))
    }
}

fn drafts() -> [(&'static str, DraftRef, u16); 4] {
    [
        ("right", DraftRef::Synthetic { rate: 1.0 }, 8),
        ("draft", DraftRef::Model(ModelRef::Builtin("draft".into())), 4),
        ("ngram", DraftRef::Ngram, 5),
        ("suffix", DraftRef::Suffix { store: 100 }, 5),
    ]
}

/// Runs the requests; `abort` ends the first one behind so many steps.
fn run(options: &EngineOptions, requests: &[Request], abort: Option<usize>) -> Vec<RequestOutput> {
    let mut session = Session::open(options).unwrap();
    let ids: Vec<_> = requests.iter().flat_map(|r| session.submit(r.clone()).unwrap()).collect();
    let mut steps = 0;
    while session.has_unfinished() {
        if abort == Some(steps) {
            session.abort(ids[0]).unwrap();
        }
        session.step().unwrap();
        steps += 1;
    }
    let outputs = ids.iter().map(|&id| session.take_output(id).unwrap()).collect();
    session.close(&json!({})).unwrap();
    outputs
}

/// The same with a trace, which must be sound and give the outputs. How often something was accepted that nobody was
/// given, and the number of preemptions.
fn traced(
    scratch: &Scratch,
    name: &str,
    options: &EngineOptions,
    requests: &[Request],
    abort: Option<usize>,
) -> (Vec<RequestOutput>, u64, u64) {
    let dir = scratch.path(name);
    let tables = if name.len().is_multiple_of(2) { TraceTables::Full } else { TraceTables::Delta };
    let trace = Some(TraceOptions { dir: dir.clone().into(), tables, format: Default::default() });
    let outputs = run(&EngineOptions { trace, ..options.clone() }, requests, abort);
    let report = check_dir(Path::new(&dir)).unwrap();
    assert!(report.violation.is_none(), "{name}: {}", report.violation.unwrap());
    let mut emitted: HashMap<String, Vec<u32>> = HashMap::new();
    let mut cut = 0;
    for line in std::fs::read_to_string(Path::new(&dir).join(STEPS_FILE)).unwrap().lines() {
        let step: StepRecord = serde_json::from_str(line).unwrap();
        for outcome in step.outcome {
            cut += u64::from(outcome.token_ids.len() < outcome.num_accepted as usize);
            emitted.entry(outcome.request_id).or_default().extend(outcome.token_ids);
        }
    }
    for output in &outputs {
        let found = emitted.get(&output.request_id).map_or(&[][..], Vec::as_slice);
        assert_eq!(found, output.token_ids, "{name}: {}", output.request_id);
    }
    std::fs::remove_dir_all(&dir).unwrap();
    (outputs, cut, report.preemptions)
}

/// Requests of several lengths that have a start in common, with what the plain run gave.
fn requests(texts: &[&str], sampling: &SamplingParams) -> Vec<Request> {
    let session = Session::open(&options()).unwrap();
    let tokenizer = session.tokenizer().unwrap();
    let request = |(i, text): (usize, &&str)| Request {
        sampling: SamplingParams { seed: i as u64, ..sampling.clone() },
        ignore_eos: true,
        ..Request::new(format!("r{i}"), tokenizer.encode(text, true).unwrap(), TOKENS)
    };
    let requests: Vec<_> = texts.iter().enumerate().map(request).collect();
    let plain = run(&options(), &requests, None);
    let recorded =
        |(r, o): (Request, &RequestOutput)| Request { recorded: vec![Arc::from(&o.token_ids[..])], ..r };
    requests.into_iter().zip(&plain).map(recorded).collect()
}

const TEXTS: [&str; 5] = [
    "Once upon a time there was a king, and the king said to the queen: once upon a time there was a king",
    "Once upon a time there was a king, and the king said to the queen: then",
    "The king said to the",
    "And then, without a word, and then, without a word, and then",
    "Once upon a time there was a king, and the king said to the queen: once upon a time there was a dog",
];

/// Each request with ends of all kinds, at every place of its output.
fn ends(requests: &[Request]) -> Vec<Request> {
    let mut session = Session::open(&options()).unwrap();
    let mut all = Vec::new();
    for request in requests {
        let tokens = Arc::clone(&request.recorded[0]);
        let whole = session.submit(request.clone()).unwrap()[0];
        while session.has_unfinished() {
            session.step().unwrap();
        }
        let text: Vec<char> = session.take_output(whole).unwrap().text.chars().collect();
        for at in (1..tokens.len()).step_by(3) {
            let name = |kind: &str| format!("{}-{kind}-{at}", request.request_id);
            all.push(Request {
                request_id: name("stop-token"),
                stop_token_ids: vec![tokens[at]],
                ..request.clone()
            });
            all.push(Request { request_id: name("max"), max_tokens: at as u32, ..request.clone() });
            let stop = text[at.min(text.len() - 4)..].iter().take(3).collect::<String>();
            all.push(Request { request_id: name("stop"), stop: vec![stop], ..request.clone() });
        }
    }
    all
}

#[test]
fn what_a_trace_says_was_emitted_is_the_output_wherever_it_ends() {
    let scratch = Scratch::new("trace-ends");
    for sampling in
        [SamplingParams::greedy(), SamplingParams { temperature: 0.8, ..SamplingParams::default() }]
    {
        let requests = ends(&requests(&TEXTS[..3], &sampling));
        let plain = run(&options(), &requests, None);
        for (name, draft, k) in drafts() {
            for scorer in [Scorer::Mqa, Scorer::BatchExpansion] {
                let name = format!("{name}-{scorer}");
                let options =
                    EngineOptions { speculation: speculation(draft.clone(), k, scorer), ..options() };
                let (found, cut, _) = traced(&scratch, &name, &options, &requests, None);
                for (found, plain) in found.iter().zip(&plain) {
                    assert_eq!(found.token_ids, plain.token_ids, "{name}: {}", plain.request_id);
                }
                assert!(cut > 20 || k < 8, "{name}: only {cut} ends inside an accepted run");
            }
        }
    }
}

#[test]
fn so_it_is_with_preemption_prefix_hits_and_aborts() {
    let scratch = Scratch::new("trace-tight");
    let requests = requests(&TEXTS, &SamplingParams::greedy());
    let plain = run(&options(), &requests, None);
    let (mut preemptions, mut hits) = (0, 0);
    for (name, draft, k) in drafts() {
        for (scorer, num_blocks, apart) in
            [(Scorer::Mqa, 8, None), (Scorer::BatchExpansion, 8, Some(4)), (Scorer::Mqa, 200, Some(3))]
        {
            let name = format!("{name}-{scorer}-{num_blocks}");
            let options = EngineOptions {
                num_blocks: Some(num_blocks),
                max_num_seqs: 3,
                prefill_chunk: Some(7),
                max_model_len: Some(128),
                speculation: speculation(draft.clone(), k, scorer),
                ..options()
            };
            let (found, _, preempted) = traced(&scratch, &name, &options, &requests, apart);
            preemptions += preempted;
            for (i, (found, plain)) in found.iter().zip(&plain).enumerate() {
                hits += found.num_cached_tokens;
                if apart.is_none() || i > 0 {
                    assert_eq!(found.token_ids, plain.token_ids, "{name}: {}", plain.request_id);
                }
            }
        }
    }
    assert!(preemptions > 0 && hits > 0, "{preemptions} preemptions, {hits} tokens out of the cache");
}

#[test]
fn log_probabilities_of_prompts_are_those_of_the_plain_run_whatever_the_schedule() {
    let sampling = SamplingParams { prompt_logprobs: Some(2), ..SamplingParams::greedy() };
    let requests = requests(&TEXTS, &sampling);
    let plain: Vec<_> =
        requests.iter().map(|r| run(&options(), std::slice::from_ref(r), None).remove(0)).collect();
    let logprobs = |output: &RequestOutput| {
        serde_json::to_string(&(&output.prompt_logprobs, &output.prompt_token_logprobs)).unwrap()
    };
    let mut preemptions = 0;
    for (name, draft, k) in drafts() {
        for scorer in [Scorer::Mqa, Scorer::BatchExpansion] {
            let options = EngineOptions {
                num_blocks: Some(10),
                max_model_len: Some(128),
                prefill_chunk: Some(7),
                speculation: speculation(draft.clone(), k, scorer),
                ..options()
            };
            for (found, plain) in run(&options, &requests, None).iter().zip(&plain) {
                let what = format!("{name}, {scorer}: {}", plain.request_id);
                assert_eq!(found.prompt_logprobs.as_ref().unwrap().len(), plain.prompt_token_ids.len());
                assert_eq!(logprobs(found), logprobs(plain), "{what}");
                assert_eq!(found.token_ids, plain.token_ids, "{what}");
                preemptions += found.num_preemptions;
            }
        }
    }
    assert!(preemptions > 0, "the pool was not tight");
}
