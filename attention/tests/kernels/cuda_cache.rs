//! The kernels that write the KV cache of CUDA, emulated: what they store where, and that they store nothing else.

use pagedraft_attention::cuda::{AttentionShape, Element, SOURCES};

use crate::emulator::{self, Arg, Buffer, Half, Launch, Module, Random};

fn module(name: &str, defines: &[String]) -> Module {
    let source = SOURCES.iter().find(|source| source.name == name).unwrap();
    Module::build(source.name, source.kernels, defines)
}

struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    block_size: usize,
    act: Half,
    fp8: bool,
    norm: bool,
}

impl Case {
    fn shape(&self) -> AttentionShape {
        let act = if self.act == Half::Bf16 { Element::Bf16 } else { Element::F16 };
        let kv = if self.fp8 { Element::Fp8 } else { act };
        AttentionShape::new(self.heads, self.kv_heads, self.dim, self.block_size as u32, act, kv).unwrap()
    }
}

const CASES: [Case; 5] = [
    Case { heads: 4, kv_heads: 2, dim: 128, block_size: 16, act: Half::Bf16, fp8: false, norm: true },
    Case { heads: 3, kv_heads: 1, dim: 64, block_size: 32, act: Half::F16, fp8: false, norm: false },
    Case { heads: 2, kv_heads: 2, dim: 32, block_size: 16, act: Half::Bf16, fp8: true, norm: true },
    Case { heads: 5, kv_heads: 1, dim: 80, block_size: 64, act: Half::Bf16, fp8: false, norm: true },
    Case { heads: 4, kv_heads: 2, dim: 128, block_size: 16, act: Half::F16, fp8: true, norm: false },
];

const EPS: f32 = 1e-5;

/// A head normed (where a weight is given) and rotated, in f64.
fn expected(values: &[f32], weight: Option<&[f32]>, angles: Option<&[f32]>) -> Vec<f64> {
    let mut x: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
    if let Some(weight) = weight {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        for (x, &w) in x.iter_mut().zip(weight) {
            *x = *x / (mean + f64::from(EPS)).sqrt() * f64::from(w);
        }
    }
    if let Some(angles) = angles {
        let half = x.len() / 2;
        for i in 0..half {
            let (c, s, a, b) = (f64::from(angles[i]), f64::from(angles[half + i]), x[i], x[half + i]);
            x[i] = a * c - b * s;
            x[half + i] = b * c + a * s;
        }
    }
    x
}

/// The nearest e4m3, ties to even, as a value.
fn round_fp8(x: f64) -> f64 {
    let magnitude = x.abs().min(448.0);
    let exponent = magnitude.max(f64::MIN_POSITIVE).log2().floor().max(-6.0);
    let unit = 2f64.powf(exponent - 3.0);
    ((magnitude / unit).round_ties_even() * unit).min(448.0).copysign(x)
}

fn widen_fp8(bits: u8) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let magnitude =
        if exponent == 0 { fraction / 512.0 } else { (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7) };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

#[test]
fn queries_keys_and_values_are_normed_rotated_and_stored_where_the_slot_says() {
    if !emulator::available() {
        return;
    }
    for (seed, case) in (0..).zip(&CASES) {
        let mut random = Random(seed);
        let shape = case.shape();
        let (rows, blocks, positions) = (9usize, 6usize, 50usize);
        let part = shape.part_bytes();
        let (stride, offset) = (2 * part, part);
        let all = case.heads + 2 * case.kv_heads;
        let qkv = case.act.narrow_all(&random.normals(rows * all * case.dim));
        let (q_weight, k_weight) = (random.normals(case.dim), random.normals(case.dim));
        let angles: Vec<f32> = (0..positions)
            .flat_map(|p| {
                let angle = move |i: usize| p as f64 * 0.7f64.powi(i as i32);
                let half = case.dim / 2;
                (0..half)
                    .map(move |i| angle(i).cos() as f32)
                    .chain((0..half).map(move |i| angle(i).sin() as f32))
            })
            .collect();
        let at: Vec<u32> = (0..rows).map(|_| random.below(positions) as u32).collect();
        let mut slots: Vec<i64> = (0..(blocks * case.block_size) as i64).collect();
        random.shuffle(&mut slots);
        slots.truncate(rows);
        slots[2] = -1;
        slots[5] = -1;

        let buffers =
            (Buffer::from(&qkv), Buffer::from(&q_weight), Buffer::from(&k_weight), Buffer::from(&angles));
        let (at_buffer, slot_buffer) = (Buffer::from(&at), Buffer::from(&slots));
        let q = Buffer::filled(0xffffu16, rows * case.heads * case.dim);
        let cache = Buffer::filled(0xa5u8, blocks * stride);
        let weight = |buffer: &Buffer<f32>| if case.norm { buffer.arg() } else { Arg::NULL };
        module("rope_cache.cu", &shape.defines()).launch(
            Launch {
                kernel: "rope_cache",
                grid: [rows as u32, all.div_ceil(4) as u32, 1],
                threads: 128,
                shared: 0,
                seed: random.next(),
            },
            &[
                buffers.0.arg(),
                weight(&buffers.1),
                weight(&buffers.2),
                buffers.3.arg(),
                at_buffer.arg(),
                slot_buffer.arg(),
                q.arg(),
                cache.arg_at(offset),
                Arg::U64(stride as u64),
                Arg::F32(EPS),
            ],
        );

        let head =
            |row: usize, head: usize| case.act.widen_all(&qkv[(row * all + head) * case.dim..][..case.dim]);
        let mut written = vec![false; blocks * stride];
        for row in 0..rows {
            let turn = &angles[at[row] as usize * case.dim..][..case.dim];
            for h in 0..case.heads {
                let want = expected(&head(row, h), case.norm.then_some(&q_weight[..]), Some(turn));
                for (d, want) in want.iter().enumerate() {
                    let got = f64::from(case.act.widen(q.all()[(row * case.heads + h) * case.dim + d]));
                    assert!(
                        (got - want).abs() <= want.abs() * f64::from(case.act.unit()) + 1e-5,
                        "q {row} {h} {d}"
                    );
                }
            }
            let Ok(slot) = usize::try_from(slots[row]) else { continue };
            let (block, token) = (slot / case.block_size, slot % case.block_size);
            for h in 0..case.kv_heads {
                let start = block * stride + offset + h * part / case.kv_heads;
                let size = if case.fp8 { 1 } else { 2 };
                let row_bytes = case.dim * size;
                let k = expected(&head(row, case.heads + h), case.norm.then_some(&k_weight[..]), Some(turn));
                let v = expected(&head(row, case.heads + case.kv_heads + h), None, None);
                for (half, want) in [k, v].iter().enumerate() {
                    let from = start + (half * case.block_size + token) * row_bytes;
                    written[from..from + row_bytes].fill(true);
                    let bytes = &cache.all()[from..from + row_bytes];
                    if case.fp8 {
                        let scale_at =
                            start + 2 * case.block_size * row_bytes + (half * case.block_size + token) * 4;
                        written[scale_at..scale_at + 4].fill(true);
                        let scale =
                            f32::from_le_bytes(cache.all()[scale_at..scale_at + 4].try_into().unwrap());
                        let greatest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                        assert!((f64::from(scale) / (greatest / 448.0) - 1.0).abs() < 1e-4);
                        for (d, want) in want.iter().enumerate() {
                            // What is within rounding of a tie may go either way.
                            let (got, x) = (widen_fp8(bytes[d]), want / f64::from(scale));
                            let nearest = [x * (1.0 - 1e-4), x, x * (1.0 + 1e-4)].map(round_fp8);
                            assert!(nearest.contains(&got), "{half} {row} {h} {d}: {got} of {x}");
                        }
                    } else {
                        for (d, want) in want.iter().enumerate() {
                            let got = case.act.widen(u16::from_le_bytes([bytes[2 * d], bytes[2 * d + 1]]));
                            let error = want.abs() * f64::from(case.act.unit()) + 1e-5;
                            assert!(
                                (f64::from(got) - want).abs() <= error,
                                "{half} {row} {h} {d}: {got}, not {want}"
                            );
                        }
                    }
                }
            }
        }
        let other = cache.all().iter().zip(&written).position(|(&byte, &written)| !written && byte != 0xa5);
        assert_eq!(other, None, "a byte was written that is no slot's");
    }
}

#[test]
fn whole_blocks_are_copied_and_nothing_else() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(9);
    for stride in [16usize, 4096, 4096 * 3 + 1040] {
        let before: Vec<u8> = (0..7 * stride).map(|_| random.next() as u8).collect();
        let cache = Buffer::from(&before);
        let pairs = Buffer::from(&[3u32, 0, 5, 6, 3, 2]);
        module("copy_blocks.cu", &[]).launch(
            Launch {
                kernel: "copy_blocks",
                grid: [3, stride.div_ceil(4096) as u32, 1],
                threads: 256,
                shared: 0,
                seed: random.next(),
            },
            &[cache.arg(), pairs.arg(), Arg::U64(stride as u64)],
        );
        let mut after = before.clone();
        for (source, target) in [(3, 0), (5, 6), (3, 2)] {
            after[target * stride..(target + 1) * stride]
                .copy_from_slice(&before[source * stride..(source + 1) * stride]);
        }
        assert!(cache.all() == after, "blocks of {stride} bytes");
    }
}
