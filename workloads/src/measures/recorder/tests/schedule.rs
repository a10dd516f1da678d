//! Random runs of engines, and a log of them to compute every figure from again, slowly.

use std::collections::BTreeMap;

use pagedraft_scheduler::FinishReason;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::dataset::{Expectation, SkipReason};
use crate::measures::{Recorder, RecorderOptions, Slo};
use crate::replay::{
    EndedRequest, Output, PlannedRequest, RequestLine, RowReport, SkippedRequest, StepReport, Ticket,
};
use crate::trace::PoolCounts;

/// What a row was.
#[derive(Clone, Debug)]
pub struct LoggedRow {
    pub start_ns: u64,
    pub end_ns: u64,
    pub row: RowReport,
}

/// What a request was.
#[derive(Clone, Debug, Default)]
pub struct LoggedRequest {
    pub index: u64,
    pub category: Option<String>,
    pub intended_ns: u64,
    pub sent_ns: u64,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub answer: String,
    pub rows: Vec<LoggedRow>,
    pub output: Vec<u32>,
    pub replica: u32,
    pub prefix_blocks: Vec<u32>,
    /// 0: finished, 1: aborted, 2: failed, 3: skipped.
    pub fate: u8,
    /// In which order it was done with, and when.
    pub done: (u64, u64),
}

/// A run.
#[derive(Debug)]
pub struct Schedule {
    pub options: RecorderOptions,
    pub requests: BTreeMap<u64, LoggedRequest>,
    pub steps: Vec<StepReport>,
    pub lines: Vec<RequestLine>,
    pub recorder: Recorder,
    pub most_in_flight: usize,
}

pub const BLOCK_SIZE: u32 = 16;

struct Live {
    ticket: Ticket,
    index: u64,
    prefill_left: u32,
    output_left: u32,
    context: u32,
}

/// Runs `items` requests over one to three engines, as a seed says, and tells a recorder.
pub fn run(seed: u64, items: u64, speculate: bool) -> Schedule {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let options = RecorderOptions {
        slo: Slo { ttft_ms: Some(400.0), tpot_ms: Some(60.0), e2el_ms: None },
        items,
        block_size: BLOCK_SIZE,
        rate_asked: Some(20.0),
        save_outputs: seed.is_multiple_of(2),
        server: false,
    };
    let mut all = Schedule {
        recorder: Recorder::new(options.clone()),
        options,
        requests: BTreeMap::new(),
        steps: Vec::new(),
        lines: Vec::new(),
        most_in_flight: 0,
    };
    let mut clocks = vec![0u64; random.random_range(1..4)];
    let mut live: Vec<Vec<Live>> = clocks.iter().map(|_| Vec::new()).collect();
    let (mut next, mut intended, mut done) = (0u64, 0u64, 0u64);
    while next < items || live.iter().any(|l| !l.is_empty()) {
        // The engine whose clock is behind goes on.
        let replica = (0..clocks.len()).min_by_key(|&i| clocks[i]).unwrap_or(0);
        let start_ns = clocks[replica] + random.random_range(0..3) * 1_000_000;
        while next < items && intended <= start_ns {
            let category = (next % 3 > 0).then(|| format!("kind {}", next % 3));
            let mut request =
                LoggedRequest { index: next, category, intended_ns: intended, ..Default::default() };
            if random.random_bool(0.1) {
                let skipped = SkippedRequest {
                    index: next,
                    source_id: Some(format!("s{next}")),
                    category: request.category.clone(),
                    arrival_ns: Some(intended),
                    prompt_tokens: None,
                    reason: SkipReason::PromptTooLong,
                };
                all.lines.push(all.recorder.skip(&skipped));
                request.fate = 3;
                request.done = (done, all.end_ns());
                done += 1;
            } else {
                request.prompt_tokens = random.random_range(1..200);
                request.sent_ns = start_ns;
                request.cached_tokens =
                    random.random_range(0..request.prompt_tokens) / BLOCK_SIZE * BLOCK_SIZE;
                request.prefix_blocks =
                    (0..request.cached_tokens / BLOCK_SIZE).map(|_| random.random_range(0..90)).collect();
                request.answer = ["yes", "no"][random.random_range(0..2usize)].to_owned();
                request.replica = replica as u32;
                let planned = PlannedRequest {
                    index: next,
                    source_id: None,
                    category: request.category.clone(),
                    arrival_ns: Some(intended),
                    prompt: vec![7; request.prompt_tokens as usize],
                    text: None,
                    max_tokens: 40,
                    until_stop: false,
                    expect: Some(Expectation::Contains { answers: vec!["yes".to_owned()], any: true }),
                };
                let ticket = all.recorder.send(&planned, intended, start_ns);
                all.most_in_flight = all.most_in_flight.max(all.recorder.in_flight());
                live[replica].push(Live {
                    ticket,
                    index: next,
                    prefill_left: request.prompt_tokens - request.cached_tokens,
                    output_left: random.random_range(1..40),
                    context: request.cached_tokens,
                });
            }
            all.requests.insert(next, request);
            next += 1;
            intended += random.random_range(0..120) * 1_000_000;
        }
        // A step takes up to 60 ms; now and then two seconds.
        let spent = if random.random_bool(0.02) { 2_000_000_000 } else { random.random_range(1..60_000_000) };
        let end_ns = start_ns + spent;
        clocks[replica] = end_ns;
        let (used, during) = (random.random_range(0..100), random.random_range(0..100));
        let mut report = StepReport {
            replica: replica as u32,
            step: all.steps.len() as u64,
            start_ns,
            end_ns,
            running: live[replica].len() as u32,
            waiting: random.random_range(0..5),
            preempted: u32::from(random.random_bool(0.1)),
            pool_during: PoolCounts {
                num_blocks: 100,
                used: during,
                free: 100 - during,
                ..PoolCounts::default()
            },
            pool: PoolCounts { num_blocks: 100, used, free: 100 - used, ..PoolCounts::default() },
            replayed: random.random_bool(0.5),
            ..StepReport::default()
        };
        for request in &mut live[replica] {
            if random.random_bool(0.2) {
                continue;
            }
            let logged = all.requests.get_mut(&request.index).unwrap();
            let mut row = RowReport {
                ticket: request.ticket,
                cached_tokens: logged.cached_tokens,
                ..RowReport::default()
            };
            if request.prefill_left > 0 {
                let chunk = request.prefill_left.min(64);
                request.prefill_left -= chunk;
                request.context += chunk;
                report.prefill_tokens += chunk;
                row.new_tokens = u16::from(request.prefill_left == 0);
            } else {
                row.num_drafts = if speculate { random.random_range(0..4) } else { 0 };
                row.num_accepted = random.random_range(0..=row.num_drafts);
                row.new_tokens = (row.num_accepted + 1).min(request.output_left as u16);
                report.decode_rows += 1;
            }
            row.context = request.context + if row.num_drafts > 0 { u32::from(row.num_drafts) } else { 0 };
            if row.new_tokens > 0 {
                request.context += u32::from(row.new_tokens);
                request.output_left -= u32::from(row.new_tokens);
                logged.output.extend((0..row.new_tokens).map(|_| random.random_range(0..1000u32)));
            }
            logged.rows.push(LoggedRow { start_ns, end_ns, row });
            report.rows.push(row);
            let abort = random.random_bool(0.002);
            if request.output_left == 0 || abort {
                request.output_left = 0;
                logged.fate = u8::from(abort);
                report.ended.push(EndedRequest {
                    ticket: request.ticket,
                    reason: if abort { FinishReason::Abort } else { FinishReason::Length },
                    error: None,
                    cached_tokens: logged.cached_tokens,
                    preemptions: 2,
                    blocks_held: 5,
                    prefix_blocks: logged.prefix_blocks.clone(),
                    output: Some(Output { token_ids: logged.output.clone(), text: logged.answer.clone() }),
                });
            }
        }
        all.recorder.step(&report, &mut all.lines);
        all.steps.push(report);
        let end = all.end_ns();
        let report = &all.steps[all.steps.len() - 1];
        for ended in &report.ended {
            let request = live[replica].iter().find(|l| l.ticket == ended.ticket).unwrap();
            all.requests.get_mut(&request.index).unwrap().done = (done, end);
            done += 1;
        }
        live[replica].retain(|l| l.output_left > 0);
        // Now and then an engine loses a request.
        if random.random_bool(0.01)
            && let Some(lost) = live[replica].pop()
        {
            all.lines.push(all.recorder.fail(lost.ticket, end_ns, "lost".to_owned()));
            let request = all.requests.get_mut(&lost.index).unwrap();
            (request.fate, request.done) = (2, (done, end));
            done += 1;
        }
    }
    all
}

impl Schedule {
    /// When the last step so far ended.
    pub fn end_ns(&self) -> u64 {
        self.steps.iter().map(|s| s.end_ns).max().unwrap_or(0)
    }

    /// Rows that gave a request tokens, with the time since it got its last ones; `None` for its first.
    pub fn emissions(request: &LoggedRequest) -> Vec<(Option<u64>, LoggedRow)> {
        let mut last = None;
        let mut all = Vec::new();
        for row in request.rows.iter().filter(|r| r.row.new_tokens > 0) {
            all.push((last.map(|last| row.end_ns - last), row.clone()));
            last = Some(row.end_ns);
        }
        all
    }
}
