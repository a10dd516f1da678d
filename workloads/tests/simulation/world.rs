//! Streams and observers for simulations.

use std::collections::BTreeMap;

use pagedraft_scheduler::{CostCurve, SchedulerConfig};
use pagedraft_workloads::Error;
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::measures::{Recorder, RecorderOptions};
use pagedraft_workloads::replay::{Incoming, PlannedRequest, RequestLine, StepReport};
use pagedraft_workloads::sim::{
    Acceptance, CostModel, DraftCost, Observer, Router, SimEvent, SimOptions, SimReport, SimSpeculation,
    simulate,
};
use pagedraft_workloads::trace::TraceWriter;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub type Stream = Vec<PlannedRequest>;

pub fn request(index: u64, arrival_ns: Option<u64>, prompt: Vec<u32>, max_tokens: u32) -> PlannedRequest {
    PlannedRequest {
        index,
        source_id: None,
        category: None,
        arrival_ns,
        prompt,
        text: None,
        max_tokens,
        until_stop: false,
        expect: None,
    }
}

/// Requests of up to `prompt` and `output` tokens, on average `gap_ns` apart; every third prompt begins like others.
pub fn random_stream(seed: u64, requests: u64, gap_ns: u64, prompt: u32, output: u32) -> Stream {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut at = 0;
    (0..requests)
        .map(|index| {
            at += rng.random_range(0..=2 * gap_ns);
            let length = rng.random_range(1..=prompt);
            let base = if rng.random_range(0..3) == 0 { 0 } else { 1 + index as u32 };
            let tokens = (0..length).map(|i| base * 1000 + i).collect();
            request(index, Some(at), tokens, rng.random_range(1..=output))
        })
        .collect()
}

/// One engine whose steps take a millisecond, whatever is in them.
pub fn options() -> SimOptions {
    SimOptions {
        scheduler: SchedulerConfig { num_blocks: 4096, ..SchedulerConfig::default() },
        cost: CostModel {
            name: "a millisecond a step".to_owned(),
            target: CostCurve { points: vec![(1, 1000.0)], ..CostCurve::default() },
            ..CostModel::default()
        },
        speculation: None,
        prune: None,
        enforce_eager: false,
        replicas: 1,
        router: Router::RoundRobin,
        max_concurrency: None,
        seed: 0,
    }
}

/// `options` with drafts that are accepted with the probability `share`; the proposer takes no time.
pub fn speculating(mut options: SimOptions, keeps_kv: bool, most: u16, share: f64) -> SimOptions {
    let cost = DraftCost { keeps_kv, ..DraftCost::default() };
    options.cost.proposers = BTreeMap::from([("some".to_owned(), cost)]);
    let by_position = vec![share];
    options.cost.acceptance = BTreeMap::from([("some".to_owned(), Acceptance { by_position, given: 1.0 })]);
    options.speculation = Some(SimSpeculation {
        proposer: "some".to_owned(),
        acceptance: None,
        most,
        auto: false,
        batch_expansion: false,
    });
    options
}

/// What an observer saw.
#[derive(Default)]
pub struct Seen {
    pub lines: Vec<RequestLine>,
    pub steps: Vec<StepReport>,
    pub trace: Option<TraceWriter>,
    pub stop_after: Option<usize>,
}

impl Observer for Seen {
    fn line(&mut self, line: &RequestLine) -> Result<(), Error> {
        self.lines.push(line.clone());
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> Result<(), Error> {
        self.steps.push(report.clone());
        Ok(())
    }

    fn wants_trace(&self) -> bool {
        self.trace.is_some()
    }

    fn trace(&mut self, replica: u32, event: SimEvent<'_>) -> Result<(), Error> {
        assert_eq!(event.replica.unwrap_or(0), replica);
        self.trace.as_mut().map_or(Ok(()), |trace| trace.write(&event))
    }

    fn stop(&mut self) -> bool {
        self.stop_after.is_some_and(|steps| self.steps.len() >= steps)
    }
}

pub struct Outcome {
    pub report: SimReport,
    pub seen: Seen,
    pub recorder: Recorder,
}

impl Outcome {
    /// The line of a request.
    pub fn line(&self, index: u64) -> &RequestLine {
        self.seen.lines.iter().find(|line| line.request_id == index.to_string()).expect("a line of it")
    }
}

pub fn try_run(stream: Stream, options: &SimOptions, mut seen: Seen) -> Result<Outcome, Error> {
    let items = stream.len() as u64;
    let mut recorder = Recorder::new(RecorderOptions {
        items,
        block_size: options.scheduler.block_size,
        ..Default::default()
    });
    let mut source = stream.into_iter().map(|request| Ok::<_, DatasetError>(Incoming::Request(request)));
    let report = simulate(&mut source, options, &mut recorder, &mut seen)?;
    Ok(Outcome { report, seen, recorder })
}

pub fn run(stream: Stream, options: &SimOptions) -> Outcome {
    try_run(stream, options, Seen::default()).expect("it can be simulated")
}
