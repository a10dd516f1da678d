//! The kernels of CUDA that work on a row at a time, emulated, against the CPU's.

use pagedraft_attention::isa::Isa;
use pagedraft_model::cpu::rowwise;
use pagedraft_model::cuda::kernels::SOURCES;

use crate::emulator::{self, Arg, Buffer, Half, Launch, Module, Random};

/// Launches a kernel with this grid.
fn launch(random: &mut Random, act: Half, kernel: &str, grid: [u32; 3], threads: u32, args: &[Arg]) {
    let source = SOURCES.iter().find(|source| source.kernels.contains(&kernel)).unwrap();
    let module = Module::build(source.name, source.kernels, &[format!("-DACT={}", act.name())]);
    module.launch(Launch { kernel, grid, threads, shared: 0, seed: random.next() }, args);
}

/// Whether a value is the f32 rounded to `act`, give or take one rounding.
fn assert_rounded(act: Half, got: &[u16], want: &[f32], relative: f32, what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = want.abs() * (act.unit() + relative) + 1e-6;
        let got = act.widen(got);
        assert!((got - want).abs() <= error, "{what} {act:?}: element {i} is {got}, not {want}");
    }
}

fn norms(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = vec![0.0; x.len()];
    for (x, out) in x.chunks(width).zip(out.chunks_mut(width)) {
        rowwise::rms_norm(Isa::detect(), x, weight, eps, out);
    }
    out
}

#[test]
fn norms_agree_with_the_cpu_and_a_row_does_not_know_its_neighbours() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(1);
    for act in Half::BOTH {
        for width in [8usize, 104, 1024, 4096 + 8] {
            let rows = 3;
            let (x, weight) = (random.normals(rows * width), random.normals(width));
            let y = act.narrow_all(&random.normals(rows * width));
            let (x_buffer, w_buffer, y_buffer) = (Buffer::from(&x), Buffer::from(&weight), Buffer::from(&y));
            let norm = |random: &mut Random, first: usize, rows: usize| {
                let out = Buffer::filled(0xffffu16, rows * width);
                let args = [
                    x_buffer.arg_at(first * width * 4),
                    w_buffer.arg(),
                    out.arg(),
                    Arg::U32(width as u32),
                    Arg::F32(1e-5),
                ];
                launch(random, act, "rms_norm", [rows as u32, 1, 1], 256, &args);
                out.all().to_vec()
            };
            let all = norm(&mut random, 0, rows);
            assert_rounded(act, &all, &norms(&x, &weight, 1e-5), 1e-5, "rms_norm");
            assert_eq!(norm(&mut random, 1, 1), all[width..2 * width]);

            let sum: Vec<f32> = x.iter().zip(&y).map(|(x, &y)| x + act.widen(y)).collect();
            let (sum_buffer, out) = (Buffer::from(&x), Buffer::filled(0xffffu16, rows * width));
            let args = [
                sum_buffer.arg(),
                y_buffer.arg(),
                w_buffer.arg(),
                out.arg(),
                Arg::U32(width as u32),
                Arg::F32(1e-5),
            ];
            launch(&mut random, act, "add_rms_norm", [rows as u32, 1, 1], 256, &args);
            assert_eq!(sum_buffer.all(), sum);
            assert_rounded(act, out.all(), &norms(&sum, &weight, 1e-5), 1e-5, "add_rms_norm");
        }
    }
}

#[test]
fn swiglu_agrees_with_the_cpu_for_small_and_large_gates() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(2);
    for act in Half::BOTH {
        for width in [8usize, 1032] {
            let rows = 2;
            let gain = random.pick(&[1.0, 30.0]);
            let values: Vec<f32> = random.normals(rows * 2 * width).iter().map(|x| x * gain).collect();
            let x = act.narrow_all(&values);
            let (x_buffer, out) = (Buffer::from(&x), Buffer::filled(0xffffu16, rows * width));
            let args = [x_buffer.arg(), out.arg(), Arg::U32(width as u32)];
            launch(&mut random, act, "swiglu", [rows as u32, width.div_ceil(1024) as u32, 1], 128, &args);
            let widened = act.widen_all(&x);
            let mut want = vec![0.0; rows * width];
            for (row, want) in widened.chunks(2 * width).zip(want.chunks_mut(width)) {
                rowwise::swiglu(Isa::detect(), &row[..width], &row[width..], want);
            }
            assert_rounded(act, out.all(), &want, 1e-5, "swiglu");
        }
    }
}

#[test]
fn rows_are_looked_up_gathered_copied_widened_and_biased() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(3);
    for act in Half::BOTH {
        let (vocab, width, rows) = (11usize, 264usize, 5usize);
        let grid = [rows as u32, 1, 1];
        let width_arg = Arg::U32(width as u32);
        let table = act.narrow_all(&random.normals(vocab * width));
        let picks: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
        let wide = act.widen_all(&table);
        let want: Vec<f32> =
            picks.iter().flat_map(|&row| wide[row as usize * width..][..width].iter().copied()).collect();

        let (table_buffer, pick_buffer, wide_buffer) =
            (Buffer::from(&table), Buffer::from(&picks), Buffer::from(&wide));
        let out = || Buffer::filled(f32::NAN, rows * width);
        let embedded = out();
        let args = [table_buffer.arg(), pick_buffer.arg(), embedded.arg(), width_arg];
        launch(&mut random, act, "embed", grid, 128, &args);
        assert_eq!(embedded.all(), want);

        let gathered = out();
        let args = [wide_buffer.arg(), pick_buffer.arg(), gathered.arg(), width_arg];
        launch(&mut random, act, "gather_rows", grid, 256, &args);
        assert_eq!(gathered.all(), want);

        let copied = out();
        launch(&mut random, act, "copy_rows", grid, 256, &[wide_buffer.arg(), copied.arg(), width_arg]);
        assert_eq!(copied.all(), &wide[..rows * width]);

        let widened = out();
        launch(&mut random, act, "widen_rows", grid, 256, &[table_buffer.arg(), widened.arg(), width_arg]);
        assert_eq!(widened.all(), &wide[..rows * width]);

        let bias = random.normals(width);
        let bias_buffer = Buffer::from(&bias);
        let sums: Vec<f32> = (0..rows * width).map(|i| wide[i] + bias[i % width]).collect();
        launch(&mut random, act, "add_bias", grid, 256, &[copied.arg(), bias_buffer.arg(), width_arg]);
        assert_eq!(copied.all(), sums);
        let part = Buffer::from(&table[..rows * width]);
        launch(&mut random, act, "add_bias_act", grid, 256, &[part.arg(), bias_buffer.arg(), width_arg]);
        assert_eq!(part.all(), act.narrow_all(&sums));
    }
}
