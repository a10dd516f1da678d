//! A step in which all requests decode asks the heap for nothing.
#![allow(clippy::unwrap_used)]

#[path = "../../block_manager/tests/counting/mod.rs"]
mod counting;
mod rig;

use counting::ALLOCATIONS;
use pagedraft_scheduler::fake::Script;
use pagedraft_scheduler::{CostCurve, DraftControl, RequestSpec, SchedulerConfig, StepCosts, StepTimes};
use rig::Rig;

fn costs() -> StepCosts {
    StepCosts {
        target: CostCurve {
            points: vec![(1, 500.0), (64, 900.0), (256, 1200.0)],
            us_per_context: 0.0,
            us_per_read: 0.0,
        },
        draft: CostCurve { points: vec![(1, 20.0)], us_per_context: 0.0, us_per_read: 0.0 },
        proposer_keeps_kv: true,
        ..StepCosts::default()
    }
}

#[test]
fn a_steady_step_allocates_nothing() {
    for (drafts, accepted, auto) in [(0, 0, false), (3, 2, false), (3, 2, true), (3, 0, true)] {
        let mut rig = Rig::new(SchedulerConfig {
            num_blocks: 4096,
            num_speculative_tokens: drafts,
            ..SchedulerConfig::default()
        });
        if auto {
            rig.scheduler.set_draft_control(Some(DraftControl::new(drafts, &costs())));
        }
        for i in 0..64 {
            let prompt = (0..100).map(|t| i * 1000 + t).collect();
            let script = Script { accepted: vec![accepted], ..Script::default() };
            rig.submit(RequestSpec::new(prompt, 600), script);
        }
        while rig.scheduler.stats().waiting > 0 {
            rig.step();
        }
        for _ in 0..2 {
            rig.step();
        }
        // Long enough that every request seals several blocks.
        for _ in 0..100 {
            let before = ALLOCATIONS.get();
            rig.scheduler.step(&mut rig.plan).unwrap();
            let planned = ALLOCATIONS.get() - before;
            rig.execute();
            let before = ALLOCATIONS.get();
            rig.scheduler.apply(&rig.outcome, &mut rig.applied).unwrap();
            rig.scheduler.observe(&StepTimes { propose_us: 30.0, execute_us: 900.0, total_us: 1000.0 });
            assert_eq!((planned, ALLOCATIONS.get() - before), (0, 0));
            assert_eq!(rig.plan.rows.len(), 64);
        }
    }
}
