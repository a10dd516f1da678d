//! Reads requests and configurations from files. Files of other programs may have further fields, and
//! `null` for fields that they leave out.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use pagedraft::exit::usage;
use pagedraft::memory_need::ensure_fits;
use pagedraft_scheduler::fake::Script;
use pagedraft_scheduler::{RequestSpec, Scheduler};
use pagedraft_workloads::json_fault;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The last step at which a request may arrive. A double counts exactly up to here, and it is far from the
/// greatest `u64`.
const LAST_ARRIVAL: u64 = 1 << 53;

/// A request that is to be submitted.
pub struct Coming {
    /// The step before which it is submitted.
    pub step: u64,
    /// Its id.
    pub name: String,
    /// What it asks for.
    pub spec: RequestSpec,
    /// The output that it gets.
    pub script: Script,
}

#[derive(Deserialize)]
struct Workload {
    requests: Vec<Stated>,
}

/// A request, and its output.
#[derive(Deserialize)]
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

/// Reads a file in which `null` counts as a missing field.
///
/// # Errors
///
/// The file does not exist, is not JSON, or is something else than expected. The error names the file, and
/// the line and the field if there is one.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text =
        std::fs::read(path).with_context(|| format!("can't read {}", path.display())).map_err(usage)?;
    json_fault::parse_without_nulls(&text)
        .map_err(|fault| usage(anyhow!("{}:{}: {fault}", path.display(), fault.line)))
}

/// The requests of the workload in `path`, in the order of their arrivals. `scheduler` would accept each of
/// them.
///
/// # Errors
///
/// The file is not a workload, or a request can't be run. The error names the request.
pub fn arrivals(path: &Path, scheduler: &Scheduler) -> anyhow::Result<VecDeque<Coming>> {
    let workload: Workload = read(path)?;
    let coming = ordered(workload.requests, scheduler);
    coming.with_context(|| format!("{} can't be driven", path.display())).map_err(usage)
}

fn ordered(requests: Vec<Stated>, scheduler: &Scheduler) -> anyhow::Result<VecDeque<Coming>> {
    let mut groups: Vec<Value> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut coming = Vec::with_capacity(requests.len());
    for (number, stated) in requests.into_iter().enumerate() {
        let name = stated.id.as_str().map_or_else(|| stated.id.to_string(), str::to_owned);
        if let Some(first) = places.insert(name.clone(), number) {
            bail!("the request id {name:?} is given twice: in requests[{first}] and in requests[{number}]");
        }
        coming.push(
            one(stated, number, &name, &mut groups, scheduler)
                .with_context(|| format!("request {name:?} (requests[{number}])"))?,
        );
    }
    coming.sort_by_key(|one| one.step);
    Ok(coming.into())
}

fn one(
    stated: Stated,
    number: usize,
    name: &str,
    groups: &mut Vec<Value>,
    scheduler: &Scheduler,
) -> anyhow::Result<Coming> {
    let longest = u64::from(stated.prompt_len.unwrap_or(0)) + u64::from(stated.output_len);
    let longest = longest.min(scheduler.config().max_model_len.into()).min(scheduler.capacity().into());
    // Only more memory than every machine has is checked.
    if longest > 1 << 24 {
        ensure_fits(&format!("its room for {longest} tokens"), 4 * u128::from(longest))?;
    }
    let step = stated.arrival_step;
    ensure!(step <= LAST_ARRIVAL, "its arrival_step {step} is beyond {LAST_ARRIVAL}");
    ensure!(stated.output_len > 0, "it has an output_len of 0");
    let prompt = match (stated.prompt_token_ids, stated.prompt_len) {
        (Some(ids), _) => ids,
        (None, Some(length)) => {
            check_length(length, scheduler)?;
            let group = stated.prefix_group.map(|group| {
                groups.iter().position(|known| *known == group).unwrap_or_else(|| {
                    groups.push(group);
                    groups.len() - 1
                })
            });
            prompt(length, number, group.map(|group| (group, stated.shared_prefix_len)))
        }
        (None, None) => bail!("it has neither prompt_token_ids nor prompt_len"),
    };
    let mut spec = RequestSpec::new(prompt, stated.output_len);
    spec.priority = stated.priority;
    scheduler.check(&spec)?;
    // The request ends when it reaches its own length limit.
    let script =
        Script { output_len: None, accepted: stated.accepted, seed: number as u64, ..Script::default() };
    Ok(Coming { step, name: name.to_owned(), spec, script })
}

/// Checks a prompt's length as the scheduler will, before a prompt of that length is made.
fn check_length(length: u32, scheduler: &Scheduler) -> anyhow::Result<()> {
    let max_model_len = scheduler.config().max_model_len;
    ensure!(
        length < max_model_len,
        "its prompt_len {length} leaves no room for a token below max_model_len {max_model_len}"
    );
    let capacity = scheduler.capacity();
    ensure!(length <= capacity, "its prompt_len {length} is more than the {capacity} tokens of the KV pool");
    Ok(())
}

/// Tokens that no other request has, after a prefix that its group shares.
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
