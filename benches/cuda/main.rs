//! Everything that is asked of the CUDA device, checked and timed on one GPU in under ten minutes; a table last.
//!
//! `cargo bench --bench cuda [-- --only WORDS]`, or `scripts/h100.sh`, which adds PyTorch's figures where it can be imported.
//!
//! Weights are drawn from a seed. Times are the GPU's own, by events, medians of some tens of steps; `wall` is the host's clock
//! around a whole step, the chosen tokens read back. Without a GPU it says so and ends well.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that fails says where")]

#[path = "../support/flag.rs"]
mod flag;
mod measure;
mod shapes;
#[path = "../../model/tests/steps/mod.rs"]
mod steps;
mod tokens;

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use flag::flag;
use measure::Table;
use pagedraft_model::cuda::{self, CudaDevice, CudaOptions, KvStorage};
use pagedraft_model::{Dtype, Runner};

fn main() {
    if let Err(why) = cuda::probe() {
        println!("skipped: {why}");
        return;
    }
    let only = flag("--only", String::new());
    let start = Instant::now();
    let mut table = Table::default();
    for (name, section) in SECTIONS {
        if !name.contains(only.as_str()) {
            continue;
        }
        println!("\n== {name} ({:.0} s)", start.elapsed().as_secs_f64());
        let done = std::panic::catch_unwind(AssertUnwindSafe(|| section(&mut table)));
        if done.is_err() {
            table.failed(name);
        }
    }
    println!("\n{:.0} s\n{}", start.elapsed().as_secs_f64(), table.text());
    if table.any_failed() {
        std::process::exit(1);
    }
}

type Section = fn(&mut Table);

const SECTIONS: [(&str, Section); 8] = [
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
    let device = CudaDevice::open(&options, checkpoint.config()).expect("a device");
    Runner::load(device, &checkpoint, steps::limits()).expect("a model")
}

/// What the emulator's tests hold the kernels to, on the real ones.
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
