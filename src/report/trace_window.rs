//! Prepares a trace for the page: the changes of the steps that it shows, and the points of its charts.

use std::io::Write;
use std::path::Path;

use pagedraft_workloads::json_fault::{self, JsonFault};
use pagedraft_workloads::trace::{StepRecord, read_steps, steps_file};
use serde_json::Value;

use super::blocks::{BlockState, Pool};
use super::embed::Window;
use super::shown::{Shown, Steps};
use super::step_delta::{Deltas, StepDelta};
use super::step_points::StepPoints;

/// The number of steps in the block view if no steps are asked for.
pub(super) const MOST_STEPS: usize = 10_000;

/// What was read of a trace.
#[derive(Debug)]
pub(super) struct TraceWindow {
    block_size: u32,
    names: Vec<String>,
    /// The KV group whose blocks are shown, where there are several.
    pub(super) group: Option<String>,
    start: Pool,
    pub(super) steps: Vec<StepDelta>,
    /// All steps that were read, in the block view or not.
    pub(super) points: StepPoints,
    /// Whether there are steps beyond those in the block view.
    pub(super) is_part: bool,
    /// What is odd about the trace, for people.
    pub(super) warnings: Vec<String>,
}

impl TraceWindow {
    /// The block size in a configuration, if the page can show blocks of that size.
    pub(super) fn block_size(config: &Value) -> Option<u32> {
        (config.get("block_size").or_else(|| config.pointer("/engine/block_size")))
            .and_then(Value::as_u64)
            .and_then(|size| u32::try_from(size).ok())
            .filter(|size| (1..=1024).contains(size))
    }

    /// The KV group that `metadata` describes, if a configuration names several.
    fn group(config: &Value) -> Option<String> {
        let groups = config.get("kv_groups").or_else(|| config.pointer("/engine/kv_groups"))?.as_array()?;
        let name = groups.first().filter(|_| groups.len() > 1)?.get("name")?.as_str()?;
        Some(name.to_owned())
    }

    /// Reads the trace in `directory`; `None` if there is none, or if its configuration has no block size.
    ///
    /// # Errors
    ///
    /// The file can't be read.
    pub(super) fn read(directory: &Path, config: &Value, shown: Shown) -> anyhow::Result<Option<Self>> {
        let Shown { steps, replica } = shown;
        if steps_file(directory).is_none() {
            return Ok(None);
        }
        let Some(block_size) = Self::block_size(config) else { return Ok(None) };
        let mut window = Self {
            block_size,
            names: Vec::new(),
            group: Self::group(config),
            start: Pool::new(block_size),
            steps: Vec::new(),
            points: StepPoints::new(),
            is_part: false,
            warnings: Vec::new(),
        };
        let mut deltas = Deltas::new(block_size, window.group.clone());
        let mut lines = read_steps(directory)?;
        let file = lines.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (mut others, mut engines) = (0u64, 1);
        loop {
            let parsed = match lines.next_line()? {
                None => break,
                Some(line) => parse(line),
            };
            let taken = match parsed {
                Ok(Event::Step(record)) if record.replica.unwrap_or(0) != replica.unwrap_or(0) => {
                    others += 1;
                    engines = engines.max(record.replica.unwrap_or(0) + 1);
                    Ok(())
                }
                Ok(Event::Step(record)) => window.take(&record, &mut deltas, steps),
                Ok(Event::Resume) => {
                    deltas.resume();
                    Ok(())
                }
                Ok(Event::Other) => Ok(()),
                Err(what) => Err(what.to_string()),
            };
            if let Err(what) = taken {
                window.warnings.push(format!(
                    "Line {} of {file}: {what}. Steps from there on are left out; `pagedraft trace check` says more.",
                    lines.number()
                ));
                break;
            }
        }
        if let (Some(asked), None) = (replica, window.points.last_step)
            && others > 0
        {
            return Err(anyhow::anyhow!(
                "--replica {asked}: {} has steps of engines 0 to {}",
                lines.path().display(),
                engines - 1
            ));
        }
        if others > 0 {
            window.warnings.push(format!(
                "The trace is of several engines: pictures by step and blocks are those of engine {}, {others} steps of the \
                 others are left out. `pagedraft report --replica N` shows another.",
                replica.unwrap_or(0)
            ));
        }
        if lines.is_cut() {
            window.warnings.push(format!("The last line of {file} is cut; it is left out."));
        }
        if let (Some(asked), Some(last), true) = (steps, window.points.last_step, window.steps.is_empty()) {
            let (from, to) = (asked.from, asked.to);
            let what = format!("--steps {from}..{to}: the run has none of these; its last step is {last}.");
            // It does no harm if the warning is lost because standard error is closed.
            let _ = writeln!(std::io::stderr(), "warning: {what}");
            window.warnings.push(what);
        }
        window.names = deltas.names().to_vec();
        Ok(window.points.last_step.is_some().then_some(window))
    }

    fn take(&mut self, record: &StepRecord, deltas: &mut Deltas, steps: Option<Steps>) -> Result<(), String> {
        if let Some(last) = self.points.last_step.filter(|last| *last >= record.step) {
            return Err(format!("step {} after step {last}", record.step));
        }
        self.points.push(record);
        if self.is_past(record.step, steps) {
            self.is_part = true;
            return Ok(());
        }
        let (delta, later) = deltas.next(record)?;
        for named in later {
            match self.steps.binary_search_by_key(&named.step, |delta| delta.step) {
                Ok(i) => {
                    self.steps[i].reserved.push((named.request, named.block));
                }
                Err(_) => self.start.name(&named),
            }
        }
        if steps.is_some_and(|steps| record.step < steps.from) {
            self.is_part = true;
            self.start.apply(&delta);
        } else {
            self.steps.push(delta);
        }
        Ok(())
    }

    fn is_past(&self, step: u64, steps: Option<Steps>) -> bool {
        match steps {
            Some(steps) => step >= steps.to,
            None => self.steps.len() >= MOST_STEPS,
        }
    }

    /// The numbers of writable, sealed, shared and cached blocks after some of the steps, at most `most` of
    /// them. Each entry begins with the step.
    pub(super) fn states(&self, most: usize) -> Vec<(u64, [u64; 4])> {
        let every = self.steps.len().div_ceil(most.max(1)).max(1);
        let mut pool = self.start.clone();
        let mut samples = Vec::new();
        for (i, delta) in self.steps.iter().enumerate() {
            pool.apply(delta);
            if i % every == 0 {
                let mut counts = [0; 4];
                for state in pool.states().into_values() {
                    match state {
                        BlockState::Writable => counts[0] += 1,
                        BlockState::Sealed => counts[1] += 1,
                        BlockState::Shared => counts[2] += 1,
                        BlockState::Cached => counts[3] += 1,
                    }
                }
                samples.push((delta.step, counts));
            }
        }
        samples
    }

    /// The text that the page's script reads.
    ///
    /// # Errors
    ///
    /// No error is expected, because it is written to memory.
    pub(super) fn encode(&self) -> std::io::Result<String> {
        let num_blocks = self.steps.last().map_or(0, |delta| delta.pool.num_blocks);
        Window {
            block_size: self.block_size,
            window: self.steps.iter().find_map(|delta| delta.window),
            num_blocks,
            requests: &self.names,
            start: &self.start,
            steps: &self.steps,
        }
        .encode()
    }
}

/// The kind of a line of a trace.
enum Event {
    Step(Box<StepRecord>),
    /// The run was stopped here and resumed.
    Resume,
    Other,
}

fn parse(line: &[u8]) -> Result<Event, JsonFault> {
    #[derive(serde::Deserialize)]
    struct Kind<'a> {
        #[serde(borrow)]
        event: std::borrow::Cow<'a, str>,
    }
    let kind: Kind<'_> = json_fault::parse(line)?;
    Ok(match &*kind.event {
        "step" => Event::Step(json_fault::parse(line)?),
        "resume" => Event::Resume,
        _ => Event::Other,
    })
}

#[cfg(test)]
mod tests {
    use pagedraft_workloads::trace::PoolCounts;
    use serde_json::{Value, json};

    use super::*;
    use crate::session::{
        DraftLength, DraftRef, EngineOptions, ModelRef, Request, Session, SpeculationOptions, TraceOptions,
    };
    use crate::spec_decode::Scorer;
    use crate::spec_decode::sampling::SamplingParams;

    /// Runs requests that begin alike, one of them with three samples. Returns the trace and the pool's
    /// counts.
    fn traced(name: &str, options: &EngineOptions) -> (TraceWindow, Vec<PoolCounts>, [usize; 3]) {
        let dir = std::env::temp_dir().join(format!("pagedraft-report-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let trace =
            Some(TraceOptions { dir: dir.clone(), tables: Default::default(), format: Default::default() });
        let mut session = Session::open(&EngineOptions { trace, ..options.clone() }).unwrap();
        for i in 0..14u32 {
            let mut prompt: Vec<u32> = (0..40).map(|t| 300 + t % 7).collect();
            prompt.truncate(if i.is_multiple_of(3) { 20 } else { 40 });
            prompt.extend((0..i % 5).map(|t| 500 + t));
            let n = if i == 4 { 3 } else { 1 };
            let sampling =
                SamplingParams { temperature: 0.8, seed: u64::from(i), ..SamplingParams::default() };
            let request = Request {
                sampling: if n > 1 { sampling } else { SamplingParams::greedy() },
                n,
                ignore_eos: true,
                ..Request::new(format!("r{i}"), prompt, 40 + i)
            };
            session.submit(request).unwrap();
            session.step().unwrap();
        }
        while session.has_unfinished() {
            session.step().unwrap();
        }
        session.close(&json!({})).unwrap();
        let config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        let window = TraceWindow::read(&dir, &config, Shown::default()).unwrap().unwrap();
        let mut counted = Vec::new();
        let mut seen = [0; 3];
        let mut lines = read_steps(&dir).unwrap();
        while let Some(line) = lines.next_line().unwrap() {
            let record: StepRecord = serde_json::from_slice(line).unwrap();
            seen[0] += record.preempted.len();
            seen[1] += record.copies.len();
            seen[2] += record.outcome.iter().map(|o| o.num_accepted as usize).sum::<usize>();
            // With a draft model the pool counts in the draft model's smaller blocks. The target's blocks
            // are counted by group.
            let mut counts = PoolCounts::from(&record.pool);
            if let Some(target) = record.pool.by_group.as_ref().and_then(|groups| groups.get("kv")) {
                (counts.used, counts.cached) = (target.used, target.cached);
            }
            counted.push(counts);
        }
        std::fs::remove_dir_all(&dir).unwrap();
        (window, counted, seen)
    }

    #[test]
    fn the_states_of_blocks_add_up_to_what_the_pool_counted_in_every_step() {
        let draft = |draft, k, scorer| SpeculationOptions {
            draft: Some(draft),
            length: DraftLength::Fixed(k),
            scorer,
            ..SpeculationOptions::default()
        };
        let plain = EngineOptions {
            max_num_seqs: 4,
            max_model_len: Some(160),
            prefill_chunk: Some(20),
            ..EngineOptions::new(ModelRef::Builtin("target".into()))
        };
        let model = || DraftRef::Model(ModelRef::Builtin("draft".into()));
        let runs = [
            ("plain", 64, SpeculationOptions::default()),
            ("tight", 12, SpeculationOptions::default()),
            ("draft", 16, draft(model(), 4, Scorer::Mqa)),
            ("ngram", 14, draft(DraftRef::Ngram, 7, Scorer::BatchExpansion)),
        ];
        let mut seen = [0; 4];
        for (name, num_blocks, speculation) in runs {
            let options = EngineOptions { num_blocks: Some(num_blocks), speculation, ..plain.clone() };
            let (window, counted, found) = traced(name, &options);
            assert_eq!(window.steps.len(), counted.len(), "{name}");
            assert!(window.steps.iter().all(|delta| delta.slots.is_none()), "{name}: odd slots");
            let mut pool = window.start.clone();
            let mut unnamed = 0;
            for (delta, counts) in window.steps.iter().zip(counted) {
                pool.apply(delta);
                let states = pool.states();
                let cached = states.values().filter(|s| **s == BlockState::Cached).count() as u64;
                let used = states.len() as u64 - cached;
                let what = format!("{name}, step {}", delta.step);
                assert!(used <= counts.used, "{what}: {used} blocks held, {} used", counts.used);
                // Blocks that were reserved for drafts and given back unused are never named.
                unnamed += counts.used - used;
                assert!(cached >= counts.cached && cached - counts.cached <= counts.used - used, "{what}");
                seen[3] += states.values().filter(|s| **s == BlockState::Shared).count();
            }
            let most = if name == "ngram" { window.steps.len() as u64 } else { 0 };
            assert!(
                unnamed <= most,
                "{name}: {unnamed} blocks without a name in {} steps",
                window.steps.len()
            );
            (0..3).for_each(|i| seen[i] += found[i]);
        }
        assert!(seen.iter().all(|n| *n > 0), "preemptions, copies, accepted, shared: {seen:?}");
    }
}
