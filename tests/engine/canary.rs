//! The acceptance canary in the engine: a fault is raised within 200 steps, a healthy engine raises nothing.

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::session::{DraftLength, DraftRef, EngineOptions, Request, Session, SpeculationOptions};
use pagedraft::spec_decode::Scorer;

use crate::models::small;
use crate::requests::{options, requests};

const RATE: f64 = 0.05;

fn engine(seed: u64, length: DraftLength, scorer: Scorer, faulty: bool) -> EngineOptions {
    let model = small("canary", "Llama");
    EngineOptions {
        shadow_rate: RATE,
        seed,
        inject_decode_graph_for_verify: faulty,
        speculation: SpeculationOptions {
            // The same weights: hardly a draft is wrong, so that verify rows are long.
            draft: Some(DraftRef::Model(model.clone())),
            length,
            scorer,
            ..SpeculationOptions::default()
        },
        ..options(&model, Dtype::F32, Isa::detect())
    }
}

fn batch(seed: u64, size: usize, output: u32) -> Vec<Request> {
    requests(seed, size, 300, 60).into_iter().map(|r| Request { max_tokens: output, ..r }).collect()
}

/// Steps until an error, and the error; or how many there were.
fn steps(session: &mut Session, requests: &[Request]) -> (u64, Option<String>) {
    for request in requests {
        session.submit(request.clone()).unwrap();
    }
    let mut steps = 0;
    while session.has_unfinished() {
        if let Err(error) = session.step() {
            return (steps, Some(format!("{error:#}")));
        }
        steps += 1;
    }
    (steps, None)
}

#[test]
fn a_verify_step_on_the_wrong_graph_is_raised_within_200_steps() {
    for seed in 0..24 {
        let size = [1, 2, 8][seed as usize % 3];
        let mut session = Session::open(&engine(seed, DraftLength::Fixed(3), Scorer::Mqa, true)).unwrap();
        let (after, error) = steps(&mut session, &batch(seed, size, 400));
        let error =
            error.unwrap_or_else(|| panic!("seed {seed}, batch {size}: {after} steps, and nothing raised"));
        assert!(error.contains("canary") && error.contains("--enforce-eager"), "{error}");
        assert!(after < 200, "seed {seed}, batch {size}: raised after {after} steps");
    }
}

#[test]
fn the_fault_touches_neither_batch_expansion_nor_plain_decoding() {
    for (length, scorer) in
        [(DraftLength::Fixed(3), Scorer::BatchExpansion), (DraftLength::Fixed(0), Scorer::Mqa)]
    {
        let mut session = Session::open(&engine(1, length, scorer, true)).unwrap();
        let (_, error) = steps(&mut session, &batch(1, 4, 120));
        assert_eq!(error, None);
        assert!(session.canary_report().unwrap().shadow_steps > 0);
    }
}

/// Runs healthy engines for this many replayed steps.
fn healthy(most: u64) {
    let (mut replayed, mut shadowed) = (0, 0);
    for seed in 0.. {
        if replayed >= most {
            break;
        }
        let length =
            if seed % 4 == 0 { DraftLength::Auto } else { DraftLength::Fixed(1 + (seed % 8) as u16) };
        let scorer = if seed % 3 == 0 { Scorer::BatchExpansion } else { Scorer::Mqa };
        let mut session = Session::open(&engine(seed, length, scorer, false)).unwrap();
        for round in 0..8 {
            let (_, error) = steps(&mut session, &batch(100 * seed + round, 1 + seed as usize % 8, 300));
            assert_eq!(error, None, "seed {seed}, round {round}");
        }
        let report = session.canary_report().unwrap();
        assert_eq!((report.alarms, report.accepted_graph), (0, report.accepted_eager));
        replayed += session.run_counts().0.replays;
        shadowed += report.shadow_steps;
    }
    println!("{replayed} steps replayed, {shadowed} shadowed, no alarm");
    let share = shadowed as f64 / replayed as f64;
    assert!((share / RATE - 1.0).abs() < 0.1, "{share} of the steps were shadowed, {RATE} were asked for");
}

#[test]
fn a_healthy_engine_raises_nothing_in_5000_steps() {
    healthy(5_000);
}

#[test]
#[ignore = "a campaign of some minutes"]
fn a_healthy_engine_raises_nothing_in_100_000_steps() {
    healthy(100_000);
}
