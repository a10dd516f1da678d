//! An executor without a model. The test states beforehand what each request generates.
//!
//! It serves tests, the scheduler's own benchmark, and simulations of plans. A token depends only on its request's seed
//! and on its position, so a preemption, a chunk or a draft that changes a token shows up as a fault.

use std::convert::Infallible;

use pagedraft_block_manager::SideTable;

use crate::{Executor, Kind, KvView, RequestKey, RowOutcome, StepOutcome, StepPlan};

/// What a request generates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The number of output tokens after which the request stops by itself. `None` means that it goes on to its
    /// `max_tokens`.
    pub output_len: Option<u32>,
    /// The number of drafts accepted in each verify step, in order. The last entry holds for all later steps, and an
    /// empty list accepts none.
    pub accepted: Vec<u16>,
    /// The seed that its tokens are drawn from.
    pub seed: u64,
}

impl Script {
    /// The token at `position` in the sequence.
    #[must_use]
    pub fn token(&self, position: u32) -> u32 {
        let mut z = self.seed ^ (u64::from(position) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % u64::from(VOCABULARY)) as u32
    }
}

/// The number of different tokens: scripts give tokens below it.
pub const VOCABULARY: u32 = 32_000;

#[derive(Debug, Default)]
struct Playing {
    script: Script,
    prompt_len: u32,
    verify_steps: usize,
}

/// Runs plans by [`Script`]s. A request without one has the default script.
#[derive(Debug, Default)]
pub struct FakeExecutor {
    playing: SideTable<Playing>,
}

impl FakeExecutor {
    /// An executor that knows no scripts yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a request of `prompt_len` prompt tokens its script, before its first step.
    pub fn insert(&mut self, request: RequestKey, prompt_len: u32, script: Script) {
        self.playing.insert(request, Playing { script, prompt_len, verify_steps: 0 });
    }
}

impl Executor for FakeExecutor {
    type Record = ();
    type Error = Infallible;

    fn execute(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<()>,
    ) -> Result<(), Infallible> {
        outcome.id = plan.id;
        outcome.rows.clear();
        outcome.tokens.clear();
        let mut unscripted = Playing::default();
        for row in &plan.rows {
            let len = kv.tokens(row.request).len() as u32;
            let playing = self.playing.get_mut(row.request).unwrap_or(&mut unscripted);
            let start = outcome.tokens.len() as u32;
            let (mut num_drafts, mut num_accepted, mut stop) = (0, 0, false);
            if row.samples {
                if row.kind == Kind::Verify {
                    let accepted = &playing.script.accepted;
                    let step = playing.verify_steps.min(accepted.len().saturating_sub(1));
                    num_drafts = row.drafts_max;
                    num_accepted = accepted.get(step).copied().unwrap_or(0).min(num_drafts);
                    playing.verify_steps += 1;
                }
                for position in len..=len + u32::from(num_accepted) {
                    outcome.tokens.push(playing.script.token(position));
                    let generated = position + 1 - playing.prompt_len.min(position);
                    stop = playing.script.output_len.is_some_and(|n| generated >= n);
                    if stop {
                        break;
                    }
                }
            }
            outcome.rows.push(RowOutcome {
                request: row.request,
                tokens: start..outcome.tokens.len() as u32,
                num_drafts,
                num_accepted,
                stop,
            });
        }
        Ok(())
    }
}
