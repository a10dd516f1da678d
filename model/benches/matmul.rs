//! Matrix products over the weights of a 1.1B model, against a plain read of the same bytes.
//!
//! `cargo bench -p pagedraft-model --bench matmul -- [--rounds N] [--threads N] [--cpu-time]
//! [--steps 1,16,512] [bf16|bf16-avx512|f32 ...]`
//!
//! A *step* of m rows is what a forward pass asks of its matrix products: 22 layers of q|k|v, o,
//! gate|up, down, each with its own memory, and the head (a step of 512 rows is a prefill: one row of
//! logits). Every round times the read and each step once, one after another, so that a disturbed
//! machine disturbs all alike; ratios are taken within a round. Printed: best and median. With
//! `--cpu-time` it is not the wall's time but the process's, divided by the threads: for machines that
//! are shared with others.

#![allow(clippy::expect_used)] // A bench that cannot go on stops.

#[path = "../../benches/support/plain_read.rs"]
mod plain_read;

use pagedraft_attention::isa::Isa;
use pagedraft_model::checkpoint::Dtype;
use pagedraft_model::cpu::matmul::{Epilogue, OutRows, matmul};
use pagedraft_model::cpu::memory::Memory;
use pagedraft_model::cpu::panel::PackedMatrix;
use pagedraft_model::cpu::rows::PackedRows;
use pagedraft_model::cpu::team::Team;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const DIM: usize = 2048;
const FFN: usize = 5632;
const LAYERS: usize = 22;
const VOCABULARY: usize = 32_000;
/// (n, k) of a layer's products.
const PRODUCTS: [(usize, usize); 4] = [(DIM + 512, DIM), (DIM, DIM), (2 * FFN, DIM), (DIM, FFN)];
const STEPS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 512];
const MOST_ROWS: usize = 512;

static CPU_TIME: AtomicBool = AtomicBool::new(false);

/// Seconds that `work` takes.
fn timed(team: &Team, work: impl FnOnce()) -> f64 {
    let spent = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the clock is written to a local.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let (wall, cpu) = (Instant::now(), spent());
    work();
    if CPU_TIME.load(Ordering::Relaxed) {
        (spent() - cpu) / team.members() as f64
    } else {
        wall.elapsed().as_secs_f64()
    }
}

struct Model {
    isa: Isa,
    layers: Vec<PackedMatrix>,
    head: PackedMatrix,
    x: Vec<f32>,
    rows: PackedRows,
    out: Memory<f32>,
}

impl Model {
    fn new(team: &Team, isa: Isa, dtype: Dtype) -> Model {
        let matrix = |seed: usize, n: usize, k: usize| {
            let fill = |r: usize, row: &mut [f32]| {
                let mut state = (seed * 1_000_003 + r) as u32 | 1;
                for x in row {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *x = (state as i32) as f32 * 1e-11;
                }
            };
            PackedMatrix::pack(team, dtype, n, k, &fill).expect("memory for the weights")
        };
        let layers = (0..LAYERS).flat_map(|_| PRODUCTS).enumerate().map(|(i, (n, k))| matrix(i, n, k));
        let layers = layers.collect();
        let most = MOST_ROWS;
        Model {
            isa,
            layers,
            head: matrix(999, VOCABULARY, DIM),
            x: (0..most * FFN).map(|i| (i as f32 * 0.01).sin()).collect(),
            rows: PackedRows::with_room_for(most, FFN).expect("memory for the rows"),
            out: Memory::zeroed(most * 2 * FFN + 64 * VOCABULARY).expect("memory for the outputs"),
        }
    }

    fn bytes(&self) -> usize {
        self.layers.iter().map(PackedMatrix::bytes).sum::<usize>() + self.head.bytes()
    }

    fn flops(&self, m: usize) -> f64 {
        let layers: usize = self.layers.iter().map(|w| w.n() * w.k()).sum();
        2.0 * (layers * m + VOCABULARY * DIM * Self::logits(m)) as f64
    }

    fn logits(m: usize) -> usize {
        if m > 64 { 1 } else { m }
    }

    /// Seconds of a step of `m` rows.
    fn step(&mut self, team: &Team, m: usize) -> f64 {
        let head = std::iter::once((&self.head, Self::logits(m)));
        timed(team, || {
            for (w, m) in self.layers.iter().map(|w| (w, m)).chain(head) {
                let x = &self.x[..m * w.k()];
                self.rows.pack(team, self.isa, w.inputs(), x, m, w.k(), w.k()).expect("room");
                let out = OutRows::new(&mut self.out, m, w.n(), w.n());
                matmul(team, self.isa, &self.rows, w, None, out, Epilogue::Store);
            }
            black_box(&self.out);
        })
    }

    /// Seconds of reading every weight once.
    fn read(&self, team: &Team) -> f64 {
        let all: Vec<_> = self.layers.iter().chain([&self.head]).map(|w| w.as_bytes()).collect();
        timed(team, || plain_read::read(self.isa, team, &all))
    }
}

fn best_and_median(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[0], sorted[sorted.len() / 2])
}

fn measure(team: &Team, isa: Isa, dtype: Dtype, rounds: usize, sizes: &[usize]) {
    let start = Instant::now();
    let mut model = Model::new(team, isa, dtype);
    let gb = model.bytes() as f64 / 1e9;
    println!(
        "\n{dtype:?} on {isa}, {} threads, {gb:.2} GB, packed in {:.1} s, {rounds} rounds",
        team.members(),
        start.elapsed().as_secs_f64()
    );
    let mut reads = Vec::new();
    let mut steps = vec![Vec::new(); sizes.len()];
    for round in 0..=rounds {
        let read = model.read(team);
        let times: Vec<f64> = sizes.iter().map(|&m| model.step(team, m)).collect();
        // The first round warms up.
        if round > 0 {
            reads.push(read);
            steps.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
        }
    }
    let (best, median) = best_and_median(&reads);
    println!(
        "read           {:7.2} / {:7.2} ms  {:5.1} / {:5.1} GB/s",
        best * 1e3,
        median * 1e3,
        gb / best,
        gb / median
    );
    for (i, m) in sizes.iter().enumerate() {
        let (best, median) = best_and_median(&steps[i]);
        let to_one: Vec<f64> = steps[i].iter().zip(&steps[0]).map(|(a, b)| a / b).collect();
        let of_read: Vec<f64> = reads.iter().zip(&steps[i]).map(|(a, b)| a / b).collect();
        println!(
            "m = {m:4}  {:8.2} / {:8.2} ms  {:5.1} / {:5.1} GB/s  {:6.0} / {:6.0} GFLOP/s  {:7.1} / {:7.1} rows/s  {:.2} of the read  {:.2} of m = 1",
            best * 1e3,
            median * 1e3,
            gb / best,
            gb / median,
            model.flops(*m) / best / 1e9,
            model.flops(*m) / median / 1e9,
            *m as f64 / best,
            *m as f64 / median,
            best_and_median(&of_read).1,
            best_and_median(&to_one).1,
        );
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut rounds, mut threads, mut kinds) = (7, 2, Vec::new());
    let mut sizes = STEPS.to_vec();
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).expect("a number");
        match argument.as_str() {
            "--rounds" => rounds = number(),
            "--threads" => threads = number(),
            "--steps" => {
                let list = arguments.next().unwrap_or_default();
                let parse = |m: &str| m.parse().ok().filter(|m| (1..=MOST_ROWS).contains(m));
                sizes = list.split(',').map(|m| parse(m).expect("1 to 512 rows")).collect();
            }
            "--cpu-time" => CPU_TIME.store(true, Ordering::Relaxed),
            _ => kinds.push(argument),
        }
    }
    if kinds.is_empty() {
        kinds = ["bf16", "bf16-avx512", "f32"].map(String::from).to_vec();
    }
    let team = Team::new(threads).expect("threads");
    let best = Isa::detect();
    let vectors = if best == Isa::Amx { Isa::Avx512 } else { best };
    for kind in kinds {
        match kind.as_str() {
            "bf16" => measure(&team, best, Dtype::Bf16, rounds, &sizes),
            "bf16-avx512" => measure(&team, vectors, Dtype::Bf16, rounds, &sizes),
            "f32" => measure(&team, best, Dtype::F32, rounds, &sizes),
            other => println!("skipped: {other} is none of bf16, bf16-avx512, f32"),
        }
    }
}
