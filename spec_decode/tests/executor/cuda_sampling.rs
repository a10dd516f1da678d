//! The choices of CUDA, emulated, against the CPU's: the same token for the same logits, and the same verdicts.

use pagedraft_model::cuda::kernels::SOURCES;
use pagedraft_spec_decode::acceptance::{Acceptance, Verifier, VerifyRow};
use pagedraft_spec_decode::sampling::{Sampler, SamplingParams};

use crate::emulator::{self, Arg, Buffer, Launch, Module, Random};

const NO_TOKEN: u32 = u32::MAX;

fn launch(random: &mut Random, kernel: &str, grid: [u32; 3], threads: u32, args: &[Arg]) {
    let source = SOURCES.iter().find(|source| source.kernels.contains(&kernel)).unwrap();
    let module = Module::build(source.name, source.kernels, &["-DACT=bf16".to_owned()]);
    module.launch(Launch { kernel, grid, threads, shared: 0, seed: random.next() }, args);
}

fn argmax(random: &mut Random, logits: &[f32], vocab: usize) -> Vec<u32> {
    let rows = logits.len() / vocab;
    let (best, arrived) = (Buffer::filled(0u64, rows), Buffer::filled(0u32, rows));
    let (logits, chosen) = (Buffer::from(logits), Buffer::filled(77u32, rows));
    let args = [logits.arg(), best.arg(), arrived.arg(), chosen.arg(), Arg::U32(vocab as u32)];
    launch(random, "argmax", [rows as u32, 8, 1], 256, &args);
    assert!(best.all().iter().all(|&x| x == 0) && arrived.all().iter().all(|&x| x == 0));
    chosen.all().to_vec()
}

fn sample(random: &mut Random, logits: &[f32], vocab: usize, rows: &[(SamplingParams, u32)]) -> Vec<u32> {
    let column = |of: &dyn Fn(&SamplingParams) -> u32| rows.iter().map(|row| of(&row.0)).collect::<Vec<_>>();
    let temperature = Buffer::from(&column(&|p| p.temperature.to_bits()));
    let top_k = Buffer::from(&column(&|p| p.top_k.unwrap_or(0)));
    let top_p = Buffer::from(&column(&|p| p.top_p.to_bits()));
    let min_p = Buffer::from(&column(&|p| p.min_p.to_bits()));
    let seed = Buffer::from(&rows.iter().map(|row| row.0.seed).collect::<Vec<_>>());
    let number = Buffer::from(&column(&|p| p.sample));
    let position = Buffer::from(&rows.iter().map(|row| row.1).collect::<Vec<_>>());
    let (logits, chosen) = (Buffer::from(logits), Buffer::filled(77u32, rows.len()));
    let args = [
        logits.arg(),
        temperature.arg(),
        top_k.arg(),
        top_p.arg(),
        min_p.arg(),
        seed.arg(),
        number.arg(),
        position.arg(),
        chosen.arg(),
        Arg::U32(vocab as u32),
    ];
    launch(random, "sample", [rows.len() as u32, 1, 1], 1024, &args);
    chosen.all().to_vec()
}

/// A row with ties, minus infinities and both zeroes in it.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let coarse = random.below(2) == 0;
    let gain = random.pick(&[0.01, 1.0, 8.0]);
    let mut row: Vec<f32> = random.normals(vocab).iter().map(|x| x * gain).collect();
    for x in &mut row {
        if coarse {
            *x = (*x * 4.0).round() / 4.0;
        }
        match random.below(40) {
            0 => *x = f32::NEG_INFINITY,
            1 => *x = -0.0,
            2 => *x = 0.0,
            _ => {}
        }
    }
    let at = random.below(vocab);
    row[at] = gain;
    row
}

fn cpu(row: &[f32], params: &SamplingParams, position: u32) -> u32 {
    Sampler::default().choose(row, params, position).unwrap_or(NO_TOKEN)
}

#[test]
fn the_argmax_is_the_cpus_with_ties_to_the_lowest_and_nothing_from_bad_rows() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(1);
    for vocab in [1usize, 5, 31, 2048, 5003] {
        let mut all = Vec::new();
        for kind in 0..6 {
            let mut row = logits(&mut random, vocab);
            let at = random.below(vocab);
            match kind {
                0 => row[at] = f32::NAN,
                1 => row[at] = f32::INFINITY,
                2 => row.fill(f32::NEG_INFINITY),
                3 => row.fill(-0.0),
                _ => {}
            }
            all.extend(row);
        }
        let found = argmax(&mut random, &all, vocab);
        let want: Vec<u32> = all.chunks(vocab).map(|row| cpu(row, &SamplingParams::greedy(), 0)).collect();
        assert_eq!(found, want, "vocabulary of {vocab}");
        assert_eq!(&want[..3], [NO_TOKEN; 3]);
        let greedy = vec![(SamplingParams::greedy(), 0); 6];
        assert_eq!(sample(&mut random, &all, vocab, &greedy), want);
    }
}

#[test]
fn every_draw_is_the_cpus() {
    if !emulator::available() {
        return;
    }
    let mut drawn = 0;
    for seed in 0..60 {
        let mut random = Random(seed);
        let vocab = random.pick(&[3usize, 64, 1000, 3001]);
        let rows: Vec<_> = (0..4)
            .map(|_| {
                let k = random.pick(&[1, 2, 20, vocab as u32 - 1, vocab as u32, 100_000]);
                let params = SamplingParams {
                    temperature: random.pick(&[0.0, 0.3, 1.0, 1.0, 2.5, 50.0]),
                    top_k: random.pick(&[None, Some(k)]),
                    top_p: random.pick(&[1.0, 1.0, 0.95, 0.5, 0.01, 0.999_999_9]),
                    min_p: random.pick(&[0.0, 0.0, 0.02, 0.5, 1.0]),
                    seed: random.next(),
                    sample: random.below(3) as u32,
                    ..SamplingParams::default()
                };
                (params, random.below(100_000) as u32)
            })
            .collect();
        let all: Vec<f32> = rows.iter().flat_map(|_| logits(&mut random, vocab)).collect();
        let found = sample(&mut random, &all, vocab, &rows);
        for ((row, (params, position)), &found) in all.chunks(vocab).zip(&rows).zip(&found) {
            let want = cpu(row, params, *position);
            assert_eq!(found, want, "seed {seed} vocabulary {vocab} {params:?} at {position}");
            drawn += u32::from(want != cpu(row, &SamplingParams::greedy(), 0));
        }
    }
    assert!(drawn > 50, "only {drawn} draws differed from the argmax");
}

#[test]
fn a_share_that_is_reached_exactly_keeps_no_token_more() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(4);
    // Half of four equal tokens: the first two.
    let params = |seed| SamplingParams { top_p: 0.5, seed, ..SamplingParams::default() };
    let rows: Vec<_> = (0..40).map(|seed| (params(seed), 9)).collect();
    let found = sample(&mut random, &[1.5; 4 * 40], 4, &rows);
    let want: Vec<u32> = rows.iter().map(|(params, position)| cpu(&[1.5; 4], params, *position)).collect();
    assert_eq!(found, want);
    assert!(found.contains(&0) && found.contains(&1) && found.iter().all(|&token| token < 2));
}

#[test]
fn verdicts_are_the_verifiers() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(5);
    let vocab = 4;
    for _ in 0..20 {
        let rows: Vec<usize> = (0..random.between(1, 140)).map(|_| random.below(6)).collect();
        let (mut starts, mut drafts, mut all) = (vec![0u32], Vec::new(), Vec::new());
        for &k in &rows {
            drafts.extend((0..k).map(|_| random.below(2) as u32));
            // Nobody's draft, which equals many a choice.
            drafts.push(0);
            starts.push(drafts.len() as u32);
            all.extend((0..(k + 1) * vocab).map(|i| if i % vocab < 2 { random.normal() } else { -9.0 }));
        }
        let chosen = argmax(&mut random, &all, vocab);
        let (chosen_buffer, draft_buffer, start_buffer) =
            (Buffer::from(&chosen), Buffer::from(&drafts), Buffer::from(&starts));
        let (accepted, noncausal) = (Buffer::filled(99u32, rows.len()), Buffer::filled(99u32, rows.len()));
        let args = [
            chosen_buffer.arg(),
            draft_buffer.arg(),
            start_buffer.arg(),
            accepted.arg(),
            noncausal.arg(),
            Arg::U32(rows.len() as u32),
        ];
        launch(&mut random, "accept", [rows.len().div_ceil(128) as u32, 1, 1], 128, &args);
        let params = SamplingParams::greedy();
        for (i, &k) in rows.iter().enumerate() {
            let start = starts[i] as usize;
            let row = VerifyRow {
                params: &params,
                position: 3,
                drafts: &drafts[start..start + k],
                probabilities: None,
                logits: &all[start * vocab..(start + k + 1) * vocab],
            };
            let mut emitted = Vec::new();
            let verdict = Verifier::new(Acceptance::Coupled).verify(row, &mut emitted).unwrap();
            assert_eq!(accepted.all()[i], u32::from(verdict.accepted));
            assert_eq!(&chosen[start..=start + accepted.all()[i] as usize], emitted);
            let alone = (0..k).filter(|&j| chosen[start + j] == drafts[start + j]).count();
            assert_eq!(noncausal.all()[i], alone as u32);
        }
    }
}

#[test]
fn a_bad_row_of_logits_fails_the_plan_rows_that_would_emit_from_it() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(6);
    // Bad at the first, behind a miss, at the bonus.
    let chosen = Buffer::from(&[NO_TOKEN, 1, 4, NO_TOKEN, 7, NO_TOKEN]);
    let drafts = Buffer::from(&[1u32, 0, 5, 0, 7, 0]);
    let starts = Buffer::from(&[0u32, 2, 4, 6]);
    let (accepted, noncausal) = (Buffer::filled(9u32, 3), Buffer::filled(9u32, 3));
    let args = [chosen.arg(), drafts.arg(), starts.arg(), accepted.arg(), noncausal.arg(), Arg::U32(3)];
    launch(&mut random, "accept", [1, 1, 1], 128, &args);
    assert_eq!(accepted.all(), [NO_TOKEN, 0, NO_TOKEN]);
}
