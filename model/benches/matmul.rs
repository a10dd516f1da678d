//! Matrix products over the weights of a 1.1B model, against a plain read of the same bytes.
//!
//! `cargo bench -p pagedraft-model --bench matmul -- [--rounds N] [--threads N] [--cpu-time]
//! [--steps 1,16,512] [bf16|bf16-avx512|f32|int8|int8-f32 ...]`
//!
//! A *step* of m rows is what a forward pass asks of its matrix products: 22 layers of q|k|v, o,
//! gate|up, down, each with its own memory, and the head (a step of 512 rows is a prefill: one row of
//! logits). Every round times the read and each step of every kind once, one after another, so that a disturbed
//! machine disturbs all alike; ratios are taken within a round. In `int8` the head is in bf16, as in an engine; in
//! `int8-f32` activations stay in f32. Printed: best and median. With
//! `--cpu-time` it is not the wall's time but the process's, divided by the threads: for machines that
//! are shared with others.

#![allow(clippy::expect_used)] // A bench that cannot go on stops.

#[path = "../../benches/support/plain_read.rs"]
mod plain_read;

use pagedraft_attention::isa::Isa;
use pagedraft_model::ActivationType;
use pagedraft_model::checkpoint::Dtype;
use pagedraft_model::cpu::int8::Int8Row;
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

/// How weights are kept.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Float(Dtype),
    Int8(ActivationType),
}

struct Model {
    kind: Kind,
    isa: Isa,
    layers: Vec<PackedMatrix>,
    head: PackedMatrix,
    x: Vec<f32>,
    rows: PackedRows,
    out: Memory<f32>,
}

impl Model {
    fn new(team: &Team, isa: Isa, kind: Kind) -> Model {
        let matrix = |seed: usize, n: usize, k: usize, kind: Kind| {
            let fill = |r: usize, row: &mut [f32]| {
                let mut state = (seed * 1_000_003 + r) as u32 | 1;
                for x in row {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *x = (state as i32) as f32 * 1e-11;
                }
            };
            let quantise = |r: usize, row: &mut Int8Row| row.quantise_with(k, |out| fill(r, out));
            let packed = match kind {
                Kind::Float(dtype) => PackedMatrix::pack(team, dtype, n, k, &fill),
                Kind::Int8(activations) => PackedMatrix::pack_int8(team, activations, n, k, &quantise),
            };
            packed.expect("memory for the weights")
        };
        let layers = (0..LAYERS).flat_map(|_| PRODUCTS).enumerate();
        let layers = layers.map(|(i, (n, k))| matrix(i, n, k, kind)).collect();
        let most = MOST_ROWS;
        let head = match kind {
            Kind::Float(_) => kind,
            Kind::Int8(_) => Kind::Float(Dtype::Bf16),
        };
        Model {
            kind,
            isa,
            layers,
            head: matrix(999, VOCABULARY, DIM, head),
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

/// What a model's rounds took, in seconds.
#[derive(Default)]
struct Times {
    reads: Vec<f64>,
    /// By size, then by round.
    steps: Vec<Vec<f64>>,
}

fn measure(team: &Team, kinds: &[(Isa, Kind)], rounds: usize, sizes: &[usize]) {
    let mut models = Vec::new();
    for &(isa, kind) in kinds {
        let start = Instant::now();
        models.push(Model::new(team, isa, kind));
        println!("{kind:?} packed in {:.1} s", start.elapsed().as_secs_f64());
    }
    let empty = || Times { reads: Vec::new(), steps: vec![Vec::new(); sizes.len()] };
    let mut times: Vec<Times> = models.iter().map(|_| empty()).collect();
    for round in 0..=rounds {
        for (model, times) in models.iter_mut().zip(&mut times) {
            let read = model.read(team);
            let steps: Vec<f64> = sizes.iter().map(|&m| model.step(team, m)).collect();
            // The first round warms up.
            if round > 0 {
                times.reads.push(read);
                times.steps.iter_mut().zip(steps).for_each(|(all, time)| all.push(time));
            }
        }
    }
    for (model, of_model) in models.iter().zip(&times) {
        print(team, model, of_model, &times[0], sizes);
    }
}

fn print(team: &Team, model: &Model, times: &Times, first: &Times, sizes: &[usize]) {
    let Times { reads, steps } = times;
    let gb = model.bytes() as f64 / 1e9;
    println!(
        "\n{:?} on {}, {} threads, {gb:.2} GB, {} rounds",
        model.kind,
        model.isa,
        team.members(),
        reads.len()
    );
    let (best, median) = best_and_median(reads);
    println!(
        "read           {:7.2} / {:7.2} ms  {:5.1} / {:5.1} GB/s",
        best * 1e3,
        median * 1e3,
        gb / best,
        gb / median
    );
    for (i, m) in sizes.iter().enumerate() {
        let (best, median) = best_and_median(&steps[i]);
        let ratios = |of: &[f64], to: &[f64]| {
            let all: Vec<f64> = of.iter().zip(to).map(|(a, b)| a / b).collect();
            best_and_median(&all).1
        };
        println!(
            "m = {m:4}  {:8.2} / {:8.2} ms  {:5.1} / {:5.1} GB/s  {:6.0} / {:6.0} GFLOP/s  {:7.1} / {:7.1} rows/s  {:.2} of the read  {:.2} of m = 1  {:.2} of the first kind",
            best * 1e3,
            median * 1e3,
            gb / best,
            gb / median,
            model.flops(*m) / best / 1e9,
            model.flops(*m) / median / 1e9,
            *m as f64 / best,
            *m as f64 / median,
            ratios(reads, &steps[i]),
            ratios(&steps[i], &steps[0]),
            ratios(&steps[i], &first.steps[i]),
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
        kinds = ["bf16", "int8", "f32"].map(String::from).to_vec();
    }
    let team = Team::new(threads).expect("threads");
    let best = Isa::detect();
    let vectors = if best == Isa::Amx { Isa::Avx512 } else { best };
    let mut all = Vec::new();
    for kind in kinds {
        all.push(match kind.as_str() {
            "bf16" => (best, Kind::Float(Dtype::Bf16)),
            "bf16-avx512" => (vectors, Kind::Float(Dtype::Bf16)),
            "f32" => (best, Kind::Float(Dtype::F32)),
            "int8" => (best, Kind::Int8(ActivationType::Int8)),
            "int8-f32" => (best, Kind::Int8(ActivationType::F32)),
            other => {
                println!("skipped: {other} is none of bf16, bf16-avx512, f32, int8, int8-f32");
                continue;
            }
        });
    }
    measure(&team, &all, rounds, &sizes);
}
