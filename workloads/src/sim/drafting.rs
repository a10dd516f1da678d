//! Simulates a proposer: which rows get drafts, which drafts are accepted, and what work proposing takes.

use super::draws::{Draws, Purpose};
use super::{CostModel, DraftCost, SimOptions, SimSpeculation, StepShape};

/// How a simulated engine's proposer behaves.
///
/// A proposer with KV of its own follows the rules of `pagedraft_spec_decode`'s draft model. The first pass
/// of a step computes what each row lacks. Rows that lack more than one token share a budget, and a row
/// that does not catch up within it gets no drafts. The KV of the last draft is never written. Two things
/// are simpler here: its pool always has room, and its prefix cache has what the target's cache had when a
/// request was admitted.
///
/// A proposer without KV is asked for every row that may have drafts, and gives some with the probability
/// `given`.
#[derive(Clone, Debug)]
pub(super) struct Drafting {
    pub(super) cost: DraftCost,
    by_position: Vec<f64>,
    given: f64,
    pub(super) batch_expansion: bool,
    /// The most tokens that rows may catch up with in a step, all together. `left` is what remains of it.
    catch_up: u32,
    left: u32,
}

/// The proposer's state for a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drafted {
    /// The number of tokens whose KV it has.
    tokens: u32,
}

impl Drafting {
    /// # Errors
    ///
    /// The cost model does not have the proposer, or a share is not a number from 0 to 1.
    pub(super) fn new(options: &SimOptions, speculation: &SimSpeculation) -> Result<Self, String> {
        let SimSpeculation { proposer, acceptance, .. } = speculation;
        let CostModel { name, proposers, acceptance: measured, .. } = &options.cost;
        let Some(cost) = proposers.get(proposer) else {
            let known: Vec<&str> = proposers.keys().map(String::as_str).collect();
            return Err(format!(
                "the cost model {name} has no proposer {proposer}, it has {known:?}: measure one with `pagedraft bench \
                 calibrate`, or write it in by hand"
            ));
        };
        let measured = measured.get(proposer);
        let by_position = match (acceptance, measured) {
            (Some(share), _) => vec![*share],
            (None, Some(measured)) => measured.by_position.clone(),
            (None, None) => {
                return Err(format!(
                    "the cost model {name} does not say how the drafts of {proposer} fare: give an acceptance"
                ));
            }
        };
        let given = measured.map_or(1.0, |measured| measured.given);
        for share in by_position.iter().chain([&given]) {
            if !(0.0..=1.0).contains(share) {
                return Err(format!(
                    "the acceptance of {proposer} has {share}: a share is a number from 0 to 1"
                ));
            }
        }
        Ok(Self {
            cost: cost.clone(),
            by_position,
            given,
            batch_expansion: speculation.batch_expansion,
            catch_up: options.scheduler.max_num_batched_tokens,
            left: 0,
        })
    }

    /// Begins a step.
    pub(super) fn begin(&mut self) {
        self.left = self.catch_up;
    }

    /// Drafts for a row whose request is `len` tokens long and may have up to `most` drafts. Returns the
    /// number of drafts, and how many of them are accepted. Adds to `shape` the work that proposing takes.
    pub(super) fn row(
        &mut self,
        draws: Draws,
        drafted: &mut Drafted,
        len: u32,
        most: u16,
        shape: &mut StepShape,
    ) -> (u16, u16) {
        if most == 0 {
            return (0, 0);
        }
        if !self.cost.keeps_kv {
            let given = draws.uniform(Purpose::Give, len) < self.given;
            let drafts = if given { most } else { 0 };
            // A proposer without KV reads no context.
            (0..usize::from(drafts.max(1))).for_each(|depth| shape.add_draft_row(depth, 0, 1));
            return (drafts, self.accepted(draws, len, drafts));
        }
        let start = drafted.tokens.min(len.saturating_sub(1));
        let lacks = len - 1 - start;
        let (mut fed, mut drafts) = (len, most);
        if lacks > 1 {
            let taken = lacks.min(self.left);
            self.left -= taken;
            if taken < lacks {
                (fed, drafts) = (start + taken, 0);
            }
        }
        if fed > start {
            shape.add_draft_row(0, start, fed - start);
        }
        (1..drafts).for_each(|depth| shape.add_draft_row(usize::from(depth), fed + u32::from(depth) - 1, 1));
        let accepted = self.accepted(draws, len, drafts);
        let written = fed + u32::from(drafts).saturating_sub(1);
        drafted.tokens = written.min(len + u32::from(accepted));
        (drafts, accepted)
    }

    fn accepted(&self, draws: Draws, len: u32, drafts: u16) -> u16 {
        let last = self.by_position.last().copied().unwrap_or(0.0);
        let share = |i: u16| self.by_position.get(usize::from(i)).copied().unwrap_or(last);
        let hit = |&i: &u16| draws.uniform(Purpose::Accept, len + u32::from(i)) < share(i);
        (0..drafts).take_while(hit).count() as u16
    }
}

impl Drafted {
    /// Says that the request was admitted, and that the proposer found this many tokens in its prefix
    /// cache.
    pub(super) fn admitted(&mut self, cached: u32) {
        self.tokens = self.tokens.max(cached);
    }

    /// Says that the request was preempted. With a prefix cache its full blocks are found again.
    pub(super) fn preempted(&mut self, block_size: u32, caching: bool) {
        self.tokens = if caching { self.tokens - self.tokens % block_size.max(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafting(catch_up: u32) -> Drafting {
        let cost = DraftCost { keeps_kv: true, ..DraftCost::default() };
        Drafting { cost, by_position: vec![1.0], given: 1.0, batch_expansion: false, catch_up, left: 0 }
    }

    #[test]
    fn rows_that_lag_share_the_budget_and_who_is_not_caught_up_with_has_no_drafts() {
        let mut drafting = drafting(10);
        let (draws, mut shape) = (Draws::new(0, 0), StepShape::default());
        let mut drafted = [0, 0, 0, 19].map(|tokens| Drafted { tokens });
        drafting.begin();
        let mut rows = |drafting: &mut Drafting, shape: &mut StepShape| {
            drafted.each_mut().map(|of| drafting.row(draws, of, 20, 2, shape))
        };
        // Each of three rows lacks 19 tokens, and the budget is 10, so the first row uses it up. The last
        // row lacks only its newest token, which needs no budget.
        assert_eq!(rows(&mut drafting, &mut shape), [(0, 0), (0, 0), (0, 0), (2, 2)]);
        assert_eq!((&shape.draft_passes[..], shape.draft_catch_up), (&[2, 1][..], 10 + 1));
        // The contexts are 0 and 19 in the first pass, and 20 in the second. The ten tokens have 0 to 9
        // tokens before them.
        assert_eq!((shape.draft_reads, shape.draft_pairs), (19 + 20, 45 + 19 + 20));
        drafting.begin();
        assert_eq!(rows(&mut drafting, &mut shape), [(2, 2), (0, 0), (0, 0), (2, 2)]);
        assert_eq!(drafted.map(|of| of.tokens), [21, 1, 0, 21]);
    }

    #[test]
    fn what_is_accepted_decides_what_is_lacking() {
        let step = |share: f64, most: u16| {
            let mut drafting = Drafting { by_position: vec![share], ..drafting(100) };
            let (mut drafted, mut shape) = (Drafted { tokens: 9 }, StepShape::default());
            drafting.begin();
            let (drafts, accepted) = drafting.row(Draws::new(0, 0), &mut drafted, 10, most, &mut shape);
            // A row emits one token more than its accepted drafts. The result is how many of its tokens
            // then have no KV.
            (drafts, 10 + accepted as u32 + 1 - drafted.tokens)
        };
        assert_eq!(step(0.0, 4), (4, 1));
        assert_eq!(step(1.0, 4), (4, 2));
        assert_eq!(step(1.0, 0), (0, 2), "nothing was asked");
        assert_eq!(step(1.0, 1), (1, 2));
    }
}
