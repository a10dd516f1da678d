//! Compares 8-bit products bit for bit with the slow reference.

use half::f16;

use super::reference::{self, dot};
use super::{Format, IntegerUnit, QuantRow};
use crate::checkpoint::Dtype;
use crate::cpu::matmul::{Epilogue, OutRows, Product, matmul};
use crate::cpu::panel::PackedMatrix;
use crate::cpu::rows::{InputType, PackedRows};
use crate::cpu::team::Team;
use crate::quantization::ActivationType;
use pagedraft_attention::isa::Isa;

fn units() -> impl Iterator<Item = IntegerUnit> {
    IntegerUnit::ALL.into_iter().filter(|unit| unit.available())
}

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 20) as usize % n
    }
    /// A number between about -1 and 1.
    fn number(&mut self) -> f32 {
        (self.next() >> 32) as i32 as f32 / (1u64 << 31) as f32
    }
    /// A number of very different sizes: weights whose scales are denormal or none, activations below what is told from 0.
    fn wild(&mut self) -> f32 {
        let scale = [1e-41, 1e-32, 1e-9, 1e-6, 1e-3, 1.0, 1e4, 0.0][self.below(8)];
        self.number() * scale
    }
    fn numbers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.number()).collect()
    }
}

fn packed(team: &Team, activations: ActivationType, n: usize, k: usize, w: &[f32]) -> PackedMatrix {
    let fill = |r: usize, row: &mut QuantRow| row.quantise(&w[r * k..][..k]);
    PackedMatrix::pack_quantised(team, (Format::Int8, activations), n, k, &fill).unwrap()
}

/// The product on a unit, whether or not it is the machine's best.
fn product(team: &Team, unit: IntegerUnit, x: &[f32], m: usize, w: &PackedMatrix) -> Vec<f32> {
    let mut rows = PackedRows::with_room_for(1, 1).unwrap();
    let packing = rows.begin_on(unit, x, m, w.k()).unwrap();
    team.run(&|_, _| packing.work());
    let mut out = vec![f32::NAN; m * w.n()];
    let to = OutRows::new(&mut out, m, w.n(), w.n());
    let product = Product::new(team.members(), Isa::detect(), &rows, w, None, to, Epilogue::Store);
    team.run(&|_, _| product.work());
    out
}

fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
        assert!(same, "{what}: output {i} is {g:e}, not {w:e}");
    }
}

fn twin(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
}

#[test]
fn every_unit_gives_the_twin_s_bits_for_odd_shapes() {
    let seed = 0x5eed_1234_0042_7777;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let teams = [Team::new(1).unwrap(), Team::new(2).unwrap(), Team::new(3).unwrap()];
    for m in 1..=70 {
        let (n, k) = (1 + random.below(100), 1 + random.below(300));
        let (x, w) = (random.numbers(m * k), random.numbers(n * k));
        let want = twin(&x, &w, k);
        let matrix = packed(&teams[1], ActivationType::Int8, n, k, &w);
        for unit in units() {
            for team in &teams {
                let got = product(team, unit, &x, m, &matrix);
                assert_same_bits(&got, &want, &format!("{unit:?} {m} x {n} x {k}"));
            }
        }
    }
}

#[test]
fn integers_at_the_ends_of_their_range_give_the_twin_s_bits() {
    let mut random = Random(0x7e57_ed6e_0000_0001);
    let team = Team::new(2).unwrap();
    let (m, n, k) = (13, 40, 192);
    // Every value is the greatest of its block: all integers are 127 or -127, and sums of one sign are as large as they get.
    for mixed in [false, true] {
        let mut ends = |len: usize| -> Vec<f32> {
            (0..len).map(|_| if mixed && random.below(2) == 0 { -3.5 } else { 3.5 }).collect()
        };
        let (x, w) = (ends(m * k), ends(n * k));
        let negative: Vec<f32> = x.iter().map(|x| -x).collect();
        let matrix = packed(&team, ActivationType::Int8, n, k, &w);
        for unit in units() {
            for x in [&x, &negative] {
                let got = product(&team, unit, x, m, &matrix);
                assert_same_bits(&got, &twin(x, &w, k), &format!("{unit:?}, mixed signs {mixed}"));
            }
        }
    }
    assert_eq!(reference::weights(&[3.5; 64]).0, [127; 64]);
}

#[test]
fn numbers_of_very_different_sizes_give_the_twin_s_bits() {
    let seed = 0x00c0_ffee_8888_1111;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let team = Team::new(2).unwrap();
    for round in 0..20 {
        let (m, n, k) = (1 + random.below(20), 1 + random.below(40), 1 + random.below(200));
        let x: Vec<f32> = (0..m * k).map(|_| random.wild()).collect();
        let w: Vec<f32> = (0..n * k).map(|_| random.wild()).collect();
        let matrix = packed(&team, ActivationType::Int8, n, k, &w);
        let want = twin(&x, &w, k);
        for unit in units() {
            let got = product(&team, unit, &x, m, &matrix);
            assert_same_bits(&got, &want, &format!("round {round}, {unit:?}"));
        }
    }
}

#[test]
fn a_value_that_is_not_finite_spoils_its_own_row_alone() {
    let mut random = Random(31);
    let team = Team::new(2).unwrap();
    let (m, n, k) = (14, 50, 130);
    let (x, w) = (random.numbers(m * k), random.numbers(n * k));
    let matrix = packed(&team, ActivationType::Int8, n, k, &w);
    for unit in units() {
        let clean = product(&team, unit, &x, m, &matrix);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 63, 64, 129] {
                let mut spoilt = x.clone();
                spoilt[5 * k + at] = bad;
                let got = product(&team, unit, &spoilt, m, &matrix);
                for (r, (got, clean)) in got.chunks(n).zip(clean.chunks(n)).enumerate() {
                    if r == 5 {
                        assert!(got.iter().all(|v| v.is_nan()), "{unit:?}: {bad} at {at} left {got:?}");
                    } else {
                        assert_same_bits(got, clean, &format!("{unit:?} row {r} beside {bad}"));
                    }
                }
            }
        }
    }
    // A weight that is not finite spoils its own output alone.
    let mut spoilt = w.clone();
    spoilt[7 * k + 70] = f32::INFINITY;
    let matrix = packed(&team, ActivationType::Int8, n, k, &spoilt);
    for unit in units() {
        let got = product(&team, unit, &x, m, &matrix);
        for (i, v) in got.iter().enumerate() {
            assert_eq!(v.is_nan(), i % n == 7, "{unit:?} output {}", i % n);
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_in_any_place_and_in_any_batch() {
    let mut random = Random(0x0bad_5eed_0bad_5eed);
    let teams = [Team::new(1).unwrap(), Team::new(2).unwrap(), Team::new(5).unwrap()];
    // These shapes need several passes over the weights, and walk the inputs in parts.
    for (m, n, k) in [(70, 200, 700), (150, 96, 2900), (33, 40, 5632)] {
        let (x, w) = (random.numbers(m * k), random.numbers(n * k));
        let matrix = packed(&teams[1], ActivationType::Int8, n, k, &w);
        let mut first: Option<Vec<f32>> = None;
        for unit in units() {
            let whole = product(&teams[1], unit, &x, m, &matrix);
            assert_same_bits(&whole, first.get_or_insert(whole.clone()), &format!("{unit:?} beside others"));
            let turned: Vec<f32> = x.chunks(k).rev().flatten().copied().collect();
            let back = product(&teams[2], unit, &turned, m, &matrix);
            let back: Vec<f32> = back.chunks(n).rev().flatten().copied().collect();
            assert_same_bits(&back, &whole, &format!("{unit:?} reversed"));
            for part in [1, 2, 7, 16, 31] {
                let rows = m.min(40);
                let mut parts = Vec::new();
                for x in x[..rows * k].chunks(part * k) {
                    parts.extend(product(&teams[0], unit, x, x.len() / k, &matrix));
                }
                assert_same_bits(&parts, &whole[..rows * n], &format!("{unit:?} {m} rows by {part}"));
            }
        }
    }
}

#[test]
fn activations_in_f32_give_the_bits_of_the_widened_weights_in_f32() {
    let mut random = Random(0xf32f_32f3_2f32_f32f);
    let team = Team::new(2).unwrap();
    for (m, n, k) in [(1, 33, 64), (5, 70, 97), (14, 40, 1000), (70, 31, 32)] {
        let (x, w) = (random.numbers(m * k), random.numbers(n * k));
        let matrix = packed(&team, ActivationType::F32, n, k, &w);
        let wide = |r: usize, row: &mut [f32]| matrix.read_row(r, row);
        let widened = PackedMatrix::pack(&team, Dtype::F32, n, k, &wide).unwrap();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let [got, want] = [&matrix, &widened].map(|w| {
                let mut rows = PackedRows::with_room_for(1, 1).unwrap();
                rows.pack(&team, isa, w.inputs(), &x, m, k, k).unwrap();
                let mut out = vec![f32::NAN; m * n];
                matmul(&team, isa, &rows, w, None, OutRows::new(&mut out, m, n, n), Epilogue::Store);
                out
            });
            assert_same_bits(&got, &want, &format!("{isa} {m} x {n} x {k}"));
        }
    }
}

#[test]
fn the_chosen_unit_adds_bias_and_residual_after_the_sum() {
    let mut random = Random(99);
    let team = Team::new(2).unwrap();
    let (m, n, k, stride) = (18, 50, 100, 57);
    let (x, w, bias) = (random.numbers(m * k), random.numbers(n * k), random.numbers(n));
    let before = random.numbers(m * stride);
    let matrix = packed(&team, ActivationType::Int8, n, k, &w);
    let sums = twin(&x, &w, k);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let mut rows = PackedRows::with_room_for(m, k).unwrap();
        rows.pack(&team, isa, InputType::Int8, &x, m, k, k).unwrap();
        let mut out = before.clone();
        matmul(&team, isa, &rows, &matrix, Some(&bias), OutRows::new(&mut out, m, n, stride), Epilogue::Add);
        let mut want = before.clone();
        for r in 0..m {
            for c in 0..n {
                want[r * stride + c] += sums[r * n + c] + bias[c];
            }
        }
        assert_same_bits(&out, &want, &format!("{isa}"));
    }
}

#[test]
fn a_quantised_row_is_the_twin_s_and_is_its_own_quantisation() {
    let mut random = Random(0xabcd_ef01_2345_6789);
    for round in 0..200 {
        let k = 1 + random.below(200);
        let values: Vec<f32> =
            (0..k).map(|_| if round % 2 == 0 { random.number() } else { random.wild() }).collect();
        let mut row = QuantRow::default();
        row.quantise(&values);
        for (i, block) in values.chunks(64).enumerate() {
            let (quants, scale) = reference::weights(block);
            assert_eq!(row.scales()[i].to_f32(), scale, "block {i} of {block:?}");
            let got: Vec<i64> = row.quants()[i * 64..][..block.len()].iter().map(|&q| i64::from(q)).collect();
            assert_eq!(got, quants, "block {i} of {block:?}");
        }
        // What was written and is added again is the same row.
        let mut again = QuantRow::default();
        again.clear(Format::Int8);
        for (quants, scale) in row.quants().chunks(64).zip(row.scales()) {
            again.add(quants.iter().copied(), *scale, f16::ZERO);
        }
        assert_eq!(again, row);
        let mut written = vec![0.0; k];
        row.write(&mut written);
        let widest = row.scales().iter().map(|s| s.to_f32()).fold(0.0, f32::max);
        for (value, written) in values.iter().zip(&written) {
            assert!((value - written).abs() <= 0.501 * widest + 1e-6, "{value} became {written}");
        }
    }
    let mut row = QuantRow::default();
    row.quantise(&[1e9, 1.0]);
    assert!(row.scales()[0].is_nan(), "a weight beyond the scales is told, not clipped");
}

/// A row of weights in a format of parts of 32 inputs, the ends of its range among them.
fn parts(random: &mut Random, format: Format, k: usize) -> QuantRow {
    let mut row = QuantRow::default();
    row.clear(format);
    let range = match format {
        Format::Int4 => -8..=7,
        Format::Int4Minima => 0..=15,
        Format::Int8 | Format::Int8Halves => -128..=127,
    };
    for part in (0..k).step_by(32) {
        let quants: Vec<i8> = (part..k.min(part + 32))
            .map(|_| match random.below(6) {
                0 => *range.start(),
                1 => *range.end(),
                _ => (*range.start() as i32 + random.below(range.clone().count()) as i32) as i8,
            })
            .collect();
        row.add(quants, f16::from_f32(random.number()), f16::from_f32(random.number()));
    }
    row
}

#[test]
fn weights_with_a_scale_for_32_inputs_give_the_twin_s_bits_on_every_unit() {
    let seed = 0x0000_4b17_8b17_0001;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let team = Team::new(2).unwrap();
    for format in [Format::Int8Halves, Format::Int4, Format::Int4Minima] {
        for m in (1..=30).chain([70]) {
            let (n, k) = (1 + random.below(80), 1 + random.below(400));
            let x = random.numbers(m * k);
            let rows: Vec<QuantRow> = (0..n).map(|_| parts(&mut random, format, k)).collect();
            let want: Vec<f32> = x
                .chunks(k)
                .flat_map(|x| {
                    rows.iter().map(|row| {
                        let quants: Vec<i64> = row.quants().iter().map(|&q| q.into()).collect();
                        let scales: Vec<f32> = row.scales().iter().map(|s| s.to_f32()).collect();
                        let minima: Vec<f32> = row.minima().iter().map(|m| m.to_f32()).collect();
                        let minima = format.has_minima().then_some(&minima[..]);
                        reference::dot_parts(x, &quants, &scales, minima)
                    })
                })
                .collect();
            let fill = |r: usize, row: &mut QuantRow| row.clone_from(&rows[r]);
            let pack = |activations| PackedMatrix::pack_quantised(&team, (format, activations), n, k, &fill);
            let matrix = pack(ActivationType::Int8).unwrap();
            for unit in units() {
                let got = product(&team, unit, &x, m, &matrix);
                assert_same_bits(&got, &want, &format!("{format:?} {unit:?} {m} x {n} x {k}"));
            }
            // The widened weights are those of the rows, and activations in f32 multiply them.
            let (mut widened, mut written) = (vec![0.0; k], vec![0.0; k]);
            for (r, row) in rows.iter().enumerate() {
                matrix.read_row(r, &mut widened);
                row.write(&mut written);
                assert_same_bits(&widened, &written, &format!("{format:?} row {r}"));
            }
            let in_f32 = pack(ActivationType::F32).unwrap();
            let wide = |r: usize, out: &mut [f32]| rows[r].write(out);
            let widened = PackedMatrix::pack(&team, Dtype::F32, n, k, &wide).unwrap();
            let isa = Isa::detect();
            let [got, want] = [&in_f32, &widened].map(|w| {
                let mut rows = PackedRows::with_room_for(1, 1).unwrap();
                rows.pack(&team, isa, w.inputs(), &x, m, k, k).unwrap();
                let mut out = vec![f32::NAN; m * n];
                matmul(&team, isa, &rows, w, None, OutRows::new(&mut out, m, n, n), Epilogue::Store);
                out
            });
            assert_same_bits(&got, &want, &format!("{format:?} in f32, {m} x {n} x {k}"));
        }
    }
}

#[test]
fn empty_products_are_zero_or_nothing() {
    let team = Team::new(2).unwrap();
    for unit in units() {
        let matrix = packed(&team, ActivationType::Int8, 3, 0, &[]);
        assert_eq!(product(&team, unit, &[], 2, &matrix), [0.0; 6]);
        let matrix = packed(&team, ActivationType::Int8, 0, 4, &[]);
        assert!(product(&team, unit, &[1.0; 8], 2, &matrix).is_empty());
        let matrix = packed(&team, ActivationType::Int8, 2, 2, &[1.0; 4]);
        assert!(product(&team, unit, &[], 0, &matrix).is_empty());
    }
}
