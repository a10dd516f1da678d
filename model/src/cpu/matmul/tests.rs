//! Compares products bit for bit with the slow reference.

use super::reference::dot;
use super::{Epilogue, OutRows, matmul};
use crate::checkpoint::Dtype;
use crate::cpu::panel::PackedMatrix;
use crate::cpu::rows::PackedRows;
use crate::cpu::team::Team;
use pagedraft_attention::isa::Isa;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
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
    /// A number of very different sizes, so that products underflow, cancel and get large.
    fn wild(&mut self) -> f32 {
        let scale = [1e-38, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e18, 0.0][self.below(8)];
        self.number() * scale
    }
    fn numbers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.number()).collect()
    }
}

fn packed(team: &Team, dtype: Dtype, n: usize, k: usize, w: &[f32]) -> PackedMatrix {
    let fill = |r: usize, row: &mut [f32]| row.copy_from_slice(&w[r * k..][..k]);
    PackedMatrix::pack(team, dtype, n, k, &fill).unwrap()
}

fn product(team: &Team, isa: Isa, x: &[f32], m: usize, w: &PackedMatrix) -> Vec<f32> {
    let mut rows = PackedRows::with_room_for(1, 1).unwrap();
    rows.pack(team, isa, w.inputs(), x, m, w.k(), w.k()).unwrap();
    let mut out = vec![f32::NAN; m * w.n()];
    let to = OutRows::new(&mut out, m, w.n(), w.n());
    matmul(team, isa, &rows, w, None, to, Epilogue::Store);
    out
}

fn assert_same_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
        assert!(same, "{what}: output {i} is {g:e}, not {w:e}");
    }
}

#[test]
fn every_instruction_set_gives_its_twin_s_bits_for_odd_shapes() {
    let seed = 0x1234_5678_9abc_def1;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let teams = [Team::new(1).unwrap(), Team::new(2).unwrap(), Team::new(3).unwrap()];
    for m in 1..=70 {
        let (n, k) = (1 + random.below(100), 1 + random.below(150));
        let (x, w) = (random.numbers(m * k), random.numbers(n * k));
        for dtype in DTYPES {
            let matrix = packed(&teams[1], dtype, n, k, &w);
            for isa in available() {
                let mut want = Vec::new();
                for row in x.chunks(k) {
                    want.extend(w.chunks(k).map(|w| dot(isa, dtype, row, w)));
                }
                for team in &teams {
                    let got = product(team, isa, &x, m, &matrix);
                    assert_same_bits(&got, &want, &format!("{isa} {dtype:?} {m} x {n} x {k}"));
                }
            }
        }
    }
}

#[test]
fn denormal_huge_and_cancelling_numbers_give_the_twin_s_bits() {
    let seed = 0x00c0_ffee_1234_5679;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let team = Team::new(2).unwrap();
    for round in 0..60 {
        let (m, n, k) = (1 + random.below(35), 1 + random.below(70), 1 + random.below(200));
        let x: Vec<f32> = (0..m * k).map(|_| random.wild()).collect();
        let w: Vec<f32> = (0..n * k).map(|_| random.wild()).collect();
        for dtype in DTYPES {
            let matrix = packed(&team, dtype, n, k, &w);
            for isa in available() {
                let mut want = Vec::new();
                for row in x.chunks(k) {
                    want.extend(w.chunks(k).map(|w| dot(isa, dtype, row, w)));
                }
                let got = product(&team, isa, &x, m, &matrix);
                assert_same_bits(&got, &want, &format!("round {round}, {isa} {dtype:?}"));
            }
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_in_any_place_and_in_any_batch() {
    let seed = 0x0bad_5eed_0bad_5eed;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let teams = [Team::new(1).unwrap(), Team::new(2).unwrap(), Team::new(5).unwrap()];
    // These shapes need several passes over the weights, and walk the inputs in parts.
    for (m, n, k) in [(70, 200, 700), (300, 96, 2900), (33, 40, 5632)] {
        let (x, w) = (random.numbers(m * k), random.numbers(n * k));
        for dtype in DTYPES {
            let matrix = packed(&teams[1], dtype, n, k, &w);
            for isa in available() {
                if isa == Isa::Portable && m > 100 {
                    continue;
                }
                let whole = product(&teams[1], isa, &x, m, &matrix);
                let turned: Vec<f32> = x.chunks(k).rev().flatten().copied().collect();
                let back = product(&teams[2], isa, &turned, m, &matrix);
                let back: Vec<f32> = back.chunks(n).rev().flatten().copied().collect();
                assert_same_bits(&back, &whole, &format!("{isa} {dtype:?} reversed"));
                for part in [1, 2, 3, 7, 16, 17, 31] {
                    let mut parts = Vec::new();
                    let rows = m.min(40);
                    for x in x[..rows * k].chunks(part * k) {
                        parts.extend(product(&teams[0], isa, x, x.len() / k, &matrix));
                    }
                    let what = format!("{isa} {dtype:?} {m} rows by {part}");
                    assert_same_bits(&parts, &whole[..rows * n], &what);
                }
            }
        }
    }
}

#[test]
fn the_fused_instruction_sets_agree_with_each_other_bit_for_bit() {
    let mut random = Random(77);
    let team = Team::new(2).unwrap();
    let (m, n, k) = (29, 100, 1000);
    let (x, w) = (random.numbers(m * k), random.numbers(n * k));
    for dtype in DTYPES {
        let matrix = packed(&team, dtype, n, k, &w);
        let mut first: Option<Vec<f32>> = None;
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Neon].into_iter().filter(|i| i.available()) {
            let got = product(&team, isa, &x, m, &matrix);
            assert_same_bits(&got, first.get_or_insert(got.clone()), &format!("{isa} {dtype:?}"));
        }
    }
}

#[test]
fn bias_and_residual_are_added_after_the_sum_and_nothing_outside_is_touched() {
    let mut random = Random(99);
    let team = Team::new(2).unwrap();
    for (m, n, k) in [(1, 50, 64), (18, 64, 40), (40, 33, 100)] {
        let (x, w, bias) = (random.numbers(m * k), random.numbers(n * k), random.numbers(n));
        let stride = n + 5;
        let before = random.numbers(m * stride);
        for dtype in DTYPES {
            let matrix = packed(&team, dtype, n, k, &w);
            for isa in available() {
                let sums = product(&team, isa, &x, m, &matrix);
                let mut rows = PackedRows::with_room_for(m, k).unwrap();
                rows.pack(&team, isa, dtype, &x, m, k, k).unwrap();
                for (bias, epilogue) in [
                    (Some(&bias[..]), Epilogue::Store),
                    (Some(&bias[..]), Epilogue::Add),
                    (None, Epilogue::Add),
                ] {
                    let mut out = before.clone();
                    let to = OutRows::new(&mut out, m, n, stride);
                    matmul(&team, isa, &rows, &matrix, bias, to, epilogue);
                    let mut want = before.clone();
                    for r in 0..m {
                        for c in 0..n {
                            let mut v = sums[r * n + c];
                            if let Some(bias) = bias {
                                v += bias[c];
                            }
                            if epilogue == Epilogue::Add {
                                v += want[r * stride + c];
                            }
                            want[r * stride + c] = v;
                        }
                    }
                    assert_same_bits(&out, &want, &format!("{isa} {dtype:?} {m} x {n} x {k}"));
                }
            }
        }
    }
}

#[test]
fn a_reused_row_buffer_leaks_nothing_of_what_it_held() {
    let mut random = Random(5);
    let team = Team::new(2).unwrap();
    let (n, k) = (40, 70);
    let w = random.numbers(n * k);
    for isa in available() {
        let mut rows = PackedRows::with_room_for(40, 100).unwrap();
        for dtype in DTYPES {
            let matrix = packed(&team, dtype, n, k, &w);
            let poison = vec![f32::NAN; 40 * 100];
            rows.pack(&team, isa, dtype, &poison, 40, 100, 100).unwrap();
            for m in [1, 5, 17, 33] {
                let x = random.numbers(m * k);
                rows.pack(&team, isa, dtype, &x, m, k, k).unwrap();
                let mut out = vec![0.0; m * n];
                let to = OutRows::new(&mut out, m, n, n);
                matmul(&team, isa, &rows, &matrix, None, to, Epilogue::Store);
                let fresh = product(&team, isa, &x, m, &matrix);
                assert_same_bits(&out, &fresh, &format!("{isa} {dtype:?} {m}"));
            }
        }
    }
}

#[test]
fn empty_products_are_zero_or_nothing() {
    let team = Team::new(2).unwrap();
    for dtype in DTYPES {
        for isa in available() {
            let matrix = packed(&team, dtype, 3, 0, &[]);
            assert_eq!(product(&team, isa, &[], 2, &matrix), [0.0; 6]);
            let matrix = packed(&team, dtype, 0, 4, &[]);
            assert!(product(&team, isa, &[1.0; 8], 2, &matrix).is_empty());
            let matrix = packed(&team, dtype, 2, 2, &[1.0; 4]);
            assert!(product(&team, isa, &[], 0, &matrix).is_empty());
        }
    }
}
