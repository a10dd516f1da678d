//! Decides where an engine's models run: on the CPU or on a GPU.

use std::fmt;

use pagedraft_attention::isa::Isa;
use pagedraft_block_manager::{GroupId, KvGroup};
use pagedraft_model::checkpoint::{ModelConfig, StoredWeights};
use pagedraft_model::cpu::{CpuDevice, CpuOptions};
use pagedraft_model::cuda::{self, CudaDevice, CudaOptions, Gpu, KvStorage, MemoryNeed};
use pagedraft_model::dense::kv_groups;
use pagedraft_model::{ActivationType, AnyArena, AnyDevice, Dtype, Quantization, StepLimits};

use super::options::{DeviceRef, EngineOptions, ModelRef};
use crate::error::{EngineError, Result, bail};

/// The instruction set of an engine's kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// An instruction set of the CPU.
    Cpu(Isa),
    /// The architecture of a GPU as its compiler names it, and the GPU's own name.
    Gpu {
        /// The architecture, such as `sm_90a`.
        arch: String,
        /// The name, such as `NVIDIA H100 80GB HBM3`.
        name: String,
    },
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(isa) => isa.fmt(f),
            Self::Gpu { arch, name } => write!(f, "{arch} ({name})"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Cpu(Isa),
    Cuda,
}

/// Where a device keeps its KV, and which device it runs beside.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The memory of all KV groups.
    pub arena: &'a AnyArena,
    /// The groups of the arena that are the model's groups 0, 1, ..
    pub groups: &'a [GroupId],
    /// The GPU, if it runs on one.
    pub gpu: Option<&'a Gpu>,
    /// A device that it shares threads with.
    pub beside: Option<&'a AnyDevice>,
}

/// Where a model runs, and in which types.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    target: Target,
    dtype: Dtype,
    quantization: Quantization,
    kv: KvStorage,
    block_size: u32,
    threads: usize,
    deterministic: bool,
    /// The greatest length of a sequence, if it was asked for.
    max_model_len: Option<u32>,
}

impl Placement {
    /// Places the model as the options ask. `auto` takes a GPU if there is one with kernels for the model
    /// and its draft model. If it does not, the reason is returned too.
    pub fn new(
        options: &EngineOptions,
        config: &ModelConfig,
        draft: Option<(&ModelRef, &ModelConfig)>,
    ) -> Result<(Self, Option<String>)> {
        let isa = options
            .isa
            .unwrap_or_else(Isa::detect)
            .require()
            .map_err(|e| EngineError::from(e).into_input())?;
        let on = |target| Self::on(target, options, config);
        let plain = |config| quantization(options, config) == Quantization::None;
        let all_plain = plain(config) && draft.is_none_or(|(_, config)| plain(config));
        if options.activations == Some(ActivationType::F32) && all_plain {
            let error = "--activations f32: no weights of 8 or 4 bits are multiplied here";
            return Err(EngineError::input_hint(error, "add --quantization int8, or leave the flag out"));
        }
        match options.device {
            DeviceRef::Cpu => Ok((on(Target::Cpu(isa)), None)),
            DeviceRef::Cuda => {
                cuda::probe().map_err(|e| {
                    let error = EngineError::from(e).context("--device cuda: there is no GPU to run on");
                    error.into_input().hint("--device cpu, or auto to take a GPU where there is one")
                })?;
                let placement = on(Target::Cuda);
                if let Some(why) = placement.refused_by_gpu() {
                    return Err(EngineError::input_hint(why, "--device cpu, or --quantization none"));
                }
                placement.check(config)?;
                Ok((placement, None))
            }
            DeviceRef::Auto => {
                let placement = on(Target::Cuda);
                let has_kernels = |placement: Self, config: &ModelConfig| {
                    if let Some(why) = placement.refused_by_gpu() {
                        return Err(why.to_owned());
                    }
                    cuda::check(
                        config,
                        placement.dtype,
                        placement.block_size,
                        placement.max_model_len(config),
                    )
                    .map_err(|why| why.to_string())
                };
                let possible = (cuda::probe().map_err(|why| why.to_string()))
                    .and_then(|()| has_kernels(placement, config))
                    .and_then(|()| {
                        let Some((model, config)) = draft else { return Ok(()) };
                        has_kernels(Self::on(Target::Cuda, options, config), config)
                            .map_err(|why| format!("the draft {model}: {why}"))
                    });
                Ok(match possible {
                    Ok(()) => (placement, None),
                    Err(why) => (on(Target::Cpu(isa)), Some(why)),
                })
            }
        }
    }

    /// The placement of another model beside this one.
    pub fn beside(&self, options: &EngineOptions, config: &ModelConfig) -> Result<Self> {
        let placement = Self::on(self.target, options, config);
        placement.check(config)?;
        Ok(placement)
    }

    fn on(target: Target, options: &EngineOptions, config: &ModelConfig) -> Self {
        let own = match target {
            Target::Cpu(_) => config.torch_dtype,
            Target::Cuda => cuda::default_dtype(config),
        };
        Self {
            target,
            dtype: options.dtype.unwrap_or(own),
            quantization: quantization(options, config),
            kv: options.kv,
            block_size: options.block_size,
            threads: options.threads,
            deterministic: options.deterministic,
            max_model_len: options.max_model_len,
        }
    }

    /// The greatest length of a sequence.
    fn max_model_len(&self, config: &ModelConfig) -> usize {
        self.max_model_len.map_or(config.max_position_embeddings, |asked| asked as usize)
    }

    fn check(&self, config: &ModelConfig) -> Result<()> {
        match self.target {
            Target::Cpu(_) => Ok(()),
            Target::Cuda => cuda::check(config, self.dtype, self.block_size, self.max_model_len(config))
                .map_err(|e| EngineError::from(e).into_input()),
        }
    }

    /// The type of weights, and of KV unless something else is said.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// How the matrices of the layers are quantised.
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// Why the model cannot be on a GPU, if its weights are quantised.
    fn refused_by_gpu(&self) -> Option<&'static str> {
        (self.quantization != Quantization::None).then_some(
            "weights of 8 or 4 bits are multiplied on the CPU alone: the GPU's kernels have no such product",
        )
    }

    /// Whether it is on a GPU.
    pub fn is_gpu(&self) -> bool {
        matches!(self.target, Target::Cuda)
    }

    /// The bytes that a token's keys and values take in one layer.
    pub fn token_bytes(&self, config: &ModelConfig) -> Result<usize> {
        Ok(self.part_bytes(config)? / self.block_size as usize)
    }

    /// The bytes of a KV block, all layers together.
    pub fn block_bytes(&self, config: &ModelConfig) -> Result<u128> {
        if config.dsa.is_some() {
            let groups = self.kv_groups(config, self.max_model_len(config))?;
            let token: u128 = groups.iter().map(|group| group.bytes_per_token() as u128).sum();
            return Ok(token * u128::from(self.block_size));
        }
        Ok(self.part_bytes(config)? as u128 * config.num_layers as u128)
    }

    /// The KV groups of a model, for sequences of up to `max_model_len` tokens.
    pub fn kv_groups(&self, config: &ModelConfig, max_model_len: usize) -> Result<Vec<KvGroup>> {
        match self.target {
            Target::Cpu(_) => {
                self.refuse_fp8()?;
                CpuDevice::kv_groups(config, self.dtype, self.block_size, max_model_len)
                    .map_err(|e| EngineError::from(e).into_input())
            }
            Target::Cuda => Ok(kv_groups(&config.windows, max_model_len, self.token_bytes(config)?)),
        }
    }

    /// The KV groups of a model that is cut behind the layers `cuts`, on the CPU.
    pub fn cut_groups(&self, config: &ModelConfig, cuts: &[u16]) -> Result<Vec<KvGroup>> {
        self.refuse_fp8()?;
        CpuDevice::cut_groups(config, self.dtype, self.block_size, cuts)
            .map_err(|e| EngineError::from(e).into_input())
    }

    /// Refuses an 8-bit KV cache on the CPU.
    fn refuse_fp8(&self) -> Result<()> {
        if self.kv == KvStorage::Fp8 {
            let error = "--kv-cache-dtype fp8: the CPU's kernels have no 8-bit KV cache";
            return Err(EngineError::input_hint(error, "leave the flag out, or run on a GPU"));
        }
        Ok(())
    }

    fn part_bytes(&self, config: &ModelConfig) -> Result<usize> {
        Ok(match self.target {
            Target::Cpu(_) => {
                self.refuse_fp8()?;
                CpuDevice::kv_layout(config, self.dtype, self.block_size)
                    .map_err(|e| EngineError::from(e).into_input())?
                    .block_bytes()
            }
            Target::Cuda => cuda::part_bytes(config, self.dtype, self.kv, self.block_size),
        })
    }

    /// The GPU, if it is on one.
    pub fn gpu(&self) -> Result<Option<Gpu>> {
        Ok(if self.is_gpu() { Some(Gpu::open()?) } else { None })
    }

    /// The memory of a GPU that a model takes, with `kv_cache` bytes for the KV arena.
    pub fn need(
        &self,
        config: &ModelConfig,
        kv_cache: u64,
        limits: StepLimits,
        gpu: &Gpu,
    ) -> Result<MemoryNeed> {
        Ok(MemoryNeed::of(config, &self.cuda_options(limits), kv_cache, gpu.multiprocessors())?)
    }

    fn cuda_options(&self, limits: StepLimits) -> CudaOptions {
        CudaOptions {
            dtype: self.dtype,
            kv: self.kv,
            block_size: self.block_size,
            token_rows: limits.token_rows,
            logit_rows: limits.logit_rows,
            max_model_len: limits.max_model_len,
            deterministic: self.deterministic,
            overlap: false,
        }
    }

    /// Opens the device, which keeps its KV where `place` says.
    pub fn open(&self, config: &ModelConfig, limits: StepLimits, place: Place<'_>) -> Result<AnyDevice> {
        let Place { arena, groups, gpu, beside } = place;
        match (self.target, arena) {
            (Target::Cpu(isa), AnyArena::Cpu(arena)) => {
                let options =
                    CpuOptions { isa, threads: self.threads, dtype: self.dtype, block_size: self.block_size };
                let mut cpu = match beside {
                    Some(AnyDevice::Cpu(other)) => other.beside(&options, arena, groups)?,
                    _ => CpuDevice::new(&options, arena, groups)?,
                };
                cpu.quantise(self.quantization);
                Ok(AnyDevice::Cpu(Box::new(cpu)))
            }
            (Target::Cuda, AnyArena::Cuda(arena)) => {
                let gpu = gpu.ok_or_else(|| EngineError::failed("there is no GPU to open a device on"))?;
                let group = groups.first().copied().unwrap_or_default();
                let options = self.cuda_options(limits);
                Ok(AnyDevice::Cuda(Box::new(CudaDevice::open_on(gpu, &options, config, arena, group)?)))
            }
            _ => bail!("the KV arena and the device lie on different machines"),
        }
    }
}

/// How a model's matrices are quantised: as the options say, or as the checkpoint is.
fn quantization(options: &EngineOptions, config: &ModelConfig) -> Quantization {
    let own = match config.stored_weights {
        StoredWeights::Plain => Quantization::None,
        StoredWeights::Int8 => Quantization::Int8(ActivationType::Int8),
        StoredWeights::Gguf => Quantization::Gguf(ActivationType::Int8),
    };
    match (options.quantization.unwrap_or(own), options.activations) {
        (Quantization::Int8(_), Some(activations)) => Quantization::Int8(activations),
        (Quantization::Gguf(_), Some(activations)) => Quantization::Gguf(activations),
        (other, _) => other,
    }
}

/// The instruction set of a device's kernels.
pub(super) fn instruction_set(device: &AnyDevice) -> InstructionSet {
    match device {
        AnyDevice::Cpu(cpu) => InstructionSet::Cpu(cpu.isa()),
        AnyDevice::Cuda(cuda) => {
            InstructionSet::Gpu { arch: cuda.gpu().arch(), name: cuda.gpu().name().to_owned() }
        }
    }
}
