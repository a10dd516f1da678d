//! The ways in which a session can speculate, and the change from one to another.

use std::time::Duration;

use pagedraft_model::AnyDevice;
use pagedraft_scheduler::{CostCurve, DraftControl, Scheduler, StepCosts};
use pagedraft_spec_decode::acceptance::Acceptance;
use pagedraft_spec_decode::calibrate::measure;
use pagedraft_spec_decode::canary::{Canary, CanaryReport};
use pagedraft_spec_decode::proposer::{NgramProposer, SuffixProposer, SyntheticProposer};
use pagedraft_spec_decode::{ModelExecutor, ProposerId, Scorer, Shadow};

use super::options::{DraftLength, DraftRef, SpeculationOptions};
use crate::error::{EngineError, Result, bail, ensure};

/// The time that measuring the costs of steps may take, if drafts are priced.
const CALIBRATION: Duration = Duration::from_millis(1500);

/// A way to speculate that a session was prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupId(usize);

struct Setup {
    options: SpeculationOptions,
    proposer: Option<ProposerId>,
    most: u16,
    scorer: Scorer,
    acceptance: Acceptance,
    enforce_eager: bool,
    /// The control that prices its drafts, with what it has learnt. While the setup is in use, the
    /// scheduler has it.
    control: Option<DraftControl>,
    /// What shadows its replayed steps. While the setup is in use, the executor has it.
    shadow: Option<Shadow>,
}

/// Identifies a proposer: its kind, what its tokens are made to cost, and which n-grams it looks up.
#[derive(Clone, Debug, PartialEq)]
struct ProposerKey(DraftRef, f64, (u32, u32));

impl ProposerKey {
    fn new(draft: &DraftRef, options: &SpeculationOptions) -> Self {
        match draft {
            DraftRef::Model(_) | DraftRef::Suffix { .. } => Self(draft.clone(), 0.0, (0, 0)),
            DraftRef::Ngram => Self(draft.clone(), 0.0, options.ngram),
            DraftRef::Synthetic { .. } => Self(draft.clone(), options.draft_cost, (0, 0)),
        }
    }
}

/// The setups of a session.
pub(super) struct Setups {
    all: Vec<Setup>,
    current: Option<SetupId>,
    /// The proposers, by all options that make one.
    proposers: Vec<(ProposerKey, ProposerId)>,
    /// The costs of passes of the target and of the draft model, once they have been measured.
    target: Option<CostCurve>,
    draft: Option<CostCurve>,
    /// The most sequences in a step, which bounds what is measured.
    max_num_seqs: u32,
    num_blocks: u32,
    block_size: u32,
    /// The share of replayed steps that are shadowed, whether an alarm fails the step, and the seed by
    /// which they are chosen.
    shadowing: (f64, bool, u64),
    /// Whether the shadow in the executor is from before the last [`set_shadowing`](Self::set_shadowing).
    discard_shadow: bool,
}

impl Setups {
    pub fn new(max_num_seqs: u32, num_blocks: u32, block_size: u32) -> Self {
        Self {
            all: Vec::new(),
            current: None,
            proposers: Vec::new(),
            target: None,
            draft: None,
            max_num_seqs,
            num_blocks,
            block_size,
            shadowing: (0.0, false, 0),
            discard_shadow: false,
        }
    }

    /// Shadows this share of replayed steps in every setup, from the next change of setup on. With `raise`
    /// a difference fails the step.
    pub fn set_shadowing(&mut self, rate: f64, raise: bool, seed: u64) {
        self.shadowing = (rate, raise, seed);
        self.all.iter_mut().for_each(|setup| setup.shadow = None);
        self.discard_shadow = true;
    }

    /// What the canaries of all setups have seen; `current` is the one of the setup in use. Counts are
    /// added up. The first alarm is that of any setup, counted in its own replayed steps.
    pub fn canary_report(&self, current: Option<&CanaryReport>) -> Option<CanaryReport> {
        let others = self.all.iter().filter_map(|setup| setup.shadow.as_ref().map(Shadow::report));
        others.chain(current).fold(None, |sum: Option<CanaryReport>, one| {
            let mut sum = sum.unwrap_or_default();
            sum.shadow_steps += one.shadow_steps;
            sum.alarms += one.alarms;
            sum.first_alarm_step = sum.first_alarm_step.into_iter().chain(one.first_alarm_step).min();
            sum.drafted += one.drafted;
            sum.accepted_graph += one.accepted_graph;
            sum.accepted_eager += one.accepted_eager;
            Some(sum)
        })
    }

    /// Registers a proposer that was made elsewhere, which is a draft model.
    pub fn know(&mut self, options: &SpeculationOptions, draft: &DraftRef, proposer: ProposerId) {
        self.proposers.push((ProposerKey::new(draft, options), proposer));
    }

    /// Makes a setup, and its proposer if there is none yet.
    pub fn prepare(
        &mut self,
        options: &SpeculationOptions,
        enforce_eager: bool,
        executor: &mut ModelExecutor<AnyDevice>,
    ) -> Result<SetupId> {
        let most = options.length.most();
        let proposer = match &options.draft {
            Some(draft) if most > 0 => Some(self.proposer(draft, options, executor)?),
            _ => None,
        };
        let control = match (proposer, options.length) {
            (Some(id), DraftLength::Auto) => {
                Some(DraftControl::new(most, &self.costs(id, options, executor)?))
            }
            _ => None,
        };
        self.all.push(Setup {
            options: options.clone(),
            proposer,
            most: if proposer.is_some() { most } else { 0 },
            scorer: options.scorer,
            acceptance: options.acceptance,
            enforce_eager,
            control,
            shadow: None,
        });
        Ok(SetupId(self.all.len() - 1))
    }

    fn proposer(
        &mut self,
        draft: &DraftRef,
        options: &SpeculationOptions,
        executor: &mut ModelExecutor<AnyDevice>,
    ) -> Result<ProposerId> {
        let key = ProposerKey::new(draft, options);
        if let Some((_, id)) = self.proposers.iter().find(|(known, _)| *known == key) {
            return Ok(*id);
        }
        let id = match draft {
            DraftRef::Ngram => {
                let (shortest, longest) = options.ngram;
                executor.add_proposer(Box::new(NgramProposer::new(shortest as usize, longest as usize)?))
            }
            DraftRef::Suffix { store } => {
                if *store > 0 && options.acceptance != Acceptance::Coupled {
                    let what = format!(
                        "drafts from past outputs depend on what ran before, and under {} acceptance the tokens depend on the drafts",
                        options.acceptance
                    );
                    return Err(EngineError::input_hint(
                        what,
                        "use --draft suffix without a store, or --acceptance coupled",
                    ));
                }
                executor.add_proposer(Box::new(SuffixProposer::new(*store as usize)))
            }
            DraftRef::Synthetic { rate } => {
                let vocab = executor.runner().config().vocab_size as u32;
                let mut proposer = SyntheticProposer::new(*rate, vocab)?;
                if options.draft_cost > 0.0 {
                    let round = self.round(options, executor)?;
                    proposer.set_round_us(Box::new(move |rows| round.us(rows as u32)));
                }
                executor.add_proposer(Box::new(proposer))
            }
            DraftRef::Model(model) => {
                bail!("the draft model {model} was not loaded when the session was opened")
            }
        };
        self.proposers.push((key, id));
        Ok(id)
    }

    /// The costs of a forward pass of the target.
    fn target(&mut self, executor: &mut ModelExecutor<AnyDevice>) -> Result<CostCurve> {
        if let Some(curve) = &self.target {
            return Ok(curve.clone());
        }
        let most = self.max_num_seqs.saturating_mul(u32::from(DraftLength::AUTO_MAX) + 1).min(256);
        let curve = measure(executor.runner(), self.block_size, self.num_blocks, most, CALIBRATION)?;
        self.target = Some(curve.clone());
        Ok(curve)
    }

    /// The time that a round of synthetic drafts, one token per row, is made to take.
    fn round(
        &mut self,
        options: &SpeculationOptions,
        executor: &mut ModelExecutor<AnyDevice>,
    ) -> Result<CostCurve> {
        let target = self.target(executor)?;
        let points = target.points.iter().map(|&(rows, us)| (rows, us * options.draft_cost)).collect();
        Ok(CostCurve { points, us_per_context: 0.0, us_per_read: 0.0 })
    }

    fn costs(
        &mut self,
        id: ProposerId,
        options: &SpeculationOptions,
        executor: &mut ModelExecutor<AnyDevice>,
    ) -> Result<StepCosts> {
        let target = self.target(executor)?;
        let keeps_kv = matches!(options.draft, Some(DraftRef::Model(_)));
        let draft = match &options.draft {
            Some(DraftRef::Model(_)) => match &self.draft {
                Some(curve) => curve.clone(),
                None => {
                    let curve = executor.measure_proposer(id, self.max_num_seqs.min(256), CALIBRATION)?;
                    self.draft.insert(curve).clone()
                }
            },
            Some(DraftRef::Synthetic { .. }) => self.round(options, executor)?,
            _ => CostCurve::default(),
        };
        Ok(StepCosts { target, draft, draft_per_step_us: 0.0, overhead_us: 0.0, proposer_keeps_kv: keeps_kv })
    }

    /// The options of a setup, and whether all its steps are eager.
    pub fn options(&self, setup: SetupId) -> Option<(&SpeculationOptions, bool)> {
        self.all.get(setup.0).map(|setup| (&setup.options, setup.enforce_eager))
    }

    /// Changes to a setup. No request may be running.
    pub fn switch(
        &mut self,
        to: SetupId,
        scheduler: &mut Scheduler,
        executor: &mut ModelExecutor<AnyDevice>,
    ) -> Result<()> {
        ensure!(!scheduler.has_unfinished(), "requests are running: speculation is changed between them");
        ensure!(to.0 < self.all.len(), "there is no such setup");
        let control = scheduler.set_draft_control(None);
        let shadow = executor.set_shadow(None).filter(|_| !self.discard_shadow);
        self.discard_shadow = false;
        if let Some(was) = self.current.and_then(|id| self.all.get_mut(id.0)) {
            (was.control, was.shadow) = (control, shadow);
        }
        let Some(setup) = self.all.get_mut(to.0) else { bail!("there is no such setup") };
        scheduler.set_num_speculative_tokens(setup.most);
        scheduler.set_drafts_have_kv(matches!(setup.options.draft, Some(DraftRef::Model(_))));
        scheduler.set_draft_control(setup.control.take());
        let (rate, raise, seed) = self.shadowing;
        if setup.shadow.is_none() && rate > 0.0 && !setup.enforce_eager {
            setup.shadow = Some(Shadow::new(Canary::new(rate, seed), raise));
        }
        executor.set_shadow(setup.shadow.take());
        executor.choose_proposer(setup.proposer);
        executor.set_scorer(setup.scorer);
        executor.set_acceptance(setup.acceptance);
        executor.set_enforce_eager(setup.enforce_eager);
        executor.reset_counts();
        executor.take_metrics();
        self.current = Some(to);
        Ok(())
    }
}
