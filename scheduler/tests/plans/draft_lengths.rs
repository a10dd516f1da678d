//! What the draft control does when acceptance differs, changes, or does not pay; in simulated time.

use pagedraft_scheduler::{CostCurve, DraftControl, Kind, StepCosts, StepTimes};

use crate::sim::{Drafts, Lengths, Shape, Sim, World};

fn mean_length(sim: &mut Sim, steps: u32) -> f64 {
    let (mut drafts, mut rows) = (0, 0);
    for _ in 0..steps {
        sim.step();
        for row in sim.plan.rows.iter().filter(|row| row.kind != Kind::Prefill) {
            drafts += u32::from(row.drafts_max);
            rows += 1;
        }
    }
    f64::from(drafts) / f64::from(rows)
}

#[test]
fn drafts_go_off_when_they_do_not_pay_and_come_back_when_they_do() {
    for batch in [1, 8] {
        let rate = |lengths| {
            let mut sim = Sim::new(World::exact(Shape::Cpu, 0.2), lengths, batch, 20_000);
            let drafts = Drafts { accepted: (0.05, 0.9), changes_at: 2000, given: 1.0 };
            for _ in 0..batch {
                sim.submit(64, 8000, drafts);
            }
            let low = sim.run(u64::from(batch) * 1900);
            let off = mean_length(&mut sim, 10);
            sim.run(u64::from(batch) * 100);
            let start = sim.steps;
            let mut back = None;
            while sim.tokens < u64::from(batch) * 6000 {
                if back.is_none() && mean_length(&mut sim, 10) > 1.0 {
                    back = Some(sim.steps - start);
                }
                sim.step();
            }
            let high = sim.run(u64::from(batch) * 1000);
            (low, off, back, high)
        };
        let (low, off, back, high) = rate(Lengths::Auto(8));
        let (none, ..) = rate(Lengths::Fixed(0));
        let (.., best) = rate(Lengths::Fixed(if batch == 1 { 4 } else { 3 }));
        println!(
            "batch {batch}: low {:.3} of none, back after {back:?} steps, high {:.3} of fixed",
            low / none,
            high / best
        );
        assert!(low >= 0.98 * none && off < 0.2, "{off} drafts a row that do not pay");
        assert!(back.is_some_and(|steps| steps < 1500), "back after {back:?}");
        assert!(high >= 0.98 * best);
    }
}

#[test]
fn a_draft_far_behind_is_not_woken_for_the_few_tokens_that_are_left() {
    let verified = |max_tokens| {
        let mut sim = Sim::new(World::exact(Shape::Cpu, 0.05), Lengths::Auto(4), 1, 8000);
        sim.submit(64, 400, Drafts::accepted(0.8));
        sim.run(u64::MAX / 2);
        let key = sim.submit(4000, max_tokens, Drafts::accepted(0.8));
        let mut verified = 0;
        while sim.scheduler.has_unfinished() {
            sim.step();
            verified += sim.plan.rows.iter().filter(|row| row.request == key && row.drafts_max > 0).count();
        }
        verified
    };
    assert_eq!(verified(4), 0);
    assert!(verified(2000) > 200);
}

#[test]
fn requests_that_differ_get_different_lengths() {
    // Three decode rows without drafts take 1.5 units, a row more a quarter: a draft pays from 0.5 on.
    let mut sim = Sim::new(World::exact(Shape::Linear, 0.0), Lengths::Auto(8), 3, 4000);
    let good = sim.submit(64, 3000, Drafts::accepted(0.9));
    for _ in 0..2 {
        sim.submit(64, 3000, Drafts::accepted(0.1));
    }
    sim.run(3 * 200);
    let (mut of_good, mut of_others, steps) = (0, 0, 100);
    for _ in 0..steps {
        sim.step();
        for row in &sim.plan.rows {
            *(if row.request == good { &mut of_good } else { &mut of_others }) += u32::from(row.drafts_max);
        }
    }
    let (good, others) = (f64::from(of_good) / 100.0, f64::from(of_others) / 200.0);
    println!("{good} drafts at 0.9, {others} at 0.1");
    assert!(good > 1.5 && others < 0.2, "{good} drafts at 0.9, {others} at 0.1");
}

#[test]
fn a_proposer_that_seldom_gives_anything_costs_nothing() {
    for (given, accepted, batch) in [(0.0, 0.5, 4), (0.05, 0.1, 4), (0.05, 0.7, 1), (0.05, 0.7, 32)] {
        let rate = |lengths| {
            let world = World::exact(Shape::Cpu, 0.0);
            let mut sim = Sim::new(world, lengths, batch, 4000);
            for _ in 0..batch {
                sim.submit(64, 3000, Drafts { given, ..Drafts::accepted(accepted) });
            }
            sim.run(u64::from(batch) * 1500)
        };
        let ratio = rate(Lengths::Auto(8)) / rate(Lengths::Fixed(0));
        println!("given {given} accepted {accepted} batch {batch}: {ratio:.4} of none");
        assert!(ratio >= 0.99, "given {given} accepted {accepted} batch {batch}: {ratio}");
    }
}

#[test]
fn in_a_tight_budget_drafts_take_nobodys_place() {
    for (given, accepted, prompt) in [(0.1, 0.5, 64), (0.1, 0.9, 64), (1.0, 0.7, 64), (0.1, 0.9, 2000)] {
        let rate = |lengths| {
            let mut sim = Sim::with_budget(World::exact(Shape::Cpu, 0.0), lengths, 32, 4000, 64);
            for i in 0..64 {
                // Some end early, so that there are prefills among the drafts.
                let max_tokens = if i < 32 { 100 + 40 * i } else { 1500 };
                sim.submit(prompt, max_tokens, Drafts { given, ..Drafts::accepted(accepted) });
            }
            sim.run(32 * 1000)
        };
        let ratio = rate(Lengths::Auto(8)) / rate(Lengths::Fixed(0));
        println!("given {given} accepted {accepted} prompts of {prompt}: {ratio:.4} of none");
        assert!(ratio >= 0.98, "given {given} accepted {accepted} prompts of {prompt}: {ratio}");
    }
}

#[test]
fn the_same_events_give_the_same_plans() {
    let mut sims = [0, 1].map(|_| {
        let mut sim = Sim::new(World::exact(Shape::Stairs, 0.2), Lengths::Auto(6), 8, 2000);
        for i in 0..20 {
            sim.submit(20 + 30 * i, 200, Drafts::accepted(f64::from(i) / 20.0));
        }
        sim
    });
    while sims[0].scheduler.has_unfinished() {
        for sim in &mut sims {
            sim.step();
        }
        assert_eq!(sims[0].plan, sims[1].plan);
    }
}

#[test]
fn what_was_learnt_stays_with_a_control_that_moves() {
    let world = World::exact(Shape::Cpu, 0.05);
    let mut sim = Sim::new(world, Lengths::Auto(8), 4, 2000);
    for _ in 0..4 {
        sim.submit(64, 500, Drafts::accepted(0.95));
    }
    sim.run(u64::MAX / 2);
    let control = sim.scheduler.set_draft_control(None).unwrap();
    let report = control.report();
    println!("{report:?}");
    assert!(report.acceptance > 0.9 && report.decisions > 50);
    assert_eq!(report.chosen.len(), 9);
    let mut next = Sim::new(world, Lengths::Fixed(8), 4, 2000);
    assert!(next.scheduler.set_draft_control(Some(control)).is_none());
    next.submit(64, 500, Drafts::accepted(0.95));
    next.step();
    assert!(mean_length(&mut next, 10) > 5.0);
}

#[test]
fn without_a_control_the_length_is_the_setting() {
    let mut sim = Sim::new(World::exact(Shape::Cpu, 0.05), Lengths::Fixed(3), 2, 2000);
    sim.submit(64, 500, Drafts::accepted(0.1));
    sim.step();
    assert_eq!(mean_length(&mut sim, 10), 3.0);
    sim.scheduler.set_num_speculative_tokens(1);
    assert_eq!(mean_length(&mut sim, 10), 1.0);
    sim.scheduler.set_num_speculative_tokens(0);
    assert_eq!(mean_length(&mut sim, 10), 0.0);
}

#[test]
fn costs_and_times_that_make_no_sense_do_no_harm() {
    let bad = [f64::NAN, f64::INFINITY, -1.0, 0.0];
    for us in bad {
        let curve = CostCurve {
            points: vec![(0, us), (4, us), (4, 1.0), (1 << 30, us)],
            us_per_context: us,
            us_per_read: 0.0,
        };
        let costs = StepCosts {
            target: curve.clone(),
            draft: curve,
            draft_per_step_us: us,
            overhead_us: us,
            proposer_keeps_kv: true,
        };
        for costs in [costs, StepCosts::default()] {
            for max in [0, 1, 8] {
                let mut sim = Sim::new(World::exact(Shape::Cpu, 0.05), Lengths::Fixed(4), 2, 200);
                sim.scheduler.set_draft_control(Some(DraftControl::new(max, &costs)));
                for _ in 0..3 {
                    sim.submit(10, 100, Drafts::accepted(0.5));
                }
                while sim.scheduler.has_unfinished() {
                    sim.step();
                    assert!(sim.plan.rows.iter().all(|row| row.drafts_max <= max));
                    sim.scheduler.observe(&StepTimes { propose_us: us, execute_us: us, total_us: us });
                }
            }
        }
    }
}
