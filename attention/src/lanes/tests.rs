//! Compares every available implementation bit for bit with scalar code that does the same.

use super::{LANES, Lanes};
use crate::isa::{Isa, Kernel};
use half::{bf16, f16};

type Values = [f32; LANES];

/// A xorshift generator of arbitrary bit patterns, so that NaNs, infinities and denormals occur as well.
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }
    fn any(&mut self) -> Values {
        std::array::from_fn(|_| f32::from_bits(self.next()))
    }
    fn moderate(&mut self) -> Values {
        std::array::from_fn(|_| (self.next() as i32) as f32 / (1u64 << 24) as f32)
    }
}

struct Results {
    lanes: Vec<(&'static str, Values)>,
    bits: Vec<(&'static str, Vec<u16>)>,
    scalars: Vec<(&'static str, f32)>,
}

struct Everything {
    a: Values,
    b: Values,
    c: Values,
    raw: [u16; 2 * LANES],
}

impl Kernel for Everything {
    type Output = Results;
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> Results {
        // SAFETY: `Isa::run` enabled the features, and all arrays hold 16 or 32 elements.
        unsafe {
            let load = |x: &Values| L::load(x.as_ptr());
            let (a, b, c) = (load(&self.a), load(&self.b), load(&self.c));
            let (even, odd) = L::load_bf16_pairs(self.raw.as_ptr());
            let integral = b.round().max(L::splat(-126.0)).min(L::splat(127.0));
            let mut narrow = [[0u16; LANES]; 2];
            a.store_bf16(narrow[0].as_mut_ptr());
            a.store_f16(narrow[1].as_mut_ptr());
            Results {
                lanes: vec![
                    ("splat", L::splat(self.a[3]).to_array()),
                    ("bf16", L::load_bf16(self.raw.as_ptr()).to_array()),
                    ("f16", L::load_f16(self.raw.as_ptr()).to_array()),
                    ("e4m3", L::load_e4m3(self.raw.as_ptr().cast()).to_array()),
                    ("even", even.to_array()),
                    ("odd", odd.to_array()),
                    ("add", a.add(b).to_array()),
                    ("sub", a.sub(b).to_array()),
                    ("mul", a.mul(b).to_array()),
                    ("div", a.div(b).to_array()),
                    ("mul_add", a.mul_add(b, c).to_array()),
                    ("max", b.max(c).to_array()),
                    ("min", b.min(c).to_array()),
                    ("keep 0", a.keep_first(0, 2.0).to_array()),
                    ("keep 5", a.keep_first(5, 2.0).to_array()),
                    ("keep 11", a.keep_first(11, 2.0).to_array()),
                    ("keep 16", a.keep_first(16, 2.0).to_array()),
                    ("keep all", a.keep_first(usize::MAX, 2.0).to_array()),
                    ("drop 0", a.drop_first(0, 2.0).to_array()),
                    ("drop 5", a.drop_first(5, 2.0).to_array()),
                    ("drop 11", a.drop_first(11, 2.0).to_array()),
                    ("drop 16", a.drop_first(16, 2.0).to_array()),
                    ("drop all", a.drop_first(usize::MAX, 2.0).to_array()),
                    ("round", a.round().to_array()),
                    ("exp2", integral.exp2_int().to_array()),
                    ("exp", b.exp().to_array()),
                ],
                bits: vec![
                    ("store_bf16", narrow[0].to_vec()),
                    ("store_f16", narrow[1].to_vec()),
                    ("above", vec![a.above(c) as u16]),
                ],
                scalars: vec![("sum", b.sum()), ("max_lane", b.max_lane())],
            }
        }
    }
}

/// The value of an e4m3 by its definition, with 480 for its NaN.
fn e4m3(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7) / 8.0);
    let size = if exponent == 0 { fraction / 64.0 } else { (1.0 + fraction) * 2f32.powi(exponent - 7) };
    if bits >> 7 == 1 { -size } else { size }
}

/// The results of `Everything`, computed one scalar at a time.
fn twin(input: &Everything, fused: bool) -> Results {
    let Everything { a, b, c, raw } = input;
    let each = |f: &dyn Fn(usize) -> f32| -> Values { std::array::from_fn(f) };
    let mul_add = |x: f32, y: f32, z: f32| if fused { x.mul_add(y, z) } else { x * y + z };
    let bf = |i: usize| bf16::from_bits(raw[i]).to_f32();
    let exp = |x: f32| {
        let x = x.clamp(-87.33, 88.37);
        let n = (x * std::f32::consts::LOG2_E).round_ties_even();
        let r = mul_add(n, 2.121_944_4e-4, mul_add(n, -0.693_359_4, x));
        let mut p = 1.987_569_2e-4;
        for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = mul_add(p, r, coefficient);
        }
        (mul_add(p, r * r, r) + 1.0) * f32::from_bits(((n as i32 + 127) as u32) << 23)
    };
    let keep = |n: usize| each(&|i| if i < n { a[i] } else { 2.0 });
    let drop = |n: usize| each(&|i| if i < n { 2.0 } else { a[i] });
    let mut tree = *b;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            tree[i] += tree[i + half];
        }
    }
    Results {
        lanes: vec![
            ("splat", [a[3]; LANES]),
            ("bf16", each(&bf)),
            ("f16", each(&|i| f16::from_bits(raw[i]).to_f32())),
            ("e4m3", each(&|i| e4m3(raw[i / 2].to_ne_bytes()[i % 2]))),
            ("even", each(&|i| bf(2 * i))),
            ("odd", each(&|i| bf(2 * i + 1))),
            ("add", each(&|i| a[i] + b[i])),
            ("sub", each(&|i| a[i] - b[i])),
            ("mul", each(&|i| a[i] * b[i])),
            ("div", each(&|i| a[i] / b[i])),
            ("mul_add", each(&|i| mul_add(a[i], b[i], c[i]))),
            ("max", each(&|i| b[i].max(c[i]))),
            ("min", each(&|i| b[i].min(c[i]))),
            ("keep 0", keep(0)),
            ("keep 5", keep(5)),
            ("keep 11", keep(11)),
            ("keep 16", keep(16)),
            ("keep all", keep(16)),
            ("drop 0", drop(0)),
            ("drop 5", drop(5)),
            ("drop 11", drop(11)),
            ("drop 16", drop(16)),
            ("drop all", drop(16)),
            ("round", each(&|i| a[i].round_ties_even())),
            ("exp2", each(&|i| b[i].round_ties_even().clamp(-126.0, 127.0).exp2())),
            ("exp", each(&|i| exp(b[i]))),
        ],
        bits: vec![
            ("store_bf16", a.map(|x| bf16::from_f32(x).to_bits()).to_vec()),
            ("store_f16", a.map(|x| f16::from_f32(x).to_bits()).to_vec()),
            ("above", vec![(0..LANES).map(|i| u16::from(a[i] > c[i]) << i).sum()]),
        ],
        scalars: vec![("sum", tree[0]), ("max_lane", b.iter().copied().fold(f32::NEG_INFINITY, f32::max))],
    }
}

/// Whether two results are the same. All NaNs count as equal, because their payload is not promised.
fn same(x: f32, y: f32) -> bool {
    x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan())
}

#[test]
fn every_instruction_set_does_the_scalar_twin_s_arithmetic_bit_for_bit() {
    let seed = 0x9e37_79b9_7f4a_7c15;
    println!("seed {seed:#x}");
    let mut random = Bits(seed);
    let odd = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
        -1e-45,
        f32::MIN_POSITIVE,
        65504.0,
        65520.0,
        6e-8,
        2.98e-8,
        1.003_906_2,
        1.011_718_8,
        f32::MAX,
        0.0,
        -0.0,
        0.5,
    ];
    for round in 0..20_000 {
        let a = match round {
            0 => odd,
            _ if round % 2 == 0 => random.any(),
            _ => random.moderate(),
        };
        let mut raw: [u16; 2 * LANES] = std::array::from_fn(|_| random.next() as u16);
        raw[0] = [0x7f80, 0x7fc0, 0x0001, 0x8000, 0x7c00][round % 5];
        let input = Everything { a, b: random.moderate(), c: random.any(), raw };
        let c = input.c.map(|x| if x.is_nan() { 1.0 } else { x });
        let input = Everything { c, ..input };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let want = twin(&input, isa != Isa::Portable);
            let got = isa.run(Everything { ..input });
            for ((name, got), (_, want)) in got.lanes.iter().zip(&want.lanes) {
                for i in 0..LANES {
                    assert!(
                        same(got[i], want[i]),
                        "{isa} {name} lane {i}: {} is not {}; a {} b {} c {}",
                        got[i],
                        want[i],
                        input.a[i],
                        input.b[i],
                        input.c[i]
                    );
                }
            }
            for ((name, got), (_, want)) in got.bits.iter().zip(&want.bits) {
                assert_eq!(got, want, "{isa} {name} of {:?}", input.a);
            }
            for ((name, got), (_, want)) in got.scalars.iter().zip(&want.scalars) {
                assert!(same(*got, *want), "{isa} {name}: {got} is not {want}");
            }
        }
    }
}

/// A kernel that computes e to the power of 16 numbers.
struct Exp(Values);

impl Kernel for Exp {
    type Output = Values;
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> Values {
        // SAFETY: `Isa::run` enabled the features.
        unsafe { L::load(self.0.as_ptr()).exp().to_array() }
    }
}

#[test]
fn exp_is_within_two_in_ten_million_of_the_true_value_and_saturates_beyond_its_range() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let mut worst: f64 = 0.0;
        let steps = 400_000;
        for chunk in 0..steps / LANES {
            let x: Values = std::array::from_fn(|i| {
                let place = (chunk * LANES + i) as f32 / (steps - 1) as f32;
                (-87.33 + place * (88.37 + 87.33)).clamp(-87.33, 88.37)
            });
            for (x, y) in x.iter().zip(isa.run(Exp(x))) {
                let want = f64::from(*x).exp();
                worst = worst.max((f64::from(y) / want - 1.0).abs());
            }
        }
        println!("{isa}: {worst:e}");
        assert!(worst < 2e-7, "{isa}: {worst:e}");
        let ends = isa.run(Exp([
            f32::NEG_INFINITY,
            -1e30,
            -100.0,
            0.0,
            89.0,
            1e30,
            f32::INFINITY,
            1.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
        ]));
        assert!(ends[..3].iter().all(|&y| y > 0.0 && y < 2e-38), "{isa}: {ends:?}");
        assert!(ends[4..7].iter().all(|&y| y.is_finite() && y > 2e38), "{isa}: {ends:?}");
        assert_eq!(ends[3], 1.0);
    }
}
