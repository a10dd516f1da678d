//! Drives the scheduler with an executor of its own, which has no model: a simulator, or an engine on another
//! machine, would stand in its place.
//!
//! The executor here repeats: the token behind the sequence is the one that stood there `PERIOD` tokens ago. It
//! knows that beforehand, so all its drafts are right.
//!
//! ```text
//! cargo run --release --example custom_executor
//! ```

use pagedraft::block_manager::GroupId;
use pagedraft::scheduler::{
    Executor, Kind, KvView, RequestKey, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan,
};
use serde::Serialize;

/// The distance at which tokens repeat.
const PERIOD: usize = 4;

/// An executor that repeats what it has seen.
struct Repeater;

/// What goes on record for a step: a trace would hold it.
#[derive(Debug, Default, Serialize)]
struct Record {
    tokens_computed: u32,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[error("request {request}: this executor denoises no canvas")]
struct Unsupported {
    request: RequestKey,
}

impl Executor for Repeater {
    type Record = Record;
    type Error = Unsupported;

    fn execute(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<Record>,
    ) -> Result<(), Unsupported> {
        // One outcome row for each plan row, in the same order, none of which has emitted anything yet.
        outcome.begin(plan);
        outcome.record = Record::default();
        for (row, result) in plan.rows.iter().zip(&mut outcome.rows) {
            if matches!(row.kind, Kind::Denoise { .. }) {
                return Err(Unsupported { request: row.request });
            }
            outcome.record.tokens_computed += row.tokens.end - row.tokens.start + u32::from(row.drafts_max);
            // A chunk of a prompt that ends short of it gives no token.
            if !row.samples {
                continue;
            }
            // The table has a block for every token that is computed here. A model would write its KV there.
            debug_assert!(!kv.block_table(row.request, GroupId(0)).is_empty());
            let known = kv.tokens(row.request);
            let start = outcome.tokens.len();
            for i in 0..=usize::from(row.drafts_max) {
                let token = match known.len() + i {
                    at if at < PERIOD => 0,
                    at => {
                        known.get(at - PERIOD).copied().unwrap_or_else(|| outcome.tokens[start + i - PERIOD])
                    }
                };
                outcome.tokens.push(token);
            }
            result.tokens = start as u32..outcome.tokens.len() as u32;
            (result.num_drafts, result.num_accepted) = (row.drafts_max, row.drafts_max);
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    // A budget of 16 tokens a step cuts the longer prompt into chunks; each decode row may have three drafts.
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_blocks: 16,
        max_num_batched_tokens: 16,
        num_speculative_tokens: 3,
        ..SchedulerConfig::default()
    })?;
    let short = scheduler.submit(RequestSpec::new(vec![1, 2, 3, 4], 12))?;
    let long = scheduler.submit(RequestSpec::new((0..40).collect(), 12))?;
    let mut generated = [(short, "short", Vec::new()), (long, "long", Vec::new())];

    let mut executor = Repeater;
    let (mut plan, mut outcome, mut applied) = (StepPlan::default(), StepOutcome::default(), Vec::new());
    println!("{:>4}  {:<28}{:>8}{:>8}", "step", "rows", "tokens", "blocks");
    while scheduler.has_unfinished() {
        scheduler.step(&mut plan)?;
        executor.execute(&plan, &scheduler, &mut outcome)?;
        let rows: Vec<String> =
            plan.rows.iter().map(|row| format!("{:?} {:?}", row.kind, row.tokens)).collect();
        let blocks = scheduler.stats().pool.used;
        println!("{:>4}  {:<28}{:>8}{blocks:>8}", plan.id.0, rows.join(", "), outcome.record.tokens_computed);
        scheduler.apply(&outcome, &mut applied)?;
        for one in &applied {
            // Tokens behind the greatest length are not kept: `applied` says which are.
            let kept = &outcome.tokens[one.tokens.start as usize..one.tokens.end as usize];
            let whose = generated.iter_mut().find(|(key, ..)| *key == one.request);
            whose.into_iter().for_each(|(_, _, tokens)| tokens.extend_from_slice(kept));
        }
    }
    for (_, name, tokens) in &generated {
        println!("{name}: {tokens:?}");
    }
    anyhow::ensure!(
        generated[0].2 == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4],
        "the short request was not repeated"
    );
    anyhow::ensure!(scheduler.stats().pool.used == 0, "a block was not given back");
    Ok(())
}
