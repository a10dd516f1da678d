//! Matrix products, in every tile.

use pagedraft_model::Dtype;
use pagedraft_model::cuda::Backend;
use pagedraft_model::cuda::kernels::{MatmulTile, splits};

use super::{
    Finding, Nearness, Random, halves, halves_at, launch, narrow, poison, put_floats, put_halves, same_bits,
    space, widen, words,
};

/// Which products.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Shapes `[n, k]` of weights.
    pub weights: &'static [(u32, u32)],
    /// Token rows of the whole product.
    pub rows: u32,
    /// How many times split products are repeated.
    pub times: usize,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    Store,
    Add,
    StoreAct,
}

struct Product {
    dtype: Dtype,
    n: u32,
    k: u32,
    x: u64,
    w: u64,
    bias: u64,
    out: u64,
    partial: u64,
    arrived: u64,
    counters: usize,
}

impl Product {
    /// `rows` rows from row `first` on, to the start of the output.
    fn run<B: Backend>(
        &self,
        b: &mut B,
        tile: MatmulTile,
        (first, rows): (u32, u32),
        mode: Mode,
        bias: bool,
    ) {
        let (n, k) = (self.n, self.k);
        let arguments = [
            self.x + u64::from(first) * u64::from(k) * 2,
            self.w,
            if bias { self.bias } else { 0 },
            self.out,
            self.partial,
            self.arrived,
            u64::from(rows),
            u64::from(n),
            u64::from(k),
            u64::from(splits(n, k)),
            mode as u64,
        ];
        launch(b, tile.kernel, tile.grid(rows, n, k), (tile.threads, tile.shared_bytes()), &arguments);
    }

    /// The f32 output of some rows, which nothing but the kernel has written.
    fn store<B: Backend>(&self, b: &mut B, tile: MatmulTile, at: (u32, u32)) -> Vec<u32> {
        let values = (at.1 * self.n) as usize;
        poison(b, self.out, 4 * values + 64);
        self.run(b, tile, at, Mode::Store, false);
        words(b, self.out, values + 16)
    }
}

/// Every tile gives the bits of `matmul_8`, wherever a row is in it and whatever is beside it; those are right.
pub fn check<B: Backend>(b: &mut B, dtype: Dtype, sizes: Sizes) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut random = Random(1);
    for &(n, k) in sizes.weights {
        let (x, w) = (
            halves(&mut random, dtype, (sizes.rows * k) as usize),
            halves(&mut random, dtype, (n * k) as usize),
        );
        let (bias, before) = (random.values(n as usize), random.values((sizes.rows * n) as usize));
        let most = |of: &dyn Fn(MatmulTile) -> usize| MatmulTile::ALL.into_iter().map(of).max().unwrap();
        let partial = most(&|tile| tile.partial_values(sizes.rows, n, k));
        let counters = most(&|tile| tile.counters(sizes.rows, n));
        let product = Product {
            dtype,
            n,
            k,
            x: put_halves(b, &x),
            w: put_halves(b, &w),
            bias: put_floats(b, &bias),
            out: space(b, (4 * sizes.rows * n + 64) as usize),
            partial: space(b, 4 * partial),
            arrived: space(b, 4 * counters),
            counters,
        };
        poison(b, product.partial, 4 * partial);
        let name = |what: &str| format!("products {n} x {k}, {dtype:?}: {what}");
        let whole = product.store(b, MatmulTile::ALL[0], (0, sizes.rows));
        let values = (sizes.rows * n) as usize;
        findings.push((name("right"), right(&product, &x, &w, &whole[..values])));
        for tile in MatmulTile::ALL {
            let found = tile_is_like_the_first(b, &product, tile, sizes.rows, &whole[..values]);
            findings.push((name(&format!("{} has the bits of matmul_8", tile.kernel)), found));
            let found = modes(b, &product, tile, sizes.rows, (&bias, &before), &whole);
            findings.push((name(&format!("{} adds, rounds, has a bias", tile.kernel)), found));
            if !tile.serial && splits(n, k) > 1 {
                let found = repeats(b, &product, tile, sizes);
                findings
                    .push((name(&format!("{} repeats itself {} times", tile.kernel, sizes.times)), found));
            }
        }
        let left: Vec<u32> = words(b, product.arrived, product.counters);
        let zero = if left.iter().all(|&count| count == 0) { Ok(()) } else { Err(format!("{left:?}")) };
        findings.push((name("counters are 0 again"), zero));
    }
    findings
}

fn right(p: &Product, x: &[u16], w: &[u16], got: &[u32]) -> Result<(), String> {
    let (n, k) = (p.n as usize, p.k as usize);
    let mut near = Nearness::default();
    let mut random = Random(7);
    for i in 0..got.len().min(4000) {
        let at = if i < 64 { i } else { random.below(got.len()) };
        let (row, column) = (at / n, at % n);
        let (mut sum, mut size) = (0.0, 0.0);
        for i in 0..k {
            let term =
                f64::from(widen(p.dtype, x[row * k + i])) * f64::from(widen(p.dtype, w[column * k + i]));
            sum += term;
            size += term.abs();
        }
        let place = || format!("row {row}, column {column}");
        near.add(place, f64::from(f32::from_bits(got[at])), sum, size * 1e-5 + 1e-6);
    }
    near.verdict()
}

fn tile_is_like_the_first<B: Backend>(
    b: &mut B,
    p: &Product,
    tile: MatmulTile,
    most: u32,
    whole: &[u32],
) -> Result<(), String> {
    let t = tile.rows;
    let counts = [1, 2, 7, t - 1, t, t + 1, 2 * t + 3, most];
    for (i, rows) in counts.into_iter().enumerate().filter(|&(_, rows)| (1..=most).contains(&rows)) {
        let first = (i as u32 * 3).min(most - rows);
        let got = p.store(b, tile, (first, rows));
        let (got, behind) = got.split_at((rows * p.n) as usize);
        let from = (first * p.n) as usize;
        same_bits(got, &whole[from..from + got.len()], p.n as usize, f32::from_bits, || {
            let mut again = p.store(b, tile, (first, rows));
            again.truncate(got.len());
            again
        })
        .map_err(|why| format!("{rows} rows from {first} on: {why}"))?;
        if behind.iter().any(|&word| word != u32::MAX) {
            return Err(format!("{rows} rows from {first} on: something was written behind the output"));
        }
    }
    Ok(())
}

fn modes<B: Backend>(
    b: &mut B,
    p: &Product,
    tile: MatmulTile,
    most: u32,
    (bias, before): (&[f32], &[f32]),
    whole: &[u32],
) -> Result<(), String> {
    let rows = (tile.rows + 3).min(most);
    let values = (rows * p.n) as usize;
    let sums = |i: usize| f32::from_bits(whole[i]) + bias[i % p.n as usize];
    let before_bytes: Vec<u8> = before[..values].iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut add = || {
        b.write(p.out, &before_bytes).unwrap();
        p.run(b, tile, (0, rows), Mode::Add, true);
        words(b, p.out, values)
    };
    let want: Vec<u32> = (0..values).map(|i| (before[i] + sums(i)).to_bits()).collect();
    let got = add();
    same_bits(&got, &want, p.n as usize, f32::from_bits, add).map_err(|why| format!("adding: {why}"))?;
    let mut store = || -> Vec<u32> {
        poison(b, p.out, 2 * values);
        p.run(b, tile, (0, rows), Mode::StoreAct, true);
        halves_at(b, p.out, values).into_iter().map(u32::from).collect()
    };
    let want: Vec<u32> = (0..values).map(|i| u32::from(narrow(p.dtype, sums(i)))).collect();
    let got = store();
    let number = |bits: u32| widen(p.dtype, bits as u16);
    same_bits(&got, &want, p.n as usize, number, store).map_err(|why| format!("rounding: {why}"))
}

/// Blocks of a split product meet in any order: the bits are always the same.
fn repeats<B: Backend>(b: &mut B, p: &Product, tile: MatmulTile, sizes: Sizes) -> Result<(), String> {
    let at = (0, tile.rows.min(sizes.rows));
    let want = p.store(b, tile, at);
    for time in 0..sizes.times {
        p.run(b, tile, at, Mode::Store, false);
        let got = words(b, p.out, want.len());
        same_bits(&got, &want, p.n as usize, f32::from_bits, || want.clone())
            .map_err(|why| format!("run {time}: {why}"))?;
    }
    Ok(())
}
