//! Compiles and loads the kernels of a model for a GPU.

use pagedraft_attention::cuda::{self as attention, AttentionShape, Element, Source, nvrtc};

use super::cubin_cache::{CubinCache, CubinKey};
use super::driver::Gpu;
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

/// Compiles the sources that the cache lacks, and loads all kernels.
pub(super) fn load(
    gpu: &Gpu,
    cache: &CubinCache,
    options: &CudaOptions,
    config: &ModelConfig,
) -> Result<Loaded, CudaError> {
    let shape = attention_shape(config, options)?;
    let mut kernels = Loaded::new(gpu, options.overlap);
    let (arch, more) = (gpu.arch(), shape.defines());
    // The options that the compiler is always given also decide what is compiled, so they belong to the key.
    let all: Vec<String> = nvrtc::OPTIONS.iter().map(ToString::to_string).chain(more.clone()).collect();
    NVRTC.require()?;
    for source in sources() {
        let text = source.expanded();
        let key = CubinKey {
            name: source.name,
            source: &text,
            options: &all,
            arch: &arch,
            compiler: gpu.nvrtc_version(),
        };
        let cubin = cache.get(&key, || {
            let compiled = nvrtc::compile(source.name, &text, &arch, &more);
            compiled.map(|compiled| compiled.cubin).map_err(|error| CudaError::Compile {
                name: source.name.to_owned(),
                arch: arch.clone(),
                log: error.to_string(),
            })
        })?;
        kernels.load(gpu, cubin, source.kernels)?;
    }
    Ok(kernels)
}
