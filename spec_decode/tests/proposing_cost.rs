//! What proposing costs beside the passes: no allocation once buffers have grown, and little time.
#![allow(clippy::unwrap_used, clippy::undocumented_unsafe_blocks, reason = "a fault here is a failed test")]

#[path = "../../block_manager/tests/counting/mod.rs"]
mod counting;
mod stage;
#[path = "stage/tiny.rs"]
mod tiny;

use counting::ALLOCATIONS;
use pagedraft_attention::{MaskKind, MetadataBuilder};
use pagedraft_block_manager::BlockId;
use pagedraft_model::{StepInputs, StepLimits};
use pagedraft_scheduler::{Kind, PlanRow, RequestKey, StepPlan};
use pagedraft_spec_decode::proposer::{DraftModel, NgramProposer, Proposer, Proposing, Verified};
use pagedraft_spec_decode::sampling::SamplingParams;
use pagedraft_spec_decode::{Drafts, Registered};
use stage::{Dice, Stage};
use tiny::{Setup, VOCAB};

/// Allocations of each of `steps` steps of four requests.
fn allocations(proposer: &mut impl Proposer, steps: usize) -> Vec<u64> {
    let (mut dice, mut drafts) = (Dice::new(8), Drafts::default());
    let mut stage = Stage::with(tiny::blocks(&Setup::default()));
    let mut plan = StepPlan::default();
    let requests: Vec<RequestKey> = [0.0, 1.0, 1.0, 0.5]
        .map(|temperature| {
            let sampling = SamplingParams { temperature, ..SamplingParams::default() };
            let registered = Registered { sampling, prompt_len: 20, ..Registered::default() };
            let mut tokens = dice.tokens(20, VOCAB);
            tokens.reserve(200);
            stage.enter(tokens, registered)
        })
        .into();
    let all = [0, 1, 2, 3];
    let mut counts = Vec::new();
    for step in 0..steps {
        plan.rows.clear();
        for &request in &requests {
            let len = stage.tokens[&request].len() as u32;
            let tokens = len - 1..len;
            let (kind, segments) = (Kind::Verify, 0..1);
            plan.rows.push(PlanRow {
                request,
                kind,
                tokens,
                segments,
                thins: false,
                drafts_max: 3,
                samples: true,
            });
        }
        plan.needs
            .clone_from(stage.reserve(&requests.iter().map(|&request| (request, 3)).collect::<Vec<_>>()));
        let mut took = stage.no_slots();
        let proposing = Proposing { plan: &plan, kv: &stage, requests: &stage.requests, rows: &all };
        let before = ALLOCATIONS.get();
        drafts.begin(4);
        proposer.propose(&proposing, &mut drafts).unwrap();
        let accepted = [0, 1, 2, 3].map(|i| ((i + step) % 4).min(drafts.row(i).len()) as u16);
        proposer.verified(&mut Verified { accepted: &accepted, rows: &all, took: &mut took });
        counts.push(ALLOCATIONS.get() - before);
        for (i, request) in requests.iter().enumerate() {
            let tokens = stage.tokens.get_mut(request).unwrap();
            tokens.extend_from_slice(&drafts.row(i)[..usize::from(accepted[i])]);
            tokens.push(dice.below(VOCAB));
        }
        stage.commit(&took);
    }
    counts
}

/// Allocations of a pass of the bare model over four rows, logits included: the device's own.
fn allocations_of_a_pass() -> u64 {
    let limits = StepLimits { token_rows: 256, logit_rows: 64, max_model_len: tiny::MAX_MODEL_LEN };
    let mut runner = tiny::runner(16, 80, limits, 1);
    let mut builder = MetadataBuilder::new(16).unwrap();
    for row in 0..4 {
        builder.push_row(30, 1, &[BlockId(2 * row), BlockId(2 * row + 1)], MaskKind::Causal).unwrap();
    }
    let metadata = builder.finish().clone();
    let inputs = StepInputs::dense(vec![1, 2, 3, 4], vec![30; 4], metadata);
    let mut last = 0;
    for _ in 0..4 {
        let before = ALLOCATIONS.get();
        runner.forward_eager(&inputs).unwrap();
        let _ = runner.logits(&[0, 1, 2, 3]).unwrap();
        last = ALLOCATIONS.get() - before;
    }
    last
}

#[test]
fn a_steady_step_of_a_draft_model_allocates_what_its_device_does() {
    let counts = allocations(&mut tiny::draft_model(&Setup::default()), 40);
    // Three drafts are three passes.
    assert!(counts[30..].iter().all(|&n| n <= 3 * allocations_of_a_pass()), "{counts:?}");
}

#[test]
fn a_steady_step_of_look_ups_makes_no_heap_allocation() {
    let counts = allocations(&mut NgramProposer::new(1, 4).unwrap(), 40);
    assert_eq!(counts[4..].iter().sum::<u64>(), 0, "{counts:?}");
}

#[test]
#[ignore = "a measurement: run it alone, with --nocapture"]
fn the_cost_of_proposing_beside_the_passes() {
    const ROWS: usize = 64;
    let setup = Setup { num_blocks: 800, catch_up: 8192, ..Setup::default() };
    let (mut model, mut other) = (tiny::draft_model(&setup), tiny::draft_model(&setup));
    let (mut dice, mut drafts) = (Dice::new(1), Drafts::default());
    let mut stage = Stage::with(tiny::blocks(&setup));
    let rows: Vec<(RequestKey, u16)> = (0..ROWS)
        .map(|_| {
            let registered = Registered { prompt_len: 70, ..Registered::default() };
            (stage.enter(dice.tokens(70, VOCAB), registered), 4)
        })
        .collect();
    let (mut times, mut passes) = (Vec::new(), Vec::new());
    for step in 0..24 {
        let start = std::time::Instant::now();
        stage.propose(&mut model, &rows, &mut drafts);
        let accepted: Vec<u16> = (0..ROWS).map(|i| ((i + step) % 5) as u16).collect();
        let took = stage.took(&mut model, &accepted);
        times.push(start.elapsed().as_secs_f64() * 1e6);
        for (i, (request, _)) in rows.iter().enumerate() {
            let tokens = stage.tokens.get_mut(request).unwrap();
            tokens.extend_from_slice(&drafts.row(i)[..usize::from(accepted[i])]);
            tokens.push(dice.below(VOCAB));
        }
        stage.commit(&took);
        // Four passes of the bare model over the same rows, the first with an extra token for a fifth of them.
        let pass = |model: &mut DraftModel<_>, some: usize| {
            let mut builder = MetadataBuilder::new(16).unwrap();
            for row in 0..ROWS as u32 {
                let table: Vec<BlockId> = (10 * row..10 * row + 10).map(BlockId).collect();
                let several = u32::from(row < some as u32);
                builder.push_row(90, 1 + several, &table, MaskKind::Causal).unwrap();
            }
            let n = ROWS + some;
            let metadata = builder.finish().clone();
            let inputs = StepInputs::dense(vec![1; n], vec![90; n], metadata);
            let selection: Vec<u32> = (0..ROWS as u32).collect();
            let start = std::time::Instant::now();
            model.runner().forward(&inputs).unwrap();
            let _ = model.runner().logits(&selection).unwrap();
            start.elapsed().as_secs_f64() * 1e6
        };
        let some = ROWS / 5;
        passes.push(pass(&mut other, some) + (0..3).map(|_| pass(&mut other, 0)).sum::<f64>());
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (all, model) = (median(&mut times), median(&mut passes));
    println!("{ROWS} rows of 4 drafts: {all:.0} µs, of which passes {model:.0} µs");
}
