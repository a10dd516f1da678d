//! Refutes a trace, or fails to.

mod blocks;
#[cfg(test)]
mod breaks;
mod chain;
mod contents;
mod ends;
mod engines;
mod kv_events;
mod lives;
mod own_group;
mod pool;
mod row_group;
mod rows;
mod shape;
mod slots;
#[cfg(test)]
mod synthetic;
mod tables;
mod window;

use std::fmt;
use std::path::Path;

use pagedraft_block_manager::Salt;
use serde::Deserialize;
use serde_json::Value;

use self::engines::Engines;
use super::{
    CONFIG_FILE, KvGroupRecord, OLDEST_SCHEMA_VERSION, ResumeRecord, SCHEMA_VERSION, StepRecord, read_steps,
};
use crate::Error;
use crate::json_fault::{self, JsonFault};

/// What a trace must keep to; `Display` gives the name that `pagedraft trace check` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Every line but a cut last one is a JSON object, and a step has the fields of a step.
    Line,
    /// Of each engine step numbers increase, also where a stopped run goes on.
    StepOrder,
    /// A step of several engines says whose it is, one of the configuration's, and a request is of one engine.
    Replica,
    /// A step has at most one plan row a request, with at least one token.
    PlanRows,
    /// The outcome has one row for each plan row, in order, and accepts no more drafts than it scored.
    Outcome,
    /// Metadata rows are the plan's rows, those that `plan_rows` says: contexts start where the plan's do, queries are as
    /// long.
    MetadataRows,
    /// `seq_lens` = context + query (or more, of a row that also sees the keys behind its queries), and the two start
    /// locations are running sums.
    Lengths,
    /// Counts and maxima are those of the rows, and rows of several query tokens come first.
    Counts,
    /// A step was replayed exactly when it has a graph's key, whose shape has room for it and its very query length, and is
    /// of a size that was captured.
    Graph,
    /// Positions follow the context.
    Positions,
    /// Block ids lie in the pool, none is twice in a table, and a row's table covers its tokens; only a trace of changes
    /// may leave it out.
    BlockTable,
    /// Table entries are -1 for exactly the blocks that lie wholly behind the window of the row's first query, and windows
    /// are the configuration's.
    Window,
    /// Every slot is `table[i / block_size] * block_size + i % block_size`; tokens whose KV is there already have none.
    Slot,
    /// No slot is written twice in a step.
    SlotTwice,
    /// A running request's table only grows, except where the step copies a block.
    TableChange,
    /// A block that is written is in one request's table only.
    SharedWrite,
    /// A block that several tables share is at the same place in each.
    Alias,
    /// A step copies a block that somebody holds to one that nobody held, and that a row then has.
    Copy,
    /// What a row reads was written before: by an earlier step of whoever had the block then, or by a copy.
    Unwritten,
    /// What a row takes as context are the request's own tokens. Blocks that it starts with, fresh or after a preemption,
    /// were published, or are a running request's that has computed all of them.
    Context,
    /// A published block is full of computed and accepted tokens of the request that publishes it, published once until it
    /// is removed, and neither written nor handed out before then; its hash follows from its tokens, its parent's hash and
    /// the salt, and its parent was published before it.
    Published,
    /// A row starts where the request's row before ended: what was scheduled, less rejected drafts.
    Growth,
    /// Decode and verify rows are those that begin with the last known token, a generated one.
    Kind,
    /// Rows that sample give their accepted drafts and one token more, or fewer where the request ends; what a row feeds
    /// are the request's own tokens.
    Tokens,
    /// Accepted drafts are the tokens that were emitted; under coupled acceptance the draft behind them is not.
    Acceptance,
    /// Requests that ended stay away.
    FinishedAgain,
    /// `preempted` names requests that ran, each once.
    Preempted,
    /// `finished` names each request that ended, once, in the step whose outcome says so (or after its abort).
    Finished,
    /// used + free is the pool's size, which is the configuration's and never changes; cached is at most free. used is the
    /// blocks of those who run after the step: 0 when nobody does, exactly the tables' without drafts.
    /// Where several KV groups share the pool, bytes are what the groups' blocks take, each group's blocks are those of
    /// the tables, and no two blocks that are held share bytes.
    Pool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line => "line",
            Self::StepOrder => "step-order",
            Self::Replica => "replica",
            Self::PlanRows => "plan-rows",
            Self::Outcome => "outcome",
            Self::MetadataRows => "metadata-rows",
            Self::Lengths => "lengths",
            Self::Counts => "counts",
            Self::Graph => "graph",
            Self::Positions => "positions",
            Self::BlockTable => "block-table",
            Self::Window => "window",
            Self::Slot => "slot",
            Self::SlotTwice => "slot-twice",
            Self::TableChange => "table-change",
            Self::SharedWrite => "shared-write",
            Self::Alias => "alias",
            Self::Copy => "copy",
            Self::Unwritten => "unwritten",
            Self::Context => "context",
            Self::Published => "published",
            Self::Growth => "growth",
            Self::Kind => "kind",
            Self::Tokens => "tokens",
            Self::Acceptance => "acceptance",
            Self::FinishedAgain => "finished-again",
            Self::Preempted => "preempted",
            Self::Finished => "finished",
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
    /// Blocks that were used after the last step, of each engine.
    pub blocks_held: u64,
    /// Engines that steps are of.
    pub engines: u64,
    /// How often a stopped run was gone on with, by a new engine.
    pub resumed: u64,
    /// Lines of other events, which are not checked.
    pub other_events: u64,
    /// Whether the last line is cut, as a killed process leaves it; it was ignored.
    pub cut_last_line: bool,
    /// The version of the trace's form.
    pub schema_version: u32,
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
    let config = TraceConfig::read(&directory.join(CONFIG_FILE))?;
    let mut lines = read_steps(directory)?;
    let mut report = CheckReport { schema_version: config.schema_version, ..CheckReport::default() };
    let mut engines = Engines::new(&config);
    while let Some(line) = lines.next_line()? {
        let mut step = None;
        let outcome = check_line(line, &mut engines, &mut report, &mut step);
        if let Err(fault) = outcome {
            let Fault { rule, request, what } = fault;
            report.violation = Some(Violation { line: lines.number(), step, request, rule, what });
            break;
        }
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
    report: &mut CheckReport,
    number: &mut Option<u64>,
) -> Result<(), Fault> {
    let malformed = |e: JsonFault| Fault::new(Rule::Line, e.to_string());
    let event: Event<'_> = json_fault::parse(bytes).map_err(malformed)?;
    *number = event.step;
    if event.event == "resume" {
        let resume: ResumeRecord = json_fault::parse(bytes).map_err(malformed)?;
        engines.resume(resume.step)?;
        report.resumed += 1;
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
    slots::check_positions(&step, &slots::Call::of_metadata(&step.metadata), &step.input_positions, &owner)?;
    report.slots += lives.check_step(&step, &owner)?;
    report.steps += 1;
    report.rows += step.rows.len() as u64;
    report.input_tokens += step.input_tokens.len() as u64;
    report.emitted_tokens += step.outcome.iter().map(|o| o.token_ids.len() as u64).sum::<u64>();
    report.finished += step.outcome.iter().filter(|o| o.finish_reason.is_some()).count() as u64;
    report.preemptions += step.preempted.len() as u64;
    engine.blocks_held = step.pool.used;
    Ok(())
}

/// What the checker has to know of a run's configuration.
struct TraceConfig {
    schema_version: u32,
    block_size: u32,
    num_blocks: Option<u64>,
    /// Engines, each with so many blocks.
    replicas: u32,
    /// Whether tables that did not change are left out.
    delta: bool,
    /// Whether a draft is accepted exactly when it is the token that the target chooses.
    coupled: bool,
    /// Token rows that graphs were captured at.
    graph_sizes: Option<Vec<u64>>,
    /// Whether full blocks are published to the prefix cache.
    caching: bool,
    /// The KV groups, that of the metadata first; empty where nothing is said.
    kv_groups: Vec<KvGroupRecord>,
    /// The salt of block hashes, where it is known.
    kv_salt: Option<Salt>,
}

impl TraceConfig {
    fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let bad = |what: String| Error::BadConfig { path: path.to_owned(), what };
        let config: Value =
            json_fault::parse(&bytes).map_err(|fault| bad(format!("line {}: {fault}", fault.line)))?;
        let field = |name| {
            let found = config.get(name).or_else(|| config.get("engine").and_then(|e| e.get(name)));
            found.filter(|value| !value.is_null())
        };
        let schema_version = match field("schema_version") {
            None => SCHEMA_VERSION,
            Some(version) => {
                let known = version.as_u64().and_then(|version| u32::try_from(version).ok());
                let known =
                    known.filter(|version| (OLDEST_SCHEMA_VERSION..=SCHEMA_VERSION).contains(version));
                known.ok_or_else(|| {
                    bad(format!(
                        "schema_version is {version}, this build reads {OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION}"
                    ))
                })?
            }
        };
        let Some(size) = field("block_size") else { return Err(bad("no block_size".to_owned())) };
        let known = size.as_u64().and_then(|size| u32::try_from(size).ok());
        let Some(block_size) = known.filter(|size| [16, 32, 64].contains(size)) else {
            return Err(bad(format!("block_size is {size}, not 16, 32 or 64")));
        };
        let num_blocks = match field("num_blocks") {
            None => None,
            Some(blocks) => {
                Some(blocks.as_u64().ok_or_else(|| bad(format!("num_blocks is {blocks}, not a number")))?)
            }
        };
        let replicas = match field("replicas") {
            None => 1,
            Some(count) => {
                let known = count.as_u64().and_then(|count| u32::try_from(count).ok());
                let known = known.filter(|&count| count > 0);
                known.ok_or_else(|| bad(format!("replicas is {count}, not a number from 1 on")))?
            }
        };
        let delta = match field("trace_tables") {
            None => false,
            Some(tables) => match tables.as_str() {
                Some("full") => false,
                Some("delta") => true,
                _ => return Err(bad(format!("trace_tables is {tables}, neither full nor delta"))),
            },
        };
        let coupled = field("acceptance").is_none_or(|rule| rule == "coupled");
        let graph_sizes = match field("graph_sizes") {
            None => None,
            Some(sizes) => {
                Some(Vec::deserialize(sizes).map_err(|e| bad(format!("graph_sizes {sizes}: {e}")))?)
            }
        };
        let caching = field("enable_prefix_caching").is_none_or(|yes| yes != false);
        let kv_groups = match field("kv_groups") {
            None => Vec::new(),
            Some(groups) => Vec::deserialize(groups).map_err(|e| bad(format!("kv_groups {groups}: {e}")))?,
        };
        let kv_salt = match field("kv_salt") {
            None => None,
            Some(salt) => {
                let known = salt.as_str().and_then(Salt::from_hex);
                Some(known.ok_or_else(|| bad(format!("kv_salt is {salt}, not 64 hexadecimal digits")))?)
            }
        };
        Ok(Self {
            schema_version,
            block_size,
            num_blocks,
            replicas,
            delta,
            coupled,
            graph_sizes,
            caching,
            kv_groups,
            kv_salt,
        })
    }
}

#[cfg(test)]
mod tests;
