//! Refutes a trace, or fails to.

mod lines;
mod lives;
mod rows;
mod shape;
mod slots;
#[cfg(test)]
mod synthetic;

use std::fmt;
use std::path::Path;

use serde::Deserialize;

use self::lines::{Line, Lines};
use self::lives::Lives;
use super::{CONFIG_FILE, STEPS_FILE, StepRecord};
use crate::Error;

/// What a trace must keep to; `Display` gives the name that `pagedraft trace check` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Every line but a cut last one is a JSON object, and a step has the fields of a step.
    Line,
    /// Step numbers increase.
    StepOrder,
    /// A step has at most one plan row a request, with at least one token.
    PlanRows,
    /// The outcome has one row for each plan row, in order, and accepts no more drafts than it scored.
    Outcome,
    /// Metadata rows are the plan's rows: contexts start where the plan's do, queries are as long.
    MetadataRows,
    /// `seq_lens` = context + query, and the two start locations are running sums.
    Lengths,
    /// Counts and maxima are those of the rows, and rows of several query tokens come first.
    Counts,
    /// Positions follow the context.
    Positions,
    /// Block ids lie in the pool, and a row's table covers its tokens.
    BlockTable,
    /// Every slot is `table[i / block_size] * block_size + i % block_size`.
    Slot,
    /// No slot is written twice in a step.
    SlotTwice,
    /// A running request's table only grows, except where the step copies a block.
    TableChange,
    /// A block that is written is in one request's table only.
    SharedWrite,
    /// A row starts where the request's row before ended: what was scheduled, less rejected drafts.
    Growth,
    /// Rows that sample give the tokens they should, and the next row starts with the last of them.
    Tokens,
    /// Requests that ended stay away.
    FinishedAgain,
    /// used + free is the pool's size, which never changes; cached is at most free, and the tables' blocks at most used.
    Pool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line => "line",
            Self::StepOrder => "step-order",
            Self::PlanRows => "plan-rows",
            Self::Outcome => "outcome",
            Self::MetadataRows => "metadata-rows",
            Self::Lengths => "lengths",
            Self::Counts => "counts",
            Self::Positions => "positions",
            Self::BlockTable => "block-table",
            Self::Slot => "slot",
            Self::SlotTwice => "slot-twice",
            Self::TableChange => "table-change",
            Self::SharedWrite => "shared-write",
            Self::Growth => "growth",
            Self::Tokens => "tokens",
            Self::FinishedAgain => "finished-again",
            Self::Pool => "pool",
        })
    }
}

/// The first record that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its line in `trace_steps.jsonl`, from 1.
    pub line: u64,
    /// Its step, where the line could be read that far.
    pub step: Option<u64>,
    /// The request it is about, where it is about one.
    pub request: Option<String>,
    /// The rule.
    pub rule: Rule,
    /// The values: what is written, and what should be.
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

/// What was read, and the first thing found wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Steps that passed.
    pub steps: u64,
    /// Their plan rows.
    pub rows: u64,
    /// Query tokens.
    pub input_tokens: u64,
    /// Slots re-derived, further KV groups included.
    pub slots: u64,
    /// Tokens emitted.
    pub emitted_tokens: u64,
    /// Requests seen.
    pub requests: u64,
    /// Requests that ended with a finish reason.
    pub finished: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Lines of other events, which are not checked.
    pub other_events: u64,
    /// Whether the last line is cut, as a killed process leaves it; it was ignored.
    pub cut_last_line: bool,
    /// The first record that breaks a rule; nothing after it was read.
    pub violation: Option<Violation>,
}

/// A rule broken by the step at hand.
#[derive(Debug)]
struct Fault {
    rule: Rule,
    request: Option<String>,
    what: String,
}

impl Fault {
    fn new(rule: Rule, what: impl Into<String>) -> Self {
        Self { rule, request: None, what: what.into() }
    }

    fn of(rule: Rule, request: &str, what: impl Into<String>) -> Self {
        Self { rule, request: Some(request.to_owned()), what: what.into() }
    }
}

/// Reads a trace directory from its first line to its last or to the first [`Violation`], in memory bounded by what runs
/// at a time (and a name for each request that ended).
///
/// # Errors
///
/// No trace in `directory`, or a file of it can't be read. A trace that breaks a rule is no error but a
/// [`CheckReport::violation`].
pub fn check_dir(directory: &Path) -> Result<CheckReport, Error> {
    let block_size = block_size(&directory.join(CONFIG_FILE))?;
    let path = directory.join(STEPS_FILE);
    let mut lines = Lines::open(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let mut report = CheckReport::default();
    let mut lives = Lives::new(block_size);
    loop {
        let line = lines.next_line().map_err(|source| Error::Read { path: path.clone(), source })?;
        let mut step = None;
        let outcome = match line {
            Line::End => break,
            Line::Cut => {
                report.cut_last_line = true;
                break;
            }
            Line::Whole(bytes) => check_line(bytes, &mut lives, &mut report, &mut step),
        };
        if let Err(fault) = outcome {
            let Fault { rule, request, what } = fault;
            report.violation = Some(Violation { line: lines.number(), step, request, rule, what });
            break;
        }
    }
    report.requests = lives.requests_seen();
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
    lives: &mut Lives,
    report: &mut CheckReport,
    number: &mut Option<u64>,
) -> Result<(), Fault> {
    let malformed = |e: serde_json::Error| Fault::new(Rule::Line, e.to_string());
    let event: Event<'_> = serde_json::from_slice(bytes).map_err(malformed)?;
    *number = event.step;
    if event.event != "step" {
        report.other_events += 1;
        return Ok(());
    }
    let step: StepRecord = serde_json::from_slice(bytes).map_err(malformed)?;
    lives.check_number(step.step)?;
    rows::check(&step)?;
    shape::check(&step)?;
    let owner = rows::owners(&step)?;
    slots::check_positions(&step, &owner)?;
    report.slots += lives.check_step(&step, &owner)?;
    report.steps += 1;
    report.rows += step.rows.len() as u64;
    report.input_tokens += step.input_tokens.len() as u64;
    report.emitted_tokens += step.outcome.iter().map(|o| o.token_ids.len() as u64).sum::<u64>();
    report.finished += step.outcome.iter().filter(|o| o.finish_reason.is_some()).count() as u64;
    report.preemptions += step.preempted.len() as u64;
    Ok(())
}

fn block_size(path: &Path) -> Result<u32, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let bad = |what: String| Error::BadConfig { path: path.to_owned(), what };
    let config: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("no JSON: {e}")))?;
    if let Some(version) = config.get("schema_version")
        && version.as_u64() != Some(u64::from(super::SCHEMA_VERSION))
    {
        return Err(bad(format!("schema_version is {version}, this build reads {}", super::SCHEMA_VERSION)));
    }
    let found = config.get("block_size").or_else(|| config.get("engine").and_then(|e| e.get("block_size")));
    let size = found.and_then(serde_json::Value::as_u64).and_then(|size| u32::try_from(size).ok());
    size.filter(|&size| size > 0)
        .ok_or_else(|| bad("no block_size, or none that is a positive number".to_owned()))
}

#[cfg(test)]
mod tests;
