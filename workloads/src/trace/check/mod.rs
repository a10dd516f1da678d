//! Checks a trace by trying to refute it.

mod blocks;
#[cfg(test)]
mod breaks;
mod chain;
mod contents;
mod dsa;
mod dsa_fields;
mod ends;
mod engines;
mod fault;
mod kv_events;
mod life;
mod link;
mod lives;
mod own_group;
mod own_groups;
mod pool;
mod row_group;
mod rows;
mod rule;
mod shape;
mod slots;
#[cfg(test)]
mod synthetic;
mod tables;
mod thinned;
mod trace_config;
mod window;

use std::fmt;
use std::path::Path;

use serde::Deserialize;

use self::dsa::DsaCheck;
use self::engines::Engines;
use self::fault::Fault;
pub use self::rule::Rule;
use self::trace_config::TraceConfig;
use super::parts::Part;
use super::{CONFIG_FILE, DSA_STEM, PruneRecord, ResumeRecord, STEPS_STEM, StepRecord, read_steps};
use crate::Error;
use crate::json_fault::{self, JsonFault};

/// The first record that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its line in `trace_steps.jsonl`, counted from 1, and from the first file on if there are several.
    pub line: u64,
    /// Its step, if the line could be read that far.
    pub step: Option<u64>,
    /// The request that it is about, if there is one.
    pub request: Option<String>,
    /// The rule that it breaks.
    pub rule: Rule,
    /// The values: what is written, and what it should be.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule `{}` broken at line {}", self.rule, self.line)?;
        if let Some(step) = self.step {
            write!(f, ", step {step}")?;
        }
        if let Some(request) = &self.request {
            write!(f, ", request {request:?}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What was read, and the first thing that was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The number of steps that passed.
    pub steps: u64,
    /// The number of their plan rows.
    pub rows: u64,
    /// The number of query tokens.
    pub input_tokens: u64,
    /// The number of slots re-derived, in all KV groups.
    pub slots: u64,
    /// The number of tokens emitted.
    pub emitted_tokens: u64,
    /// The number of requests seen.
    pub requests: u64,
    /// The number of requests that ended with a finish reason.
    pub finished: u64,
    /// The number of preemptions.
    pub preemptions: u64,
    /// The number of blocks in use after the last step of each engine.
    pub blocks_held: u64,
    /// The number of engines that made steps.
    pub engines: u64,
    /// How often a stopped run was resumed by a new engine.
    pub resumed: u64,
    /// The number of records of sparse attention that were proved.
    pub dsa_records: u64,
    /// The number of records of pruned prompts that were proved.
    pub prune_records: u64,
    /// The number of lines with other events, which are not checked.
    pub other_events: u64,
    /// Whether the last line is cut, as a killed process leaves it. Such a line is ignored.
    pub cut_last_line: bool,
    /// The version of the trace's form.
    pub schema_version: u32,
    /// The first record that breaks a rule; nothing after it was read.
    pub violation: Option<Violation>,
}

/// Reads a trace directory from its first line to its last, or to the first [`Violation`]. Memory is
/// bounded by the requests that run at a time (and a name for each request that ended).
///
/// # Errors
///
/// There is no trace in `directory`, or a file of it can't be read. A trace that breaks a rule is not an
/// error, but a [`CheckReport::violation`].
pub fn check_dir(directory: &Path) -> Result<CheckReport, Error> {
    let config = TraceConfig::read(&directory.join(CONFIG_FILE))?;
    for stem in [STEPS_STEM, DSA_STEM] {
        Part::check_first(directory, stem)?;
    }
    let mut lines = read_steps(directory)?;
    let mut report = CheckReport { schema_version: config.schema_version, ..CheckReport::default() };
    let mut engines = Engines::new(&config);
    let mut dsa = DsaCheck::open(directory, &config)?;
    while let Some(line) = lines.next_line()? {
        let mut step = None;
        let outcome = check_line(line, &mut engines, dsa.as_mut(), &mut report, &mut step);
        if let Err(fault) = outcome {
            let Fault { rule, request, what } = fault;
            report.violation = Some(Violation { line: lines.number(), step, request, rule, what });
            break;
        }
    }
    if let Some(dsa) = &mut dsa {
        if report.violation.is_none()
            && let Err(Fault { rule, request, what }) = dsa.check_end()
        {
            report.violation = Some(Violation { line: lines.number(), step: None, request, rule, what });
        }
        report.dsa_records = dsa.records;
    }
    report.cut_last_line = lines.is_cut();
    (report.engines, report.requests) = (engines.count(), engines.requests_seen());
    report.blocks_held = engines.blocks_held();
    Ok(report)
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    event: std::borrow::Cow<'a, str>,
    step: Option<u64>,
}

fn check_line(
    bytes: &[u8],
    engines: &mut Engines<'_>,
    dsa: Option<&mut DsaCheck>,
    report: &mut CheckReport,
    number: &mut Option<u64>,
) -> Result<(), Fault> {
    let malformed = |e: JsonFault| Fault::new(Rule::Line, e.to_string());
    let event: Event<'_> = json_fault::parse(bytes).map_err(malformed)?;
    *number = event.step;
    if event.event == "resume" {
        let resume: ResumeRecord = json_fault::parse(bytes).map_err(malformed)?;
        engines.resume(resume.step)?;
        dsa.into_iter().for_each(DsaCheck::resume);
        report.resumed += 1;
        return Ok(());
    }
    if event.event == "prune" {
        let record: PruneRecord = json_fault::parse(bytes).map_err(malformed)?;
        engines.check_prune(&record)?;
        report.prune_records += 1;
        return Ok(());
    }
    if event.event != "step" {
        report.other_events += 1;
        return Ok(());
    }
    let step: StepRecord = json_fault::parse(bytes).map_err(malformed)?;
    if let Some(t) = &step.time_us
        && [t.schedule, t.metadata, t.propose, t.execute, t.sample].iter().any(|us| *us < 0.0)
    {
        return Err(Fault::new(Rule::Line, format!("time_us goes backwards: {t:?}")));
    }
    let engine = engines.of(&step)?;
    let lives = &mut engine.lives;
    lives.check_number(step.step)?;
    rows::check(&step)?;
    shape::check(&step, lives.graph_sizes.as_deref())?;
    let owner = rows::owners(&step)?;
    let all: Vec<usize> = (0..owner.len()).collect();
    let call = slots::Call::of_metadata(&step.metadata);
    slots::check_positions(&step, &call, &step.input_positions, (&owner, &all))?;
    report.slots += lives.check_step(&step, &owner)?;
    if let Some(dsa) = dsa {
        dsa.check_step(&step, &owner)?;
    }
    report.steps += 1;
    report.rows += step.rows.len() as u64;
    report.input_tokens += step.input_tokens.len() as u64;
    report.emitted_tokens += step.outcome.iter().map(|o| o.token_ids.len() as u64).sum::<u64>();
    report.finished += step.outcome.iter().filter(|o| o.finish_reason.is_some()).count() as u64;
    report.preemptions += step.preempted.len() as u64;
    engine.blocks_held = step.pool.used;
    Ok(())
}

#[cfg(test)]
mod tests;
