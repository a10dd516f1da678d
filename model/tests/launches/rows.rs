//! Kernels that take a row at a time, and copies of KV blocks.

use pagedraft_model::Dtype;
use pagedraft_model::cuda::Backend;

use super::{
    Finding, Nearness, Random, float, halves, halves_at, launch, narrow, poison, put_floats, put_halves,
    put_words, same_bits, space, unit, widen, words,
};

/// Every row kernel, at this many rows of this width.
pub fn check<B: Backend>(b: &mut B, dtype: Dtype, rows: usize, width: usize) -> Vec<Finding> {
    let name = |what: &str| format!("{what}, {rows} rows of {width}, {dtype:?}");
    vec![
        (name("rms_norm and add_rms_norm"), norms(b, dtype, rows, width)),
        (name("swiglu"), swiglu(b, dtype, rows, width)),
        (name("embed, gather, copy, widen, add_bias"), moves(b, dtype, rows, width)),
        (name("copy_blocks"), blocks(b, width)),
        (name("accept"), accept(b, rows)),
    ]
}

fn norms<B: Backend>(b: &mut B, dtype: Dtype, rows: usize, width: usize) -> Result<(), String> {
    let mut random = Random(2);
    let (x, weight) = (random.values(rows * width), random.values(width));
    let y = halves(&mut random, dtype, rows * width);
    let (x_at, weight_at, y_at) = (put_floats(b, &x), put_floats(b, &weight), put_halves(b, &y));
    let out = space(b, 2 * rows * width);
    let grid = [rows as u32, 1, 1];
    let right = |x: &[f32], got: &[u16]| {
        let mut near = Nearness::default();
        for (row, (x, got)) in x.chunks(width).zip(got.chunks(width)).enumerate() {
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
            let factor = 1.0 / (mean + 1e-5).sqrt();
            for (i, (&x, &got)) in x.iter().zip(got).enumerate() {
                let want = f64::from(x) * factor * f64::from(weight[i]);
                let allowed = want.abs() * (unit(dtype) + 1e-5) + 1e-6;
                near.add(|| format!("row {row}, column {i}"), f64::from(widen(dtype, got)), want, allowed);
            }
        }
        near.verdict()
    };
    poison(b, out, 2 * rows * width);
    launch(b, "rms_norm", grid, (256, 0), &[x_at, weight_at, out, width as u64, float(1e-5)]);
    right(&x, &halves_at(b, out, rows * width)).map_err(|why| format!("rms_norm: {why}"))?;

    poison(b, out, 2 * rows * width);
    launch(b, "add_rms_norm", grid, (256, 0), &[x_at, y_at, weight_at, out, width as u64, float(1e-5)]);
    let sum: Vec<f32> = x.iter().zip(&y).map(|(x, &y)| x + widen(dtype, y)).collect();
    exact(&words(b, x_at, rows * width), &sum, width, "add_rms_norm's sum")?;
    right(&sum, &halves_at(b, out, rows * width)).map_err(|why| format!("add_rms_norm: {why}"))
}

fn exact(got: &[u32], want: &[f32], width: usize, what: &str) -> Result<(), String> {
    let want: Vec<u32> = want.iter().map(|value| value.to_bits()).collect();
    same_bits(got, &want, width, f32::from_bits, || got.to_vec()).map_err(|why| format!("{what}: {why}"))
}

fn swiglu<B: Backend>(b: &mut B, dtype: Dtype, rows: usize, width: usize) -> Result<(), String> {
    let mut random = Random(3);
    let x: Vec<u16> = (0..rows * 2 * width)
        .map(|i| narrow(dtype, random.value() * if i % 5 == 0 { 40.0 } else { 3.0 }))
        .collect();
    let (x_at, out) = (put_halves(b, &x), space(b, 2 * rows * width));
    poison(b, out, 2 * rows * width);
    let grid = [rows as u32, width.div_ceil(1024) as u32, 1];
    launch(b, "swiglu", grid, (128, 0), &[x_at, out, width as u64]);
    let mut near = Nearness::default();
    for (i, &got) in halves_at(b, out, rows * width).iter().enumerate() {
        let (row, column) = (i / width, i % width);
        let at = |i: usize| f64::from(widen(dtype, x[row * 2 * width + i]));
        let (gate, up) = (at(column), at(width + column));
        let want = gate / (1.0 + (-gate).exp()) * up;
        // The exponential of the special function unit is good to about 2 in 2^22, times the gate.
        let allowed = want.abs() * (unit(dtype) + 2e-5) + 1e-6;
        near.add(|| format!("row {row}, column {column}"), f64::from(widen(dtype, got)), want, allowed);
    }
    near.verdict()
}

fn moves<B: Backend>(b: &mut B, dtype: Dtype, rows: usize, width: usize) -> Result<(), String> {
    let mut random = Random(4);
    let vocab = rows + 3;
    let table = halves(&mut random, dtype, vocab * width);
    let picks: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
    let wide: Vec<f32> = table.iter().map(|&bits| widen(dtype, bits)).collect();
    let picked: Vec<f32> =
        picks.iter().flat_map(|&row| wide[row as usize * width..][..width].iter().copied()).collect();
    let bias = random.values(width);
    let (table_at, picks_at, wide_at, bias_at) =
        (put_halves(b, &table), put_words(b, &picks), put_floats(b, &wide), put_floats(b, &bias));
    let out = space(b, 4 * rows * width);
    let (grid, w) = ([rows as u32, 1, 1], width as u64);
    let firsts = &wide[..rows * width];
    let cases: [(&'static str, u32, Vec<u64>, &[f32]); 4] = [
        ("embed", 128, vec![table_at, picks_at, out, w], &picked),
        ("gather_rows", 256, vec![wide_at, picks_at, out, w], &picked),
        ("widen_rows", 256, vec![table_at, out, w], firsts),
        ("copy_rows", 256, vec![wide_at, out, w], firsts),
    ];
    for (kernel, block, arguments, want) in cases {
        poison(b, out, 4 * rows * width);
        launch(b, kernel, grid, (block, 0), &arguments);
        exact(&words(b, out, rows * width), want, width, kernel)?;
    }
    let sums: Vec<f32> = (0..rows * width).map(|i| wide[i] + bias[i % width]).collect();
    launch(b, "add_bias", grid, (256, 0), &[out, bias_at, w]);
    exact(&words(b, out, rows * width), &sums, width, "add_bias")?;
    launch(b, "add_bias_act", grid, (256, 0), &[table_at, bias_at, w]);
    let got: Vec<u32> = halves_at(b, table_at, rows * width).into_iter().map(u32::from).collect();
    let want: Vec<u32> = sums.iter().map(|&sum| u32::from(narrow(dtype, sum))).collect();
    let number = |bits: u32| widen(dtype, bits as u16);
    same_bits(&got, &want, width, number, || got.clone()).map_err(|why| format!("add_bias_act: {why}"))
}

fn blocks<B: Backend>(b: &mut B, width: usize) -> Result<(), String> {
    let mut random = Random(5);
    let (count, stride) = (9, width * 16);
    let mut want: Vec<u32> = (0..count * stride / 4).map(|_| random.next() as u32).collect();
    let cache = put_words(b, &want);
    let pairs = [2u32, 7, 0, 4, 8, 1];
    let pairs_at = put_words(b, &pairs);
    let grid = [3, stride.div_ceil(4096) as u32, 1];
    launch(b, "copy_blocks", grid, (256, 0), &[cache, pairs_at, stride as u64]);
    for pair in pairs.chunks(2) {
        let [from, to] = [pair[0], pair[1]].map(|block| block as usize * stride / 4);
        want.copy_within(from..from + stride / 4, to);
    }
    let got = words(b, cache, want.len());
    same_bits(&got, &want, stride / 4, f32::from_bits, || got.clone())
}

fn accept<B: Backend>(b: &mut B, rows: usize) -> Result<(), String> {
    const NO_TOKEN: u32 = u32::MAX;
    let mut random = Random(6);
    let (mut starts, mut chosen, mut drafts, mut want) = (vec![0u32], Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rows {
        let k = random.below(6);
        let first = chosen.len();
        for _ in 0..=k {
            chosen.push(if random.below(12) == 0 { NO_TOKEN } else { random.below(2) as u32 });
            drafts.push(random.below(2) as u32);
        }
        let (chosen, drafts) = (&chosen[first..], &drafts[first..]);
        let equal = (0..k).filter(|&i| chosen[i] == drafts[i]).count() as u32;
        let stand = (0..k).take_while(|&i| chosen[i] == drafts[i]).count();
        let failed = chosen[..=stand].contains(&NO_TOKEN);
        want.push((if failed { NO_TOKEN } else { stand as u32 }, equal));
        starts.push((first + k + 1) as u32);
    }
    let [chosen, drafts, starts] = [&chosen, &drafts, &starts].map(|values| put_words(b, values));
    let (accepted, noncausal) = (space(b, 4 * rows), space(b, 4 * rows));
    let grid = [rows.div_ceil(128) as u32, 1, 1];
    launch(b, "accept", grid, (128, 0), &[chosen, drafts, starts, accepted, noncausal, rows as u64]);
    let got: Vec<_> = words(b, accepted, rows).into_iter().zip(words(b, noncausal, rows)).collect();
    match (0..rows).find(|&i| got[i] != want[i]) {
        None => Ok(()),
        Some(i) => Err(format!("plan row {i}: {:?} where {:?} goes", got[i], want[i])),
    }
}
