use std::collections::BTreeMap;

use pagedraft_scheduler::CostCurve;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn truth() -> CostModel {
    let curve = |points: &[(u32, f64)], context, read| CostCurve {
        points: points.to_vec(),
        us_per_context: context,
        us_per_read: read,
    };
    let draft = DraftCost {
        pass: curve(&[(1, 60.0), (64, 500.0), (1024, 7000.0)], 0.001, 0.004),
        us_per_step: 5.0,
        us_per_row: 1.5,
        keeps_kv: true,
    };
    CostModel {
        name: "known".into(),
        target: curve(&[(1, 300.0), (16, 500.0), (64, 2000.0), (256, 4000.0), (2048, 30_000.0)], 0.003, 0.02),
        us_per_step: 6.0,
        us_per_row: 0.3,
        us_per_logit_row: 4.0,
        us_per_sampled_row: 1.0,
        us_per_prefill: 15.0,
        us_per_single_read: 0.01,
        us_per_prefill_pair: 0.001,
        us_per_begun: 30.0,
        us_per_ended: 12.0,
        us_per_eager_step: 50.0,
        us_to_wake: 150.0,
        us_per_row_before: 0.4,
        us_after_idle: 700.0,
        us_per_row_after_idle: 2.5,
        us_per_idle_s: 900.0,
        us_per_row_and_idle_s: 6.0,
        proposers: [("draft".to_owned(), draft)].into(),
        ..CostModel::default()
    }
}

/// Steps as an engine has them: decodes, prefills, both, verify steps.
fn steps(truth: &CostModel, seed: u64, noise: f64, outliers: f64) -> Vec<MeasuredStep> {
    let mut draw = ChaCha8Rng::seed_from_u64(seed);
    let log = |most: f64, draw: &mut ChaCha8Rng| most.powf(draw.random::<f64>()).round() as u32;
    let (mut steps, mut before) = (Vec::new(), 0);
    for i in 0..6000u64 {
        let decodes = if i % 5 == 4 { 0 } else { log(256.0, &mut draw) };
        let prefill = if i % 5 < 2 { 0 } else { log(2048.0, &mut draw) };
        let drafts = if i % 3 == 0 && decodes > 0 { draw.random_range(1..=8) } else { 0 };
        let context = u64::from(log(4000.0, &mut draw));
        let verify = decodes * (1 + drafts);
        let (decoding, chunk) = (u64::from(decodes), u64::from(prefill));
        let catch_up = if drafts > 0 { decodes + log(500.0, &mut draw) - 1 } else { 0 };
        let shape = StepShape {
            segments: Vec::new(),
            idle_us: if i % 20 == 2 { 1e4 * 100f64.powf(draw.random::<f64>()) } else { 0.0 },
            rows_before: if i % 20 == 2 { 0 } else { before },
            begun: u32::from(i % 7 == 3),
            ended: u32::from(i % 11 == 5),
            pad_rows: if prefill == 0 && i % 2 == 0 { verify / 9 } else { 0 },
            plan_rows: decodes + u32::from(prefill > 0),
            metadata_rows: decodes + u32::from(prefill > 0),
            token_rows: verify + prefill,
            logit_rows: verify + u32::from(prefill > 0),
            context_reads: decoding * context,
            single_reads: if drafts == 0 { decoding * context } else { 0 },
            context_pairs: u64::from(verify) * context + chunk * chunk / 2,
            prefill_pairs: chunk * chunk / 2,
            prefills: u32::from(prefill > 0),
            replayed: prefill == 0 && i % 2 == 0,
            draft_passes: vec![decodes; drafts as usize],
            draft_catch_up: catch_up,
            draft_reads: decoding * context * u64::from(drafts),
            draft_pairs: decoding * context * u64::from(drafts),
        };
        before = shape.token_rows;
        let proposer = (drafts > 0).then(|| "draft".to_owned());
        let mut took = truth.step(&shape, truth.proposers.get("draft").filter(|_| drafts > 0));
        for us in
            [&mut took.execute, &mut took.propose, &mut took.sample, &mut took.metadata, &mut took.other]
        {
            *us *= 1.0 + noise * (draw.random::<f64>() - 0.5);
        }
        if draw.random::<f64>() < outliers {
            // Another program has the core for a while.
            took.execute = took.total_us() * 2.5 + 6_000.0 * (1.0 + 4.0 * draw.random::<f64>());
        }
        let woke_us = truth.us_to_wake * (0.9 + 0.2 * draw.random::<f64>());
        steps.push(MeasuredStep { shape, took, woke_us: Some(woke_us), proposer, run: i / 4 });
    }
    steps
}

fn keeps() -> BTreeMap<String, bool> {
    [("draft".to_owned(), true)].into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn a_fit_finds_what_made_the_steps(seed in 0u64..10_000) {
        let truth = truth();
        let found = fit(&steps(&truth, seed, 0.1, 0.05), &keeps());
        for step in steps(&truth, seed + 1, 0.0, 0.0) {
            let proposer = step.proposer.as_ref().and_then(|name| found.model.proposers.get(name));
            let (want, got) = (step.took, found.model.step(&step.shape, proposer));
            // Between a knot of the truth and the next one of the fit the line is another.
            let close = |want: f64, got: f64| (want - got).abs() <= 0.10 * want + 10.0;
            prop_assert!(close(want.execute, got.execute), "execute {:?}: {} for {}", step.shape, got.execute, want.execute);
            prop_assert!(close(want.propose, got.propose), "propose {:?}: {} for {}", step.shape, got.propose, want.propose);
            prop_assert!(close(want.total_us(), got.total_us()), "{:?}", step.shape);
        }
        prop_assert!(found.all.median_error.unwrap() < 0.05, "{:?}", found.all);
        let near = |got: f64, want: f64| (got - want).abs() <= 0.15 * want;
        let target = &found.model.target;
        prop_assert!(near(target.us_per_read + target.us_per_context + found.model.us_per_single_read, 0.033), "{:?}", target);
        prop_assert!(near(target.us_per_context, 0.003), "{:?}", target);
        prop_assert!(near(found.model.us_per_eager_step, 50.0), "{}", found.model.us_per_eager_step);
        prop_assert!((found.model.us_per_begun - 30.0).abs() < 6.0, "{}", found.model.us_per_begun);
        prop_assert!((found.model.us_per_ended - 12.0).abs() < 6.0, "{}", found.model.us_per_ended);
        prop_assert!(near(found.model.us_to_wake, 150.0), "{}", found.model.us_to_wake);
        // A step of 200 rows after 0.2 seconds.
        let idle = |m: &CostModel| m.us_after_idle + 200.0 * m.us_per_row_after_idle + 0.2 * (m.us_per_idle_s + 200.0 * m.us_per_row_and_idle_s);
        prop_assert!(near(idle(&found.model), idle(&truth)), "{:?}", found.model);
        prop_assert!((found.model.us_per_row_before - 0.4).abs() < 0.2, "{}", found.model.us_per_row_before);
    }

    #[test]
    fn what_is_fitted_is_a_model_whatever_was_measured(
        seed in 0u64..10_000,
        times in prop::collection::vec((0.0f64..1e7, 0.0f64..1e5), 1..120),
    ) {
        let mut all = steps(&truth(), seed, 0.0, 0.0);
        all.truncate(times.len());
        for (step, (execute, propose)) in all.iter_mut().zip(&times) {
            (step.took.execute, step.took.propose) = (*execute, *propose);
        }
        let mut found = fit(&all, &keeps()).model;
        found.name = "wild".into();
        // Runs may all be held out.
        if !found.target.points.is_empty() {
            prop_assert_eq!(found.check(), Ok(()));
        }
    }
}

#[test]
fn nothing_measured_gives_no_model() {
    let found = fit(&[], &keeps());
    assert!(found.model.check().unwrap_err().contains("target.points"));
    assert_eq!(found.all.held_out_steps, 0);
}

#[test]
fn a_curve_has_points_where_steps_were() {
    let rows: Vec<u32> = [1, 2, 8, 300].into_iter().flat_map(|rows| std::iter::repeat_n(rows, 9)).collect();
    let knots = Knots::new(rows.into_iter());
    assert_eq!(knots.0, [1, 2, 8]);
    assert_eq!(knots.ramps([2]), [1.0, 1.0, 0.0]);
    assert_eq!(knots.ramps([5, 14]), [2.0, 2.0, 0.5 + 2.0]);
    assert_eq!(knots.points(&[5.0, 0.0, 3.0]), [(1, 5.0), (2, 5.0), (8, 8.0)]);
}
