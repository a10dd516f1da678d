//! Automatic draft lengths against every fixed one, in simulated time.

use crate::sim::{Drafts, Lengths, Shape, Sim, World};
const MAX: u16 = 8;
const PROMPT: u32 = 64;
const WARM_UP: u64 = 300;

/// Tokens a millisecond after the warm-up.
fn steady(world: World, lengths: Lengths, batch: u32, drafts: impl Fn(u32) -> Drafts) -> f64 {
    let measured = (6000 / u64::from(batch)).max(600);
    // Whoever is faster than the others must not end before they are measured.
    let max_tokens = (3 * (WARM_UP + measured)) as u32;
    let mut sim = Sim::new(world, lengths, batch, PROMPT + max_tokens);
    for i in 0..batch {
        sim.submit(PROMPT, max_tokens, drafts(i));
    }
    sim.run(u64::from(batch) * WARM_UP);
    sim.run(u64::from(batch) * measured)
}

/// Tokens a millisecond of requests of 128 tokens, from the first, nothing known: eight times as many as are seated.
fn cold(world: World, lengths: Lengths, batch: u32, drafts: impl Fn(u32) -> Drafts) -> f64 {
    let mut sim = Sim::new(world, lengths, batch, PROMPT + 128);
    for i in 0..8 * batch {
        sim.submit(PROMPT, 128, drafts(i));
    }
    sim.run(u64::MAX / 2)
}

type Measure = fn(World, Lengths, u32, f64) -> f64;

struct Matrix {
    noise: f64,
    seeds: u64,
    batches: &'static [u32],
    shapes: &'static [Shape],
    drafts: &'static [f64],
    accepted: &'static [f64],
}

const FULL: Matrix = Matrix {
    noise: 0.0,
    seeds: 3,
    batches: &[1, 2, 4, 8, 16, 32, 64],
    shapes: &[Shape::Cpu, Shape::Linear, Shape::Stairs],
    drafts: &[0.0, 0.05, 0.2, 0.5],
    accepted: &[0.1, 0.3, 0.5, 0.7, 0.9],
};

/// Prints the cells below `least` and the distribution; gives the ratios to the best fixed length, the least first.
fn compare(matrix: &Matrix, least: f64, measure: Measure) -> Vec<f64> {
    let mut ratios = Vec::new();
    // Seeds 1 to 3 are those the constants were tuned on: FIRST_SEED=4 for others.
    let first = std::env::var("FIRST_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1u64);
    for seed in first..first + matrix.seeds {
        for &shape in matrix.shapes {
            for &draft in matrix.drafts {
                for &batch in matrix.batches {
                    for &accepted in matrix.accepted {
                        let world =
                            World { seed, calibration_noise: matrix.noise, ..World::exact(shape, draft) };
                        let of = |lengths| measure(world, lengths, batch, accepted);
                        let fixed = (0..=MAX).map(|k| (of(Lengths::Fixed(k)), k));
                        let best = fixed.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
                        let ratio = of(Lengths::Auto(MAX)) / best.0;
                        if ratio < least {
                            println!(
                                "seed {seed} {shape:?} draft {draft} batch {batch} accepted {accepted}: \
                                 {ratio:.3} of {}",
                                best.1
                            );
                        }
                        ratios.push(ratio);
                    }
                }
            }
        }
    }
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[(share * (ratios.len() - 1) as f64) as usize];
    let below = ratios.iter().filter(|&&ratio| ratio < least).count();
    println!(
        "{} cells: least {:.4}, 1 % {:.4}, 10 % {:.4}, median {:.4}, most {:.4}; {below} below {least}",
        ratios.len(),
        at(0.0),
        at(0.01),
        at(0.1),
        at(0.5),
        at(1.0)
    );
    ratios
}

fn steady_alike(world: World, lengths: Lengths, batch: u32, accepted: f64) -> f64 {
    steady(world, lengths, batch, |_| Drafts::accepted(accepted))
}

fn cold_alike(world: World, lengths: Lengths, batch: u32, accepted: f64) -> f64 {
    cold(world, lengths, batch, |_| Drafts::accepted(accepted))
}

const EVERYDAY: Matrix =
    Matrix { seeds: 1, batches: &[1, 8, 64], drafts: &[0.0, 0.2], accepted: &[0.1, 0.5, 0.9], ..FULL };

#[test]
fn in_the_steady_state_no_fixed_length_beats_it() {
    assert!(compare(&EVERYDAY, 0.98, steady_alike)[0] >= 0.98);
}

#[test]
fn from_cold_it_loses_little_while_it_learns() {
    assert!(compare(&EVERYDAY, 0.95, cold_alike)[0] >= 0.95);
}

/// No run is below the documented floor, and no more than a share of them below the aim.
fn holds(ratios: &[f64], aim: f64, (floor, share): (f64, f64)) {
    let below = ratios.iter().filter(|&&ratio| ratio < aim).count() as f64 / ratios.len() as f64;
    assert!(ratios[0] >= floor, "{} is below the floor of {floor}", ratios[0]);
    assert!(below <= share, "a share of {below} is below {aim}, more than {share}");
}

#[test]
#[ignore = "the full matrix: a minute"]
fn the_full_matrix_in_the_steady_state() {
    holds(&compare(&FULL, 0.98, steady_alike), 0.98, (0.91, 0.01));
}

#[test]
#[ignore = "the full matrix: seconds"]
fn the_full_matrix_from_cold() {
    holds(&compare(&FULL, 0.95, cold_alike), 0.95, (0.92, 0.005));
}

#[test]
#[ignore = "the full matrix: a minute"]
fn the_full_matrix_with_a_noisy_calibration() {
    let noisy = compare(&Matrix { noise: 0.1, ..FULL }, 0.98, steady_alike);
    holds(&noisy, 0.98, (0.88, 0.1));
}
