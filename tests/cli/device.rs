//! `--device` where there is no GPU: clear errors, and a fallback that says so. Drivers that are not there are made by gcc.

use std::process::Command;

use pagedraft_model::cuda::{DRIVER, NVRTC, SharedLibrary};

use crate::program::{Run, Scratch, command};

const GENERATE: [&str; 6] = ["generate", "--token-ids", "1,2,3", "--max-tokens", "2", "--device"];

/// Makes a shared library out of C; nothing where there is no gcc.
fn library(scratch: &Scratch, name: &str, text: &str) -> Option<()> {
    let source = scratch.write(&format!("{name}.c"), text.as_bytes());
    let library = scratch.path(&format!("{name}.so"));
    match Command::new("gcc").args(["-shared", "-fPIC", "-o", &library, &source]).status() {
        Ok(status) => assert!(status.success()),
        Err(_) => {
            println!("skipped: no gcc");
            return None;
        }
    }
    Some(())
}

/// Every function of a library, each returning 0, but for those written out.
fn functions(of: &SharedLibrary, written: &str) -> String {
    let rest = of.symbols().iter().filter(|symbol| !written.contains(&format!("{symbol}(")));
    rest.fold(written.to_owned(), |text, symbol| format!("{text}\nint {symbol}() {{ return 0; }}"))
}

/// Runs with the libraries of a directory before all others.
fn run(scratch: &Scratch, device: &str) -> Run {
    let output = command(&GENERATE).arg(device).env("LD_LIBRARY_PATH", scratch.path("")).output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Refused for bad usage, and no panic on the way.
fn refused(run: &Run, why: &[&str]) {
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(why.iter().all(|why| run.stderr.contains(why)), "{run:?}");
    assert!(run.stderr.starts_with("error: --device cuda: ") && run.stderr.contains("hint: "), "{run:?}");
    assert!(!run.stderr.contains("panicked"), "{run:?}");
}

#[test]
fn without_a_driver_cuda_is_refused_and_auto_falls_back() {
    let scratch = Scratch::new("no-driver");
    if DRIVER.require_some(&[]).is_ok() {
        println!("skipped: this machine has an NVIDIA driver");
        return;
    }
    refused(&run(&scratch, "cuda"), &["libcuda is not found", "install the NVIDIA driver"]);
    let auto = run(&scratch, "auto");
    assert_eq!(auto.code, Some(0), "{auto:?}");
    assert!(auto.stderr.starts_with("note: --device auto runs on the CPU: libcuda is not found"), "{auto:?}");
    let cpu = run(&scratch, "cpu");
    assert!(cpu.code == Some(0) && !cpu.stderr.contains("note"), "{cpu:?}");
    assert_eq!(cpu.stdout, auto.stdout);
    // Who says nothing gets what there is.
    let output = command(&GENERATE[..5]).env("LD_LIBRARY_PATH", scratch.path("")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(0) && !said.contains("note"), "{said}");
}

#[test]
fn a_driver_without_a_gpu_says_so() {
    let scratch = Scratch::new("no-gpu");
    if library(&scratch, "libcuda", "int cuInit(unsigned flags) { return 100; }").is_none() {
        return;
    }
    refused(&run(&scratch, "cuda"), &["the NVIDIA driver sees no GPU", "CUDA_VISIBLE_DEVICES"]);
    let auto = run(&scratch, "auto");
    assert!(auto.code == Some(0) && auto.stderr.contains("sees no GPU"), "{auto:?}");
}

#[test]
fn a_driver_that_does_not_start_or_lacks_a_function_is_named() {
    let scratch = Scratch::new("broken-driver");
    if library(&scratch, "libcuda", "int cuInit(unsigned flags) { return 803; }").is_none() {
        return;
    }
    refused(&run(&scratch, "cuda"), &["starting CUDA", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart"]);
    library(&scratch, "libcuda", "int cuInit(unsigned flags) { return 0; }");
    refused(&run(&scratch, "cuda"), &["libcuda has no cuDriverGetVersion", "580 or newer"]);
    library(&scratch, "libcuda", "int nothing;");
    refused(&run(&scratch, "cuda"), &["libcuda has no cuInit"]);
}

/// One GPU, of a compute capability of so many and 0.
fn one_gpu(major: u32) -> String {
    format!(
        "int cuDeviceGetCount(int *n) {{ *n = 1; return 0; }}
        int cuDeviceGet(int *device, int number) {{ *device = number; return 0; }}
        int cuDeviceGetName(char *name, int size, int device) {{ name[0] = 'G'; name[1] = 0; return 0; }}
        int cuDeviceGetAttribute(int *of, int a, int device) {{ *of = a == 75 ? {major} : 0; return 0; }}"
    )
}

#[test]
fn a_gpu_older_than_the_kernels_is_refused_and_auto_falls_back() {
    let scratch = Scratch::new("old-gpu");
    if library(&scratch, "libcuda", &functions(&DRIVER, &one_gpu(7))).is_none() {
        return;
    }
    refused(&run(&scratch, "cuda"), &["G has compute capability 7.0", "need 8.0 (Ampere) or newer"]);
    let auto = run(&scratch, "auto");
    assert!(
        auto.code == Some(0) && auto.stderr.contains("note: --device auto runs on the CPU: G has"),
        "{auto:?}"
    );
}

#[test]
fn auto_says_why_a_model_does_not_run_on_the_gpu() {
    let scratch = Scratch::new("no-kernels");
    let driver = format!("{}\nint cuDriverGetVersion(int *v) {{ *v = 13000; return 0; }}", one_gpu(9));
    if library(&scratch, "libcuda", &functions(&DRIVER, &driver)).is_none() {
        return;
    }
    let compiler = "int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return 0; }";
    library(&scratch, "libnvrtc", &functions(&NVRTC, compiler));
    let path = scratch.path("");
    let float = |device: &[&str]| {
        let mut command = command(&GENERATE[..5]);
        let output =
            command.args(["--dtype", "f32"]).args(device).env("LD_LIBRARY_PATH", &path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = float(&["--device", "auto"]);
    assert!(code == Some(0) && said.contains("note: --device auto runs on the CPU: "), "{said}");
    assert!(said.contains("not in float32"), "{said}");
    let (code, said) = float(&[]);
    assert!(code == Some(0) && !said.contains("note"), "{said}");
}

#[test]
fn a_driver_older_than_the_compiler_is_refused() {
    let scratch = Scratch::new("old-driver");
    let driver = format!("{}\nint cuDriverGetVersion(int *v) {{ *v = 12040; return 0; }}", one_gpu(9));
    if library(&scratch, "libcuda", &functions(&DRIVER, &driver)).is_none() {
        return;
    }
    let compiler = "int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return 0; }";
    library(&scratch, "libnvrtc", &functions(&NVRTC, compiler));
    refused(&run(&scratch, "cuda"), &["supports CUDA 12.4", "compiled by CUDA 13.0", "update the driver"]);
}

#[test]
fn a_missing_compiler_is_named_with_the_package_that_brings_it() {
    let scratch = Scratch::new("no-compiler");
    if NVRTC.require_some(&[]).is_ok() {
        println!("skipped: this machine has libnvrtc");
        return;
    }
    let driver = format!("{}\nint cuDriverGetVersion(int *v) {{ *v = 13000; return 0; }}", one_gpu(9));
    if library(&scratch, "libcuda", &functions(&DRIVER, &driver)).is_none() {
        return;
    }
    refused(&run(&scratch, "cuda"), &["libnvrtc is not found", "pip install nvidia-cuda-nvrtc==13.0.88"]);
}

#[test]
fn what_only_a_gpu_has_is_refused_on_the_cpu() {
    let mut fp8 = command(&GENERATE);
    let output = fp8.args(["cpu", "--kv-cache-dtype", "fp8"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("8-bit KV cache"), "{said}");
}

#[test]
fn what_determinism_costs_is_asked_of_the_cpu_in_vain() {
    let asked = command(&["bench", "latency", "--device", "cpu", "--deterministic-cost"]).output().unwrap();
    let said = String::from_utf8(asked.stderr).unwrap();
    assert_eq!(asked.status.code(), Some(2), "{said}");
    for part in ["--deterministic-cost", "the CPU", "one way only", "hint: ", "--device cuda"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(asked.stdout.is_empty());
}

#[test]
fn a_cpu_says_once_that_it_is_deterministic_always() {
    let run = |device: &str, more: &[&str]| {
        let output = command(&GENERATE).arg(device).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!run("cpu", &[]).contains("deterministic"));
    let said = run("cpu", &["--no-deterministic"]);
    assert_eq!(
        said.matches("note: --no-deterministic changes nothing: the CPU's kernels").count(),
        1,
        "{said}"
    );
}
