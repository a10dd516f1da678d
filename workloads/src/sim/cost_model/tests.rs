use super::*;

#[test]
fn the_builtin_model_is_one() {
    let model = CostModel::builtin();
    assert_eq!(model.check(), Ok(()));
    for name in ["draft", "ngram", "synthetic"] {
        assert!(model.proposers.contains_key(name) && model.acceptance.contains_key(name), "{name}");
    }
}

#[test]
fn a_step_costs_what_the_table_says() {
    let overhead = |step, row, token| Overhead { us_per_step: step, us_per_row: row, us_per_token: token };
    let curve = |points: &[(u32, f64)], context, read| CostCurve {
        points: points.to_vec(),
        us_per_context: context,
        us_per_read: read,
    };
    let model = CostModel {
        name: "by hand".into(),
        target: curve(&[(1, 100.0), (11, 200.0)], 0.5, 0.25),
        us_per_step: 7.0,
        us_per_row: 3.0,
        us_per_token: 0.5,
        us_per_single_read: 0.125,
        us_per_prefill_pair: 1.0,
        us_per_prefill: 17.0,
        us_per_metadata_row: 11.0,
        us_per_logit_row: 2.0,
        us_per_sampled_row: 1.0,
        us_per_begun: 9.0,
        us_per_ended: 13.0,
        us_per_eager_step: 1000.0,
        us_per_row_before: 0.5,
        us_after_idle: 70.0,
        us_per_idle_s: 1000.0,
        us_per_row_and_idle_s: 10.0,
        us_per_row_after_idle: 2.0,
        schedule: overhead(1.0, 2.0, 0.0),
        metadata: overhead(10.0, 20.0, 30.0),
        ..CostModel::default()
    };
    let draft = DraftCost {
        pass: curve(&[(1, 10.0), (3, 30.0)], 0.01, 0.1),
        us_per_step: 5.0,
        us_per_row: 4.0,
        keeps_kv: true,
    };
    let shape = StepShape {
        segments: Vec::new(),
        idle_us: 0.0,
        rows_before: 6,
        plan_rows: 2,
        metadata_rows: 2,
        token_rows: 6,
        pad_rows: 0,
        begun: 1,
        ended: 2,
        logit_rows: 4,
        context_reads: 40,
        single_reads: 16,
        context_pairs: 60,
        prefill_pairs: 5,
        prefills: 1,
        replayed: false,
        draft_passes: vec![2, 1],
        draft_catch_up: 3,
        draft_reads: 50,
        draft_pairs: 100,
    };
    let cost = model.step(&shape, Some(&draft));
    let want = StepCost {
        schedule: 1.0 + 2.0 * 2.0,
        metadata: 10.0 + 20.0 * 2.0 + 30.0 * 6.0,
        propose: 5.0 + 4.0 * 2.0 + (30.0 + 5.0 + 1.0) + 10.0,
        execute: 150.0 + 10.0 + 30.0 + 2.0 + 5.0 + 22.0 + 8.0 + 1000.0,
        sample: 4.0,
        other: 7.0 + 6.0 + 3.0 + 17.0 + 9.0 + 26.0,
    };
    assert_eq!(cost, want);
    let replayed = model.step(&StepShape { replayed: true, ..shape.clone() }, None);
    assert_eq!(replayed, StepCost { execute: want.execute - 1000.0, propose: 0.0, ..want });
    // The curve at 8 rows is 20 above that at 6.
    let padded = StepShape { pad_rows: 2, idle_us: 250_000.0, rows_before: 0, ..shape.clone() };
    assert_eq!(model.step(&padded, None).execute, want.execute + 20.0 + 70.0 + 16.0 + 250.0 + 20.0);
    let long = StepShape { idle_us: 1e9, ..padded.clone() };
    assert_eq!(model.step(&long, None).execute, want.execute + 20.0 + 70.0 + 16.0 + 2000.0 + 160.0);
    let displaced = StepShape { rows_before: 16, ..shape.clone() };
    assert_eq!(model.step(&displaced, None).execute, want.execute + 5.0);
    let displaced = StepShape { rows_before: 9000, ..shape.clone() };
    assert_eq!(model.step(&displaced, None).execute, want.execute + 509.0);
    // A quarter of the layers computes 6 rows, half of them 1, and the last quarter none.
    let segments = [(0.25, 6), (0.5, 1), (0.25, 0)];
    let cut = StepShape {
        segments: segments.map(|(share, token_rows)| SegmentShape { share, token_rows }).to_vec(),
        ..shape.clone()
    };
    assert_eq!(model.step(&cut, None).execute, want.execute - 150.0 + 0.25 * 150.0 + 0.5 * 100.0);
    let without_drafts = StepShape { draft_passes: Vec::new(), ..shape };
    assert_eq!(model.step(&without_drafts, Some(&draft)).propose, 0.0);
}

#[test]
fn pairs_are_those_that_the_windows_show() {
    let one_by_one = |start: u32, queries: u32, reads: &dyn Fn(u32) -> u32| -> u64 {
        (start..start + queries).map(|len| u64::from(reads(len))).sum()
    };
    // Every layer sees all, every layer has a window of 24, half of them have.
    let kinds: [&dyn Fn(u32) -> u32; 3] = [&|len| len, &|len| len.min(24), &|len| len / 2 + len.min(24) / 2];
    for reads in kinds {
        for (start, queries) in [(0, 1), (0, 100), (10, 30), (5000, 4), (7, 0)] {
            assert_eq!(StepShape::pairs(start, queries, reads), one_by_one(start, queries, reads));
        }
    }
    assert_eq!(StepShape::pairs(0, 1000, |len| len.min(24)), 24 * 23 / 2 + 976 * 24);
}
