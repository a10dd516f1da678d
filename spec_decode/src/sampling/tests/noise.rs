//! Tests the generator, the series, and the noise that is made of them.

use super::super::noise::{GUMBEL_MAX, gumbel, gumbel_bound};
use super::super::series::{exp, ln};
use super::*;

#[test]
fn philox_gives_the_known_answers_of_random123() {
    // These cases are the lines `philox4x32 10` of `kat_vectors` in Random123.
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, words) in cases {
        assert_eq!(philox4x32(counter, key), words);
    }
}

#[test]
fn the_series_agree_with_the_standard_library() {
    let mut random = Random::new(11);
    let mut worst = [0.0f64; 3];
    for _ in 0..200_000 {
        let x = -random.unit() * 650.0;
        worst[0] = worst[0].max((exp(x) - x.exp()).abs() / x.exp());
        let x = random.unit() * 100.0 + 1e-12;
        worst[1] = worst[1].max((ln(x) - x.ln()).abs() / x.ln().abs().max(1e-300));
        let x = 1.0 - random.unit() * 1e-3 - 1e-9;
        worst[2] = worst[2].max((ln(x) - x.ln()).abs() / x.ln().abs());
    }
    println!("worst relative differences {worst:?}");
    assert!(worst.iter().all(|&w| w < 1e-15), "{worst:?}");
    assert_eq!((exp(0.0), ln(1.0)), (1.0, 0.0));
    assert_eq!((exp(-800.0), exp(f64::NEG_INFINITY)), (0.0, 0.0));
}

#[test]
fn the_series_give_the_same_bits_on_every_platform() {
    let bits = [exp(-0.7), exp(-30.1), ln(0.3), ln(17.5)].map(f64::to_bits);
    let expected =
        [0x3fdf_c80d_b9dd_5542, 0x3d37_d535_52af_c264, 0xbff3_4378_fcbd_a721, 0x4006_e5c9_9351_654a];
    assert_eq!(bits, expected, "{bits:x?}");
}

#[test]
fn gumbel_noise_is_finite_and_below_its_bound() {
    let mut random = Random::new(5);
    let edges = [0, 1, 2, u32::MAX, u32::MAX - 1, 1 << 31, (1 << 31) - 1];
    let powers = (0..32).flat_map(|i| [u32::MAX << i, !(u32::MAX << i), !(1 << i)]);
    let drawn: Vec<u32> = (0..100_000).map(|_| random.next() as u32).collect();
    for bits in edges.into_iter().chain(powers).chain(drawn) {
        let noise = gumbel(bits);
        assert!(noise.is_finite() && noise < GUMBEL_MAX, "{bits}: {noise}");
        let bound = gumbel_bound(bits);
        assert!(noise <= bound, "{bits}: {noise} above {bound}");
    }
}

#[test]
fn gumbel_noise_has_the_mean_and_variance_of_its_law() {
    let noise = Noise::new(&at(1.0), 0);
    let count = 200_000u32;
    let draws: Vec<f64> = (0..count).map(|token| noise.gumbel(token)).collect();
    let mean = draws.iter().sum::<f64>() / f64::from(count);
    let square = draws.iter().map(|g| (g - mean).powi(2)).sum::<f64>();
    let variance = square / f64::from(count);
    assert!((mean - 0.577_216).abs() < 0.012, "mean {mean}");
    assert!((variance - 1.644_934).abs() < 0.04, "variance {variance}");
}

#[test]
fn every_part_of_the_key_changes_the_noise() {
    let params = |seed, sample| SamplingParams { seed, sample, ..at(1.0) };
    let base = Noise::new(&params(1, 0), 10);
    let same = Noise::new(&params(1, 0), 10);
    let row = |noise: Noise, purpose| (0..64).map(move |lane| noise.bits(purpose, lane));
    let choice: Vec<u32> = row(base, Purpose::Choice).collect();
    assert!(row(same, Purpose::Choice).eq(choice.iter().copied()));
    let others = [
        row(Noise::new(&params(2, 0), 10), Purpose::Choice),
        row(Noise::new(&params(1 + (1 << 32), 0), 10), Purpose::Choice),
        row(Noise::new(&params(1, 1), 10), Purpose::Choice),
        row(Noise::new(&params(1, 0), 11), Purpose::Choice),
        row(base, Purpose::Acceptance),
        row(base, Purpose::Residual),
        row(base, Purpose::Proposal),
    ];
    for other in others {
        assert_eq!(other.zip(&choice).filter(|(a, b)| a == *b).count(), 0);
    }
    let distinct: std::collections::HashSet<u32> = choice.iter().copied().collect();
    assert_eq!(distinct.len(), 64);
    let uniform = base.uniform(Purpose::Acceptance, 3);
    assert!(uniform > 0.0 && uniform < 1.0);
}
