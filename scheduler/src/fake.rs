//! An executor without a model. The test states beforehand what each request generates.
//!
//! It serves tests, the scheduler's own benchmark, and simulations of plans. A token depends only on its request's seed
//! and on its position, so a preemption, a chunk or a draft that changes a token shows up as a fault.

use std::convert::Infallible;

use pagedraft_block_manager::SideTable;

use crate::{Executor, Kept, Kind, KvView, Progress, RequestKey, SegmentKv, StepOutcome, StepPlan};

/// What a request generates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Script {
    /// The seed that its tokens are drawn from.
    pub seed: u64,
    /// The number of output tokens after which the request stops by itself. `None` means that it goes on to its
    /// `max_tokens`.
    pub output_len: Option<u32>,
    /// Prompt tokens that go on behind each cut, as the request was submitted with.
    pub kept: Vec<u32>,
    /// The number of drafts accepted in each verify step, in order. The last entry holds for all later steps, and an
    /// empty list accepts none.
    pub accepted: Vec<u16>,
    /// Of a request with a canvas: passes that each block takes, one block after the other; the last entry goes on for
    /// ever, an empty list is one pass a block.
    pub passes: Vec<u32>,
    /// Of a request with a canvas: every so many passes within a block another full one is asked for; 0 is never.
    pub refresh_every: u32,
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

    /// The positions of a prompt of `prompt_len` tokens that reach `segment`, ascending: each cut keeps those whose
    /// [token](Self::token) is least.
    #[must_use]
    pub fn kept_positions(&self, segment: u16, prompt_len: u32) -> Vec<u32> {
        let mut positions: Vec<u32> = (0..prompt_len).collect();
        for &kept in self.kept.iter().take(usize::from(segment)) {
            positions.sort_by_key(|&position| (self.token(position), position));
            positions.truncate(kept as usize);
            positions.sort_unstable();
        }
        positions
    }

    fn passes_of(&self, block: usize) -> u32 {
        self.passes.get(block.min(self.passes.len().saturating_sub(1))).copied().unwrap_or(1).max(1)
    }
}

/// The number of different tokens: scripts give tokens below it.
pub const VOCABULARY: u32 = 32_000;

/// The fields lie in this order in memory: those that every step looks at come first, so that they share cache lines.
#[derive(Debug, Default)]
#[repr(C)]
struct Playing {
    prompt_len: u32,
    verify_steps: u32,
    script: Script,
    /// Passes over the block that is being denoised. Its contents begin anew when the request is preempted.
    passes: u32,
}

/// Runs plans by [`Script`]s. A request without one has the default script.
#[derive(Debug, Default)]
pub struct FakeExecutor {
    playing: SideTable<Playing>,
    /// The model's segments; empty where there is one.
    segments: Vec<SegmentKv>,
}

impl FakeExecutor {
    /// An executor that knows no scripts yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An executor of a model with these segments.
    #[must_use]
    pub fn with_segments(segments: Vec<SegmentKv>) -> Self {
        Self { playing: SideTable::default(), segments }
    }

    /// Gives a request of `prompt_len` prompt tokens its script, before its first step.
    pub fn insert(&mut self, request: RequestKey, prompt_len: u32, script: Script) {
        self.playing.insert(request, Playing { prompt_len, verify_steps: 0, script, passes: 0 });
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
        outcome.begin(plan);
        for &request in &plan.preempted {
            if let Some(playing) = self.playing.get_mut(request) {
                playing.passes = 0;
            }
        }
        let segments = std::mem::take(&mut self.segments);
        let mut unscripted = Playing::default();
        for (at, (row, result)) in plan.rows.iter().zip(&mut outcome.rows).enumerate() {
            let len = kv.tokens(row.request).len() as u32;
            let playing = self.playing.get_mut(row.request).unwrap_or(&mut unscripted);
            let start = outcome.tokens.len() as u32;
            let (mut num_drafts, mut num_accepted, mut stop) = (0, 0, false);
            if let Kind::Denoise { block, .. } = &row.kind {
                playing.passes += 1;
                let size = block.end - block.start;
                let index = (block.start - playing.prompt_len.min(block.start)) / size.max(1);
                let done = playing.passes >= playing.script.passes_of(index as usize);
                if done {
                    outcome.tokens.extend(block.clone().map(|position| playing.script.token(position)));
                    playing.passes = 0;
                }
                let every = playing.script.refresh_every;
                let refresh = every > 0 && !done && playing.passes.is_multiple_of(every);
                result.progress = Progress::Canvas { refresh };
                result.tokens = start..outcome.tokens.len() as u32;
                continue;
            }
            if !playing.script.kept.is_empty() {
                let needs = plan.needs.row(at);
                for segment in row.segments.clone().filter(|&segment| segment > 0) {
                    let groups = segments.get(usize::from(segment)).map_or(&[][..], |kv| &kv.groups);
                    for &group in groups {
                        let from = outcome.kept_positions.len() as u32;
                        let need = needs.get(usize::from(group.0)).copied().unwrap_or(0);
                        let prompt = playing.script.kept_positions(segment, playing.prompt_len);
                        let all = prompt.into_iter().chain(playing.prompt_len..len);
                        outcome.kept_positions.extend(all.take(need as usize));
                        let positions = from..outcome.kept_positions.len() as u32;
                        outcome.kept.push(Kept { row: at as u32, group, positions });
                    }
                }
            }
            if row.samples {
                if row.kind == Kind::Verify {
                    let accepted = &playing.script.accepted;
                    let step = (playing.verify_steps as usize).min(accepted.len().saturating_sub(1));
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
            result.tokens = start..outcome.tokens.len() as u32;
            (result.num_drafts, result.num_accepted, result.stop) = (num_drafts, num_accepted, stop);
        }
        self.segments = segments;
        Ok(())
    }
}
