//! Compiles and loads the kernels of a model for a GPU.

use pagedraft_attention::cuda::{self as attention, AttentionShape, Element, Source, nvrtc};

use super::cubin_cache::{CubinCache, CubinKey};
use super::driver::{Gpu, nvrtc_version};
use super::error::CudaError;
use super::kernels::SOURCES;
use super::library::NVRTC;
use super::loaded::Loaded;
use super::options::{CudaOptions, KvStorage};
use crate::checkpoint::{Dtype, ModelConfig};

/// The shape that a model's attention kernels are compiled for.
///
/// # Errors
///
/// There are no kernels for the model or the dtype.
pub fn attention_shape(config: &ModelConfig, options: &CudaOptions) -> Result<AttentionShape, CudaError> {
    let act = match options.dtype {
        Dtype::F16 => Element::F16,
        _ => Element::Bf16,
    };
    let kv = match options.kv {
        KvStorage::Model => act,
        KvStorage::Fp8 => Element::Fp8,
    };
    let (heads, kv_heads, d) = (config.num_heads, config.num_kv_heads, config.head_dim);
    AttentionShape::new(heads, kv_heads, d, options.block_size, act, kv)
        .map_err(|e| CudaError::Unsupported { what: format!("{e}; --device cpu runs it") })
}

/// All sources that a device runs.
#[must_use]
pub fn sources() -> Vec<Source> {
    attention::SOURCES.iter().chain(SOURCES).copied().collect()
}

/// The modules of a model's kernels for an architecture (`sm_90a`), each with its source: those that the cache lacks are compiled
/// and kept there. No GPU is needed, so a cache can be filled on one machine and taken to another.
///
/// # Errors
///
/// No compiler, a model or dtype without kernels, or a source that does not compile.
pub fn modules(
    cache: &CubinCache,
    arch: &str,
    options: &CudaOptions,
    config: &ModelConfig,
) -> Result<Vec<(Source, Vec<u8>)>, CudaError> {
    let defines = attention_shape(config, options)?.defines();
    NVRTC.require()?;
    let compiler = nvrtc_version()?;
    let module = |source: Source| {
        let text = source.expanded();
        let more = Source::defines_used(&text, &defines);
        // What the compiler is always given decides what comes out just as well.
        let all: Vec<String> = nvrtc::OPTIONS.iter().map(ToString::to_string).chain(more.clone()).collect();
        let key = CubinKey { name: source.name, source: &text, options: &all, arch, compiler };
        let cubin = cache.get(&key, || {
            let compiled = nvrtc::compile(source.name, &text, arch, &more);
            compiled.map(|compiled| compiled.cubin).map_err(|error| CudaError::Compile {
                name: source.name.to_owned(),
                arch: arch.to_owned(),
                log: error.to_string(),
            })
        })?;
        Ok((source, cubin))
    };
    sources().into_iter().map(module).collect()
}

/// Compiles what the cache lacks, and loads all of it.
pub(super) fn load(
    gpu: &Gpu,
    cache: &CubinCache,
    options: &CudaOptions,
    config: &ModelConfig,
) -> Result<Loaded, CudaError> {
    let mut kernels = Loaded::new(gpu, options.overlap);
    for (source, cubin) in modules(cache, &gpu.arch(), options, config)? {
        kernels.load(gpu, cubin, source.kernels)?;
    }
    Ok(kernels)
}
