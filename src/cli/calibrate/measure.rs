//! Runs streams of requests one after the other, in the loop of a live replay.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use pagedraft::session::Session;
use pagedraft_workloads::measures::{Recorder, RecorderOptions};
use pagedraft_workloads::replay::{Incoming, PlannedRequest};

use super::draws::Draws;
use super::meter::Meter;
use super::phase::{Bounds, Load, Phase};
use super::way::Way;
use crate::cli::interrupt;
use crate::cli::live::{Before, Stream};

/// The share of the whole measuring time that each open stream gets.
const SHARE: f64 = 1.0 / 48.0;
/// The least duration of an open stream, in seconds.
const LASTING: f64 = 0.25;
/// An open stream pauses twice: for this many seconds at least, and at most `MORE` times as long.
const PAUSE: f64 = 0.01;
const MORE: f64 = 50.0;

/// Measures the times of steps.
pub struct Measuring<'a> {
    session: &'a mut Session,
    bounds: Bounds,
    text: Vec<u32>,
    draw: Draws,
    recorder: Recorder,
    before: Before,
    sent: u64,
}

impl<'a> Measuring<'a> {
    /// Prompts are cut from `text`.
    pub fn new(session: &'a mut Session, bounds: Bounds, text: Vec<u32>, seed: u64) -> Self {
        let block_size = session.info().block_size;
        let recorder = Recorder::new(RecorderOptions { block_size, ..RecorderOptions::default() });
        Self { session, bounds, text, draw: Draws::new(seed), recorder, before: Before::default(), sent: 0 }
    }

    /// Runs streams until `budget` is spent. With `with_corners` the extreme kinds of streams come first,
    /// as far as the budget suffices for them. `None` if Ctrl-C ended it. `progress` is called with the
    /// share that is done.
    pub fn run(
        &mut self,
        ways: &[Vec<Way>],
        catch_up: u32,
        budget: Duration,
        with_corners: bool,
        mut progress: impl FnMut(f64),
    ) -> anyhow::Result<Option<Meter>> {
        let corners = Phase::corners(&self.bounds);
        let plain = ways.first().and_then(|plain| plain.first()).context("there is no way to run")?.clone();
        let mut meter = Meter::new(plain.clone(), catch_up);
        // This first stream is not measured, because it touches memory and runs code for the first time.
        let warm =
            corners.first().context("the engine is too small to be measured: give it a larger pool")?;
        meter.begin(&plain, false);
        if !self.phase(&mut meter, *warm, LASTING)? {
            return Ok(None);
        }
        let (start, seconds) = (Instant::now(), budget.as_secs_f64());
        let lasting = (seconds * SHARE).max(LASTING);
        let mut ran = |measuring: &mut Self, way: &Way, phase: Phase| -> anyhow::Result<bool> {
            let done = start.elapsed().as_secs_f64();
            progress(done / seconds);
            let one = meter.service(phase.prompt, phase.output);
            // This is more than the stream takes, because requests in flight share steps.
            let all = one * f64::from(phase.requests(lasting, one));
            if all > (seconds - done).max(seconds / 8.0) {
                return Ok(true);
            }
            meter.begin(way, true);
            measuring.phase(&mut meter, phase, lasting)
        };
        for corner in corners.into_iter().filter(|_| with_corners) {
            for of_one in ways {
                let at = self.draw.below(of_one.len() as u64) as usize;
                if !ran(self, of_one.get(at).unwrap_or(&plain), corner)? {
                    return Ok(None);
                }
            }
        }
        while start.elapsed() < budget {
            // Half of the streams run without drafts, and half with those of all proposers together.
            let kind =
                if self.draw.uniform() < 0.5 { 0 } else { self.draw.below(ways.len() as u64) as usize };
            let way = match (kind, ways.get(kind)) {
                // Streams without drafts mostly use graphs if there are any, as replays do.
                (0, Some(plain)) if self.draw.uniform() < 0.8 => plain.first(),
                (_, of_one) => of_one.and_then(|ways| ways.get(self.draw.below(ways.len() as u64) as usize)),
            };
            let mut drawn = (0..100).map(|_| Phase::draw(&self.bounds, || self.draw.uniform()));
            let Some(phase) = drawn.find_map(|phase| phase) else { break };
            if interrupt::pressed() || !ran(self, way.unwrap_or(&plain), phase)? {
                return Ok(None);
            }
        }
        Ok(Some(meter))
    }

    /// Runs one stream. Returns `false` if Ctrl-C ended it.
    fn phase(&mut self, meter: &mut Meter, phase: Phase, lasting: f64) -> anyhow::Result<bool> {
        self.session.switch(meter.way().setup)?;
        let service = meter.service(phase.prompt, phase.output).max(1e-5);
        let count = phase.requests(lasting, service);
        let (mut requests, mut recorded) = (Vec::new(), HashMap::new());
        let shared = (phase.shared > 0.0).then(|| self.draw.below(self.text.len() as u64) as usize);
        let first = self.sent;
        let mut at = 0.0;
        for i in 0..count {
            let output = self.about(phase.output);
            let vocab = self.session.info().vocab_size as u64;
            // These are the drafts of the synthetic proposer. They are never right, so each step has as
            // many drafts as were asked for.
            let wrong: Vec<u32> = (0..output).map(|_| self.draw.below(vocab) as u32).collect();
            recorded.insert(self.sent, Arc::from(wrong));
            let mut arrival_ns = None;
            if let Load::Open(load) = phase.load {
                at -= (1.0 - self.draw.uniform()).ln() * service / load;
                if i == 0 || i == count / 2 {
                    at += PAUSE * MORE.powf(self.draw.uniform());
                }
                arrival_ns = Some(self.before.end_ns + (at * 1e9) as u64);
            }
            let prompt = self.prompt(phase, first, shared);
            requests.push(Ok(Incoming::Request(PlannedRequest {
                index: self.sent,
                source_id: None,
                category: None,
                arrival_ns,
                prompt,
                text: None,
                max_tokens: output,
                until_stop: false,
                expect: None,
            })));
            self.sent += 1;
        }
        let max_concurrency = match phase.load {
            Load::Closed(seats) => Some(seats),
            Load::Open(_) => None,
        };
        let begun = Instant::now();
        let source = requests.into_iter();
        let stream = Stream { source, before: &self.before, recorded: &recorded, max_concurrency };
        let whole = stream.serve(self.session, &mut self.recorder, meter)?;
        // The clock of the next stream goes on after the end of this one.
        self.before.end_ns += begun.elapsed().as_nanos() as u64 + 1;
        Ok(whole)
    }

    /// A number from half of `many` to one and a half times as much.
    fn about(&mut self, many: u32) -> u32 {
        let least = many - many / 2;
        least + self.draw.below(u64::from(many + many / 2 - least + 1)) as u32
    }

    /// A prompt. If `shared` is a position in the text, it begins like all prompts of its phase from there
    /// on; otherwise it begins like no other.
    fn prompt(&mut self, phase: Phase, first: u64, shared: Option<usize>) -> Vec<u32> {
        let length = self.about(phase.prompt) as usize;
        let vocab = self.session.info().vocab_size as u64;
        let from = shared.unwrap_or_else(|| self.draw.below(self.text.len() as u64) as usize);
        let mut prompt: Vec<u32> = {
            let rest = self.text.get(from..).unwrap_or_default();
            rest.iter().chain(self.text.iter().cycle()).copied().take(length).collect()
        };
        let mut name = |at: usize, number: u64| {
            let digits = [number % vocab, number / vocab % vocab];
            prompt.iter_mut().skip(at).zip(digits).for_each(|(token, digit)| *token = digit as u32);
        };
        if shared.is_some() {
            name((f64::from(phase.prompt) * phase.shared) as usize, self.sent);
        }
        name(0, if shared.is_some() { first } else { self.sent });
        prompt
    }
}
