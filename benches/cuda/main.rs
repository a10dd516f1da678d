//! Checks and times the CUDA device on one GPU, and prints a table at the end.
//!
//! Run it with `cargo bench --bench cuda [-- --only WORD,WORD]`, or with `scripts/gpu.sh`, which ends each section after its time
//! and adds PyTorch's figures if it can be imported. A word selects the sections whose names contain it. If there are several
//! sections, each runs in a process of its own, because a kernel's fault makes the GPU unusable for the whole process.
//!
//! `--compile sm_90a` compiles the kernels into the user's cache (`XDG_CACHE_HOME`) for a GPU of that architecture, on a machine that
//! need not have one, and does nothing else. `--present` says whether there is a GPU, and nothing else.
//!
//! Weights are drawn from a seed. Times are measured by the GPU's own events and are medians of some tens of steps. `wall`
//! is the host's clock around a whole step, in which the chosen tokens are read back. Without the driver's library or
//! without a GPU, the bench says so and ends successfully. If anything else is missing, that is an error.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that fails says where")]

mod data;
#[path = "../../model/tests/devices/mod.rs"]
mod devices;
#[path = "../support/flag.rs"]
mod flag;
mod kernels;
#[path = "../../model/tests/launches/mod.rs"]
mod launches;
mod measure;
mod sections;
mod shapes;
#[path = "../../model/tests/steps/mod.rs"]
mod steps;
mod table;
mod tokens;

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use flag::flag;
use pagedraft_model::cuda::{self, CudaDevice, CudaError, CudaOptions, KvStorage};
use pagedraft_model::{Dtype, Runner};
use table::Table;

fn main() {
    let only = flag("--only", String::new());
    let picked = sections::picked(&only, SECTIONS.map(|(name, _)| name)).unwrap_or_else(|why| {
        eprintln!("error: {why}");
        std::process::exit(2)
    });
    let arch = flag("--compile", String::new());
    if !arch.is_empty() {
        kernels::compile(&arch);
        return;
    }
    match cuda::probe() {
        Ok(()) => {}
        Err(why) if no_gpu(&why) => {
            println!("skipped: {why}");
            return;
        }
        Err(why) => {
            eprintln!("error: {why}");
            std::process::exit(1)
        }
    }
    if std::env::args().any(|word| word == "--present") {
        println!("a GPU is here");
        return;
    }
    let start = Instant::now();
    let mut table = Table::default();
    let alone = picked.len() == 1;
    for (name, section) in SECTIONS.into_iter().filter(|(name, _)| picked.contains(name)) {
        println!("\n== {name} ({:.0} s)", start.elapsed().as_secs_f64());
        if !alone {
            sections::run_apart(name, &mut table);
        } else if std::panic::catch_unwind(AssertUnwindSafe(|| section(&mut table))).is_err() {
            table.failed(name);
        }
    }
    println!("\n{:.0} s", start.elapsed().as_secs_f64());
    print!("{}\n{}", table::HEADING, table.text());
    if table.any_failed() {
        std::process::exit(1);
    }
}

/// Whether there is no GPU to run anything on. On a machine with a GPU, nothing else that is missing may pass for a
/// success.
fn no_gpu(why: &CudaError) -> bool {
    match why {
        CudaError::NoLibrary { name, .. } => *name == "libcuda",
        CudaError::NoGpu { what } => what.contains("sees no GPU"),
        _ => false,
    }
}

type Section = fn(&mut Table);

const SECTIONS: [(&str, Section); 12] = [
    ("probe", kernels::probe),
    ("rows", kernels::rows),
    ("products", kernels::products),
    ("heads", kernels::attention),
    ("checks", checks),
    ("0.6B decode", |table| measure::decode(table, &shapes::QWEN3_0_6B)),
    ("8B decode", |table| measure::decode(table, &shapes::LLAMA_8B)),
    ("attention", measure::attention),
    ("scoring", measure::scoring),
    ("prefill", measure::prefill),
    ("promise", measure::promise),
    ("tokens", tokens::with_and_without_speculation),
];

fn small(config: usize, options: CudaOptions) -> Runner<CudaDevice> {
    let checkpoint = steps::checkpoint(config);
    let device = shapes::open(checkpoint.config(), &options, steps::NUM_BLOCKS);
    Runner::load(device, &checkpoint, steps::limits()).expect("a model")
}

/// Runs the checks of the emulator's tests with the real kernels.
fn checks(table: &mut Table) {
    for overlap in [false, true] {
        let options = |dtype| CudaOptions { overlap, ..steps::options(dtype) };
        let how = if overlap { "overlapped launches" } else { "plain launches" };
        let mut check = |what: &str, run: &dyn Fn()| {
            let passed = std::panic::catch_unwind(AssertUnwindSafe(run)).is_ok();
            table.check(&format!("{what}, {how}"), passed);
        };
        check("every kind of step agrees with the CPU", &|| {
            for (config, dtype, tolerance) in
                [(0, Dtype::Bf16, 0.02), (1, Dtype::F16, 0.004), (2, Dtype::Bf16, 0.02)]
            {
                steps::agrees_with_the_cpu(config, dtype, tolerance, small(config, options(dtype)));
            }
        });
        check("same bits however a sequence is cut", &|| {
            for (config, dtype) in [(0, Dtype::Bf16), (2, Dtype::F16)] {
                let open = || small(config, options(dtype));
                steps::has_the_same_bits_however_it_is_cut(config, open(), open());
            }
        });
        check("replays are eager steps, foreign blocks untouched", &|| {
            for (config, dtype) in [(0, Dtype::F16), (1, Dtype::Bf16)] {
                let open = || small(config, options(dtype));
                steps::replays_as_eager_and_touches_nothing_else(config, open(), open());
            }
        });
        check("8-bit KV agrees with itself however it is cut", &|| {
            let open = || small(0, CudaOptions { kv: KvStorage::Fp8, ..options(Dtype::Bf16) });
            steps::has_the_same_bits_however_it_is_cut(0, open(), open());
        });
    }
}
