//! The matrix products of CUDA, emulated: right, and with the same bits whatever the rows and tiles.

use pagedraft_model::cuda::kernels::{MatmulTile, SOURCES, splits};

use crate::emulator::{self, Arg, Buffer, Half, Launch, Module, Random};

fn module(act: Half) -> Module {
    let source = SOURCES.iter().find(|source| source.name == "matmul.cu").unwrap();
    Module::build(source.name, source.kernels, &[format!("-DACT={}", act.name())])
}

/// What a product is stored as.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    Store,
    Add,
    StoreAct,
}

struct Product {
    act: Half,
    rows: usize,
    n: usize,
    k: usize,
    x: Vec<u16>,
    w: Vec<u16>,
    bias: Option<Vec<f32>>,
    before: Vec<f32>,
}

impl Product {
    fn random(random: &mut Random, act: Half, rows: usize, n: usize, k: usize, bias: bool) -> Product {
        Product {
            act,
            rows,
            n,
            k,
            x: act.narrow_all(&random.normals(rows * k)),
            w: act.narrow_all(&random.normals(n * k)),
            bias: bias.then(|| random.normals(n)),
            before: random.normals(rows * n),
        }
    }

    /// The result, as bits; every workspace is checked to be as it was.
    fn run(&self, random: &mut Random, tile: MatmulTile, mode: Mode) -> Vec<u32> {
        let (rows, n, k) = (self.rows as u32, self.n as u32, self.k as u32);
        let (x, w) = (Buffer::from(&self.x), Buffer::from(&self.w));
        let bias = self.bias.as_ref().map(|bias| Buffer::from(bias));
        let out = Buffer::from(&self.before);
        let out_act = Buffer::filled(u16::MAX, self.rows * self.n);
        let partial = Buffer::filled(f32::NAN, tile.partial_values(rows, n, k));
        let arrived = Buffer::filled(0u32, tile.counters(rows, n));
        module(self.act).launch(
            Launch {
                kernel: tile.kernel,
                grid: tile.grid(rows, n, k),
                threads: tile.threads,
                shared: tile.shared_bytes(),
                seed: random.next(),
            },
            &[
                x.arg(),
                w.arg(),
                bias.as_ref().map_or(Arg::NULL, Buffer::arg),
                if mode == Mode::StoreAct { out_act.arg() } else { out.arg() },
                partial.arg(),
                arrived.arg(),
                Arg::U32(rows),
                Arg::U32(n),
                Arg::U32(k),
                Arg::U32(splits(n, k)),
                Arg::U32(mode as u32),
            ],
        );
        assert!(arrived.all().iter().all(|&count| count == 0));
        match mode {
            Mode::StoreAct => out_act.all().iter().map(|&x| u32::from(x)).collect(),
            _ => out.all().iter().map(|x| x.to_bits()).collect(),
        }
    }

    /// In f64, with the sum of magnitudes that errors are measured by.
    fn exact(&self, row: usize, n: usize) -> (f64, f64) {
        let (mut sum, mut size) = (0.0, 0.0);
        for i in 0..self.k {
            let (x, w) = (self.act.widen(self.x[row * self.k + i]), self.act.widen(self.w[n * self.k + i]));
            sum += f64::from(x) * f64::from(w);
            size += (f64::from(x) * f64::from(w)).abs();
        }
        let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[n]));
        (sum + bias, size + bias.abs())
    }
}

#[test]
fn products_agree_with_f64_in_every_tile_and_mode() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(1);
    for (case, &(rows, n, k)) in
        [(1, 64, 64), (3, 60, 200), (9, 132, 776), (17, 128, 1024), (70, 200, 328), (130, 136, 512)]
            .iter()
            .enumerate()
    {
        for act in Half::BOTH {
            let product = Product::random(&mut random, act, rows, n, k, case % 2 == 0);
            for tile in MatmulTile::ALL {
                let mode = random.pick(&[Mode::Store, Mode::Add, Mode::StoreAct]);
                let out = product.run(&mut random, tile, mode);
                for (i, &bits) in out.iter().enumerate() {
                    let (mut want, size) = product.exact(i / n, i % n);
                    let mut error = size * 1e-5 + 1e-6;
                    let got = match mode {
                        Mode::StoreAct => {
                            error += want.abs() * f64::from(act.unit());
                            act.widen(bits as u16)
                        }
                        _ => f32::from_bits(bits),
                    };
                    if mode == Mode::Add {
                        want += f64::from(product.before[i]);
                    }
                    let what = format!("{act:?} {} {mode:?} {rows} x {n} x {k}", tile.kernel);
                    assert!(
                        (f64::from(got) - want).abs() <= error,
                        "{what}: element {i} is {got}, not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others_in_every_tile() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(2);
    for &(n, k) in &[(128, 1024), (68, 2056), (192, 64)] {
        let act = random.pick(&Half::BOTH);
        let whole = Product::random(&mut random, act, 140, n, k, false);
        let reference = whole.run(&mut random, MatmulTile::ALL[0], Mode::Store);
        for tile in MatmulTile::ALL {
            for _ in 0..2 {
                let rows = random.pick(&[1, 2, 8, 11, 64, 100]);
                let first = random.below(140 - rows + 1);
                let part = Product {
                    rows,
                    x: whole.x[first * k..(first + rows) * k].to_vec(),
                    w: whole.w.clone(),
                    bias: None,
                    before: vec![0.0; rows * n],
                    ..whole
                };
                let out = part.run(&mut random, tile, Mode::Store);
                let what = format!("{act:?} {} rows {first}+{rows} of {n} x {k}", tile.kernel);
                assert!(out == reference[first * n..(first + rows) * n], "{what}");
            }
        }
    }
}

#[test]
fn splits_are_part_of_the_result_and_the_order_of_their_sum_is_fixed() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(3);
    let (rows, n, k) = (5, 64, 2048);
    assert!(splits(n as u32, k as u32) > 4);
    let product = Product::random(&mut random, Half::Bf16, rows, n, k, true);
    let out = product.run(&mut random, MatmulTile::ALL[0], Mode::Add);
    // The emulated multiplication adds in ascending order, so the whole tree can be written out.
    let splits = splits(n as u32, k as u32) as usize;
    let each = (k / 64).div_ceil(splits) * 64;
    for (i, &bits) in out.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let mut total = 0.0f32;
        for (split, start) in (0..k).step_by(each).enumerate() {
            let mut sum = 0.0f32;
            for at in start..(start + each).min(k) {
                sum +=
                    Half::Bf16.widen(product.x[row * k + at]) * Half::Bf16.widen(product.w[column * k + at]);
            }
            total = if split == 0 { sum } else { total + sum };
        }
        let want = product.before[i] + (total + product.bias.as_ref().unwrap()[column]);
        assert_eq!(bits, want.to_bits(), "row {row}, column {column}");
    }
}
