//! Every CUDA kernel compiles to a cubin for each architecture, without a warning, and keeps its values in registers.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use pagedraft_attention::cuda::{AttentionShape, Element, Source, nvrtc};
use pagedraft_model::cuda::kernels;

const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100"];

/// Opens the compiler where the loader does not know it: in the directory `PAGEDRAFT_NVRTC`, or as pip puts it into the Python environment
/// `target/nvrtc` (as `.ci/run` does) or `VIRTUAL_ENV`.
fn find_compiler() -> bool {
    if nvrtc::is_present() {
        return true;
    }
    let named = std::env::var_os("PAGEDRAFT_NVRTC").map(PathBuf::from);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let environments =
        [Some(workspace.join("target/nvrtc")), std::env::var_os("VIRTUAL_ENV").map(PathBuf::from)];
    let wheels = environments.into_iter().flatten().flat_map(|environment| {
        let pythons = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
        pythons.map(|python| python.path().join("site-packages/nvidia/cu13/lib")).collect::<Vec<_>>()
    });
    for dir in named.into_iter().chain(wheels) {
        let opened = ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"].map(|name| {
            let path = CString::new(dir.join(name).to_str().unwrap()).unwrap();
            // SAFETY: the library's own initialisers are all that runs.
            !unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null()
        });
        if opened[1] && nvrtc::is_present() {
            return true;
        }
    }
    eprintln!(
        "no libnvrtc.so.13: kernels are not compiled; `pip install nvidia-cuda-nvrtc==13.0.88`, and name its directory in PAGEDRAFT_NVRTC"
    );
    false
}

/// Bytes that a kernel may spill. `attention_64` has two sets of sums for 64 rows: it fills the 255 registers there are, and which of
/// its indices goes to memory, or none, is the compiler's choice.
fn spill_limit(kernel: &str) -> u32 {
    if kernel == "attention_64" { 64 } else { 0 }
}

/// The number in front of `what` in a line.
fn number(line: &str, what: &str) -> Option<u32> {
    line.split(what)
        .next()
        .filter(|before| before.len() < line.len())?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

/// What is wrong with a compiled source, by its log.
fn complaints(source: &Source, log: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut kernels: Vec<&str> = source.kernels.to_vec();
    let mut kernel = "";
    for line in log.lines() {
        if let Some(name) = line.split("entry function '").nth(1).and_then(|rest| rest.split('\'').next()) {
            kernel = name;
            kernels.retain(|&k| k != kernel);
        }
        if let Some(spilled) = number(line, " bytes spill stores")
            && spilled > spill_limit(kernel)
        {
            found.push(format!("{kernel} spills {spilled} bytes; {} are allowed", spill_limit(kernel)));
        }
        if line.contains("warning") {
            found.push(line.to_owned());
        }
    }
    if !kernels.is_empty() {
        found.push(format!("the log does not tell of {kernels:?}"));
    }
    found
}

fn check(source: &Source, arch: &str, defines: &[String]) {
    let mut options = defines.to_vec();
    options.push("--ptxas-options=-v".to_owned());
    let compiled = nvrtc::compile(source.name, &source.expanded(), arch, &options).unwrap();
    assert!(compiled.cubin.starts_with(b"\x7fELF"), "{} for {arch} is no cubin", source.name);
    let complaints = complaints(source, &compiled.log);
    assert!(complaints.is_empty(), "{} {defines:?} for {arch}: {complaints:#?}", source.name);
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_warnings_or_spills() {
    if !find_compiler() {
        return;
    }
    for arch in ARCHITECTURES {
        for act in ["bf16", "f16"] {
            for source in kernels::SOURCES {
                check(source, arch, &[format!("-DACT={act}")]);
            }
        }
    }
}

#[test]
fn attention_compiles_for_the_shapes_of_known_models() {
    if !find_compiler() {
        return;
    }
    use Element::{Bf16, F16, Fp8};
    let shapes = [
        // Llama-3.1-8B, and Qwen3-0.6B.
        AttentionShape::new(32, 8, 128, 16, Bf16, Bf16),
        AttentionShape::new(16, 8, 128, 16, Bf16, Bf16),
        AttentionShape::new(32, 8, 128, 32, F16, F16),
        AttentionShape::new(32, 8, 128, 16, Bf16, Fp8),
        AttentionShape::new(14, 2, 64, 64, Bf16, Bf16),
        AttentionShape::new(40, 8, 128, 16, F16, Fp8),
        AttentionShape::new(8, 2, 32, 16, Bf16, Bf16),
    ];
    for shape in shapes.map(Result::unwrap) {
        for arch in ARCHITECTURES {
            for source in pagedraft_attention::cuda::SOURCES {
                check(source, arch, &shape.defines());
            }
        }
    }
}

#[test]
fn a_warning_and_a_spill_are_found_in_a_log() {
    let source = &pagedraft_attention::cuda::SOURCES[1];
    let log = |spill: u32, more: &str| {
        let name = source.kernels[0];
        format!(
            "{more}ptxas info    : Compiling entry function '{name}' for 'sm_80'\n    0 bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads\n"
        )
    };
    assert!(complaints(source, &log(0, "")).is_empty());
    assert_eq!(complaints(source, &log(8, "")).len(), 1);
    assert_eq!(complaints(source, &log(0, "x.cu(3): warning #177-D: unused\n")).len(), 1);
    assert_eq!(complaints(source, "").len(), 1);
    assert_eq!(number("    24 bytes stack frame, 16 bytes spill stores", " bytes spill stores"), Some(16));
}
