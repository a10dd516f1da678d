//! A stated workload through the scheduler, with a trace of its plans.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use pagedraft::exit::usage;
use pagedraft_scheduler::fake::{FakeExecutor, Script, VOCABULARY};
use pagedraft_scheduler::{
    Applied, Executor, FinishReason, KvView, RequestKey, RequestSpec, Scheduler, SchedulerConfig, StepId,
    StepOutcome, StepPlan,
};
use pagedraft_workloads::trace::{PoolCounts, StepEvent, StepNames, TimesUs, TraceWriter};
use serde::Deserialize;
use serde_json::{Value, json};

use super::plan_inputs::PlanInputs;

/// Where a workload run gets and puts its files.
pub struct WorkloadRun<'a> {
    pub workload: &'a Path,
    pub config: &'a Path,
    pub directory: &'a Path,
}

#[derive(Deserialize)]
struct Workload {
    requests: Vec<Stated>,
}

/// A request, and what it gives.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    id: Value,
    #[serde(default)]
    arrival_step: u64,
    prompt_token_ids: Option<Vec<u32>>,
    prompt_len: Option<u32>,
    prefix_group: Option<Value>,
    #[serde(default)]
    shared_prefix_len: u32,
    output_len: u32,
    #[serde(default)]
    accepted: Vec<u16>,
    #[serde(default)]
    priority: i32,
}

struct Names<'a> {
    names: &'a HashMap<RequestKey, String>,
    ended: &'a HashMap<RequestKey, FinishReason>,
}

impl StepNames for Names<'_> {
    fn request_id(&self, request: RequestKey) -> &str {
        self.names.get(&request).map_or("", String::as_str)
    }

    fn finish_reason(&self, request: RequestKey) -> Option<FinishReason> {
        self.ended.get(&request).copied()
    }
}

impl WorkloadRun<'_> {
    /// Runs to the last request's end: what to print, and figures.
    pub fn run(&self) -> anyhow::Result<(String, Value)> {
        let config: SchedulerConfig = read(self.config)?;
        let workload: Workload = read(self.workload)?;
        let mut coming =
            arrivals(&workload).with_context(|| format!("{}", self.workload.display())).map_err(usage)?;
        let mut drive = Drive::new(&config).map_err(usage)?;
        let flags = serde_json::to_value(&config).context("can't write the configuration")?;
        let mut writer =
            TraceWriter::create(self.directory, &with_origin(flags)).map_err(|e| usage(e.into()))?;
        let mut next = 0;
        let (mut steps, mut preemptions, mut tokens) = (0u64, 0, 0);
        loop {
            if !drive.scheduler.has_unfinished() {
                let Some((first, ..)) = coming.front() else { break };
                next = next.max(*first);
                drive.scheduler.skip_to(StepId(next));
            }
            while coming.front().is_some_and(|(step, ..)| *step <= next) {
                let Some((_, name, spec, script)) = coming.pop_front() else { break };
                drive.submit(name, spec, script)?;
            }
            drive.step(&mut writer)?;
            next += 1;
            steps += 1;
            preemptions += drive.plan.preempted.len();
            tokens += drive.outcome.tokens.len();
        }
        let summary = json!({"command": "bench scheduler", "requests": workload.requests.len(), "steps": steps,
            "preemptions": preemptions, "output_tokens": tokens});
        writer.finish(&summary)?;
        let text = format!(
            "{} requests in {steps} steps, {tokens} tokens, {preemptions} preemptions; trace in {}\n",
            workload.requests.len(),
            self.directory.display()
        );
        Ok((text, summary))
    }
}

fn with_origin(mut config: Value) -> Value {
    config["model_id"] = json!("fake");
    config["revision"] = json!(pagedraft::REVISION);
    config
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("can't read {}", path.display()))
        .map_err(usage)?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what was expected", path.display()))
        .map_err(usage)
}

/// Step, name, request and script of each, in order of arrival.
fn arrivals(workload: &Workload) -> anyhow::Result<VecDeque<(u64, String, RequestSpec, Script)>> {
    let mut groups: Vec<&Value> = Vec::new();
    let mut coming = Vec::with_capacity(workload.requests.len());
    for (number, stated) in workload.requests.iter().enumerate() {
        let name = stated.id.as_str().map_or_else(|| stated.id.to_string(), str::to_owned);
        ensure!(stated.output_len > 0, "request {name:?} has an output_len of 0");
        // It ends by its length, which is the request's own limit.
        let script = Script { output_len: None, accepted: stated.accepted.clone(), seed: number as u64 };
        let prompt = match (&stated.prompt_token_ids, stated.prompt_len) {
            (Some(ids), _) => ids.clone(),
            (None, Some(length)) => {
                let group = stated.prefix_group.as_ref().filter(|group| !group.is_null()).map(|group| {
                    let known = groups.iter().position(|known| *known == group);
                    known.unwrap_or_else(|| {
                        groups.push(group);
                        groups.len() - 1
                    })
                });
                prompt(length, number, group.map(|group| (group, stated.shared_prefix_len)))
            }
            (None, None) => {
                return Err(anyhow!("request {name:?} has neither prompt_token_ids nor prompt_len"));
            }
        };
        let mut spec = RequestSpec::new(prompt, stated.output_len);
        spec.priority = stated.priority;
        coming.push((stated.arrival_step, name, spec, script));
    }
    coming.sort_by_key(|(step, ..)| *step);
    Ok(coming.into())
}

/// Tokens that no other request has, behind a prefix that its group has.
fn prompt(length: u32, number: usize, group: Option<(usize, u32)>) -> Vec<u32> {
    let own = Script { seed: (1 << 40) + number as u64, ..Script::default() };
    let shared =
        group.map(|(group, length)| (Script { seed: (1 << 41) + group as u64, ..Script::default() }, length));
    (0..length)
        .map(|i| match &shared {
            Some((prefix, length)) if i < *length => prefix.token(i),
            _ => own.token(i),
        })
        .collect()
}

struct Drive {
    scheduler: Scheduler,
    fake: FakeExecutor,
    inputs: PlanInputs,
    plan: StepPlan,
    outcome: StepOutcome<()>,
    applied: Vec<Applied>,
    names: HashMap<RequestKey, String>,
    ended: HashMap<RequestKey, FinishReason>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
}

impl Drive {
    fn new(config: &SchedulerConfig) -> anyhow::Result<Self> {
        Ok(Self {
            scheduler: Scheduler::new(config.clone())?,
            fake: FakeExecutor::new(),
            inputs: PlanInputs::new(config.block_size)?,
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            names: HashMap::new(),
            ended: HashMap::new(),
            tokens: Vec::new(),
            positions: Vec::new(),
        })
    }

    fn submit(&mut self, name: String, spec: RequestSpec, script: Script) -> anyhow::Result<()> {
        let length = spec.prompt.len() as u32;
        let key = self
            .scheduler
            .submit(spec)
            .with_context(|| format!("request {name:?} is refused"))
            .map_err(usage)?;
        self.fake.insert(key, length, script);
        self.names.insert(key, name);
        Ok(())
    }

    fn step(&mut self, writer: &mut TraceWriter) -> anyhow::Result<()> {
        let start = Instant::now();
        self.scheduler.step(&mut self.plan);
        let planned = Instant::now();
        self.inputs.build(&self.plan, &self.scheduler)?;
        let built = Instant::now();
        self.fake.execute(&self.plan, &self.scheduler, &mut self.outcome)?;
        self.gather();
        self.scheduler.apply(&self.outcome, &mut self.applied)?;
        self.ended.clear();
        self.ended.extend(self.applied.iter().filter_map(|applied| Some((applied.request, applied.finish?))));
        let pool = self.scheduler.stats().pool;
        writer.write(&StepEvent {
            plan: &self.plan,
            outcome: &self.outcome.rows,
            emitted: &self.outcome.tokens,
            names: &Names { names: &self.names, ended: &self.ended },
            time_us: TimesUs {
                schedule: (planned - start).as_secs_f64() * 1e6,
                metadata: (built - planned).as_secs_f64() * 1e6,
                ..TimesUs::default()
            },
            mode: "eager",
            graph_key: None::<&()>,
            input_tokens: &self.tokens,
            input_positions: &self.positions,
            metadata: self.inputs.builder.finish(),
            groups: None::<&()>,
            pool: PoolCounts {
                num_blocks: pool.num_blocks.into(),
                used: pool.used.into(),
                free: pool.free.into(),
                cached: pool.cached.into(),
            },
        })?;
        for request in &self.plan.finished {
            self.names.remove(request);
        }
        Ok(())
    }

    /// The inputs of the step: known tokens, and drafts that are right as far as they were accepted.
    fn gather(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        for &i in &self.inputs.order {
            let (row, outcome) = (&self.plan.rows[i as usize], &self.outcome.rows[i as usize]);
            let known = self.scheduler.tokens(row.request);
            self.tokens.extend_from_slice(&known[row.tokens.start as usize..row.tokens.end as usize]);
            let emitted = &self.outcome.tokens[outcome.tokens.start as usize..outcome.tokens.end as usize];
            self.tokens.extend((0..outcome.num_drafts).map(|draft| match emitted.get(usize::from(draft)) {
                Some(&right) if draft < outcome.num_accepted => right,
                right => (right.copied().unwrap_or(0) + 1) % VOCABULARY,
            }));
            self.positions.extend(row.tokens.start..row.tokens.end + u32::from(outcome.num_drafts));
        }
    }
}
