//! Real steps of a session, measured in a loop like that of a live replay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use pagedraft::session::{DraftLength, DraftRef, Request, RequestId, Session, SetupId, SpeculationOptions};
use pagedraft_spec_decode::Scorer;
use pagedraft_workloads::measures::{Recorder, RecorderOptions};
use pagedraft_workloads::replay::{
    EndedRequest, Output, PlannedRequest, RequestLine, RowReport, StepReport, Ticket,
};
use pagedraft_workloads::sim::{MeasuredStep, StepCost};

use super::acceptance::Tally;
use super::draws::Draws;
use super::episode::{Bounds, Episode};
use super::shapes::Shapes;
use crate::cli::interrupt;

/// How long the engine sleeps before some episodes, about.
const IDLE: Duration = Duration::from_millis(40);

/// A way in which the engine is run.
#[derive(Clone, Debug)]
pub struct Way {
    /// Who proposes.
    pub proposer: Option<&'static str>,
    /// Whether it keeps KV.
    pub keeps_kv: bool,
    setup: SetupId,
}

impl Way {
    /// All of them: without drafts and with those of each proposer, from one to `most` a row, by both scorers, eager and, if the
    /// session has them, on graphs.
    pub fn all(
        session: &mut Session,
        base: &SpeculationOptions,
        graphs: bool,
    ) -> anyhow::Result<Vec<Vec<Self>>> {
        let modes: &[bool] = if graphs { &[false, true] } else { &[true] };
        let mut plain = Vec::new();
        for &eager in modes {
            let options = SpeculationOptions { draft: None, ..base.clone() };
            plain.push(Self { proposer: None, keeps_kv: false, setup: session.prepare(&options, eager)? });
        }
        let mut ways = vec![plain];
        let mut drafts = vec![DraftRef::Ngram];
        match &base.draft {
            Some(DraftRef::Ngram) | None => drafts.push(DraftRef::Synthetic { rate: SYNTHETIC_RATE }),
            Some(DraftRef::Synthetic { rate }) => drafts.push(DraftRef::Synthetic { rate: *rate }),
            Some(DraftRef::Model(model)) => {
                drafts.push(DraftRef::Synthetic { rate: SYNTHETIC_RATE });
                drafts.push(DraftRef::Model(model.clone()));
            }
        }
        for draft in drafts {
            let mut of_it = Vec::new();
            for k in 1..=base.length.most().clamp(1, DraftLength::AUTO_MAX) {
                for scorer in [Scorer::Mqa, Scorer::BatchExpansion] {
                    for &eager in modes {
                        let length = DraftLength::Fixed(k);
                        let options =
                            SpeculationOptions { draft: Some(draft.clone()), length, scorer, ..base.clone() };
                        of_it.push(Self {
                            proposer: Some(draft.name()),
                            keeps_kv: matches!(draft, DraftRef::Model(_)),
                            setup: session.prepare(&options, eager)?,
                        });
                    }
                }
            }
            ways.push(of_it);
        }
        Ok(ways)
    }
}

/// The rate of synthetic drafts where none is asked for; what they are made of is never right here, whatever the rate.
pub const SYNTHETIC_RATE: f64 = 0.7;

/// Measures episodes.
pub struct Measuring<'a> {
    session: &'a mut Session,
    bounds: Bounds,
    catch_up: u32,
    text: Vec<u32>,
    draw: Draws,
    recorder: Recorder,
    shapes: Shapes,
    report: StepReport,
    ended: Vec<RequestLine>,
    in_flight: BTreeMap<RequestId, Ticket>,
    sent: u64,
    runs: u64,
    pub steps: Vec<MeasuredStep>,
    pub tallies: BTreeMap<&'static str, Tally>,
    /// Tokens computed, and the time that took.
    pace: (u64, Duration),
    /// Whether nothing ran before the next step.
    after_idle: bool,
}

impl<'a> Measuring<'a> {
    /// Prompts are pieces of `text`.
    pub fn new(session: &'a mut Session, bounds: Bounds, catch_up: u32, text: Vec<u32>, seed: u64) -> Self {
        let block_size = session.info().block_size;
        Self {
            session,
            bounds,
            catch_up,
            text,
            draw: Draws::new(seed),
            recorder: Recorder::new(RecorderOptions { block_size, ..RecorderOptions::default() }),
            shapes: Shapes::default(),
            report: StepReport::default(),
            ended: Vec::new(),
            in_flight: BTreeMap::new(),
            sent: 0,
            runs: 0,
            steps: Vec::new(),
            tallies: BTreeMap::new(),
            pace: (0, Duration::ZERO),
            after_idle: false,
        }
    }

    /// Runs episodes until `budget` is spent, the corners of what there is at least; `false` when Ctrl-C ended it. `progress`
    /// is told the share that is done.
    pub fn run(
        &mut self,
        ways: &[Vec<Way>],
        budget: Duration,
        mut progress: impl FnMut(f64),
    ) -> anyhow::Result<bool> {
        let corners = Episode::corners(&self.bounds);
        let plain = ways.first().and_then(|plain| plain.first()).context("there is no way to run")?.clone();
        // Memory that was never touched, code that was never run.
        let warm =
            corners.first().context("the engine is too small to be measured: give it a larger pool")?;
        self.episode(&plain, *warm, false)?;
        let start = Instant::now();
        for corner in corners {
            for of_one in ways {
                if interrupt::pressed() {
                    return Ok(false);
                }
                let at = self.draw.below(of_one.len() as u64) as usize;
                if self.affords(corner, budget) {
                    self.episode(of_one.get(at).unwrap_or(&plain), corner, true)?;
                }
                progress(start.elapsed().as_secs_f64() / budget.as_secs_f64());
            }
        }
        while start.elapsed() < budget {
            if interrupt::pressed() {
                return Ok(false);
            }
            // As many without drafts as with those of all proposers.
            let kind =
                if self.draw.uniform() < 0.5 { 0 } else { self.draw.below(ways.len() as u64) as usize };
            let way = ways.get(kind).and_then(|ways| ways.get(self.draw.below(ways.len() as u64) as usize));
            let Some(episode) = Episode::draw(&self.bounds, || self.draw.uniform()) else { break };
            let left = budget.saturating_sub(start.elapsed());
            if self.affords(episode, left.max(budget / 16)) {
                self.episode(way.unwrap_or(&plain), episode, true)?;
            }
            progress(start.elapsed().as_secs_f64() / budget.as_secs_f64());
        }
        Ok(true)
    }

    /// Whether an episode takes no more than half of this, by what those before took.
    fn affords(&self, episode: Episode, time: Duration) -> bool {
        let (tokens, took) = self.pace;
        let us = took.as_secs_f64() / tokens.max(1) as f64 * episode.tokens() as f64;
        us <= time.as_secs_f64() / 2.0
    }

    fn episode(&mut self, way: &Way, episode: Episode, counted: bool) -> anyhow::Result<()> {
        let start = Instant::now();
        self.session.switch(way.setup)?;
        self.runs += 1;
        for _ in 0..episode.requests {
            self.submit(episode.prompt, episode.output)?;
        }
        // Half of them find an engine that slept, as requests that come one by one do.
        self.after_idle = counted && self.draw.uniform() < 0.5;
        if self.after_idle {
            std::thread::sleep(IDLE.mul_f64(0.2 + 1.6 * self.draw.uniform()));
        }
        let mut late = episode.late;
        let mut decodes = 0;
        while self.session.has_unfinished() {
            if interrupt::pressed() {
                let ids: Vec<RequestId> = std::mem::take(&mut self.in_flight).into_keys().collect();
                return interrupt::forget(self.session, &ids);
            }
            self.step(way, counted)?;
            decodes += u32::from(self.report.decode_rows > 0);
            if decodes >= episode.output / 3 && late > 0 {
                self.submit(std::mem::take(&mut late), episode.output)?;
            }
        }
        self.pace.0 += episode.tokens();
        self.pace.1 += start.elapsed();
        Ok(())
    }

    /// A prompt of about so many tokens that no other begins like.
    fn submit(&mut self, about: u32, output: u32) -> anyhow::Result<()> {
        let spread = about / 4;
        let length = (about - spread + self.draw.below(u64::from(2 * spread + 1)) as u32).max(1);
        let vocab = self.session.info().vocab_size as u64;
        let from = self.draw.below(self.text.len() as u64) as usize;
        let mut prompt: Vec<u32> =
            self.text.iter().copied().cycle().skip(from).take(length as usize).collect();
        let number = [self.sent % vocab, self.sent / vocab % vocab];
        prompt.iter_mut().zip(number).for_each(|(token, digit)| *token = digit as u32);
        let mut request = Request::new(format!("calibration-{}", self.sent), prompt.clone(), output);
        request.ignore_eos = true;
        // For synthetic drafts, which then are there and never right: each step has as many as asked for.
        let wrong: Vec<u32> = (0..output).map(|_| self.draw.below(vocab) as u32).collect();
        request.recorded.push(Arc::from(wrong));
        let ids = self.session.submit(request)?;
        let planned = PlannedRequest {
            index: self.sent,
            source_id: None,
            category: None,
            arrival_ns: None,
            prompt,
            max_tokens: output,
            until_stop: false,
            expect: None,
        };
        let ticket = self.recorder.send(&planned, self.report.end_ns, self.report.end_ns);
        self.in_flight.extend(ids.into_iter().map(|id| (id, ticket)));
        self.sent += 1;
        Ok(())
    }

    /// A step, told to a recorder: what a live loop does.
    fn step(&mut self, way: &Way, counted: bool) -> anyhow::Result<()> {
        let start = Instant::now();
        let step = self.session.step()?;
        let Self { report, session, in_flight, .. } = self;
        report.start_ns = report.end_ns;
        report.end_ns += step.elapsed.as_nanos() as u64;
        report.step = step.step;
        report.prefill_tokens = step.prefill_tokens as u32;
        report.decode_rows = step.decode_rows as u32;
        report.running = step.running as u32;
        report.waiting = step.waiting as u32;
        report.replayed = step.replayed;
        report.pool_during = step.pool_during.into();
        report.pool = step.pool.into();
        report.rows.clear();
        report.ended.clear();
        for row in session.step_rows() {
            report.rows.push(RowReport {
                ticket: *in_flight.get(&row.id).context("a step ran a request that was not sent")?,
                new_tokens: row.new_tokens as u16,
                num_drafts: row.num_drafts,
                num_accepted: row.num_accepted,
                context: row.context,
                cached_tokens: row.num_cached_tokens,
            });
        }
        for news in step.emitted.iter().filter(|news| news.finish.is_some()) {
            let ticket = in_flight.remove(&news.id).context("a request ended that was not sent")?;
            let output = session.take_output(news.id).context("a request ended without output")?;
            let Some(reason) = output.finish_reason else { continue };
            report.ended.push(EndedRequest {
                ticket,
                reason,
                cached_tokens: output.num_cached_tokens,
                preemptions: output.num_preemptions,
                blocks_held: output.num_blocks,
                prefix_blocks: output.prefix_blocks.iter().map(|block| block.0).collect(),
                output: Some(Output { token_ids: output.token_ids, text: output.text }),
            });
        }
        self.recorder.step(&self.report, &mut self.ended);
        self.ended.clear();
        drop(step.emitted);
        let took = start.elapsed().as_secs_f64() * 1e6;

        let accepted: Vec<u32> = self.report.rows.iter().map(|row| u32::from(row.num_accepted)).collect();
        let tallies = &mut self.tallies;
        let mut shape = self.shapes.of_last(
            self.session,
            way.keeps_kv,
            self.catch_up,
            |row| accepted.get(row).copied().unwrap_or(0),
            |drafts| {
                if let Some(name) = way.proposer.filter(|_| counted) {
                    tallies.entry(name).or_default().add(drafts);
                }
            },
        );
        shape.after_idle = std::mem::take(&mut self.after_idle);
        if counted {
            let stages = step.stages;
            let known = stages.metadata + stages.propose + stages.execute + stages.sample;
            let took = StepCost {
                schedule: 0.0,
                metadata: stages.metadata,
                propose: stages.propose,
                execute: stages.execute,
                sample: stages.sample,
                other: (took - known).max(0.0),
            };
            let proposer = way.proposer.map(str::to_owned);
            self.steps.push(MeasuredStep { shape, took, proposer, run: self.runs });
        }
        Ok(())
    }
}
