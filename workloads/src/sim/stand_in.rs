//! The price of a step, until the cost model has one of its own.

use super::{CostModel, DraftCost, StepCost, StepShape};

pub(super) trait StandIn {
    fn step(&self, shape: &StepShape, proposer: Option<&DraftCost>) -> StepCost;
    fn step_costs(&self, proposer: Option<&str>) -> pagedraft_scheduler::StepCosts;
}

impl StandIn for CostModel {
    fn step(&self, shape: &StepShape, proposer: Option<&DraftCost>) -> StepCost {
        let mut propose = 0.0;
        if let (Some(proposer), Some(&first)) = (proposer, shape.draft_passes.first()) {
            propose = proposer.us_per_step
                + proposer.us_per_row * f64::from(first)
                + proposer.pass.us(shape.draft_catch_up)
                + shape.draft_passes[1..].iter().map(|&rows| proposer.pass.us(rows)).sum::<f64>();
        }
        StepCost {
            schedule: self.us_per_row * f64::from(shape.plan_rows),
            metadata: 0.0,
            propose,
            execute: self.target.us(shape.token_rows)
                + self.target.us_per_read * shape.context_reads as f64
                + self.target.us_per_context * shape.context_pairs as f64,
            sample: self.us_per_logit_row * f64::from(shape.logit_rows),
            other: self.us_per_step,
        }
    }

    fn step_costs(&self, proposer: Option<&str>) -> pagedraft_scheduler::StepCosts {
        let proposer = proposer.and_then(|name| self.proposers.get(name));
        pagedraft_scheduler::StepCosts {
            target: self.target.clone(),
            draft: proposer.map(|p| p.pass.clone()).unwrap_or_default(),
            draft_per_step_us: proposer.map_or(0.0, |p| p.us_per_step),
            overhead_us: self.us_per_step,
            proposer_keeps_kv: proposer.is_some_and(|p| p.keeps_kv),
        }
    }
}
