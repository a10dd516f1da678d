//! The models that are timed, with weights drawn from a seed.

use std::sync::OnceLock;

use pagedraft_block_manager::{Arena, BlockSize, GroupId};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cuda::{CudaArena, CudaDevice, CudaOptions, Gpu, KvStorage, part_bytes};
use pagedraft_model::dense::kv_groups;
use pagedraft_model::{CaptureSizes, Dtype, Runner, StepLimits};

use crate::data::fill;

/// With `--small`, the sections run on a tiny model with few tokens, so that the bench itself can be tried with the
/// emulator.
pub fn small() -> bool {
    static SMALL: OnceLock<bool> = OnceLock::new();
    *SMALL.get_or_init(|| std::env::args().any(|word| word == "--small"))
}

/// A number of tokens or sequences. It is reduced with `--small`.
pub fn scaled(n: u32) -> u32 {
    if small() { n.div_ceil(16) } else { n }
}

const TINY: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 160, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#;

/// A model's name and its `config.json`.
pub struct Shape {
    pub name: &'static str,
    config: &'static str,
}

pub const QWEN3_0_6B: Shape = Shape {
    name: "0.6B",
    config: r#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#,
};

pub const LLAMA_8B: Shape = Shape {
    name: "8B",
    config: r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16"}"#,
};

/// One layer of [`LLAMA_8B`], to measure its attention.
pub const ONE_LAYER: Shape = Shape {
    name: "one layer of 8B",
    config: r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 1024, "hidden_size": 4096,
        "intermediate_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#,
};

/// The room and the options that a device of the bench has.
#[derive(Clone, Copy)]
pub struct Room {
    pub sequences: u32,
    pub length: u32,
    pub token_rows: u32,
    pub deterministic: bool,
    pub overlap: bool,
}

/// Opens a device on the GPU for a model, with a KV arena of `num_blocks` blocks of its own.
pub fn open(config: &ModelConfig, options: &CudaOptions, num_blocks: u32) -> CudaDevice {
    let bytes = part_bytes(config, options.dtype, options.kv, options.block_size);
    let per_token = bytes / options.block_size as usize;
    let groups = kv_groups(&config.windows, options.max_model_len, per_token);
    let size = BlockSize::new(options.block_size).expect("a block size");
    let plan = Arena::plan(size, num_blocks, &groups).expect("a plan");
    let gpu = Gpu::open().expect("a GPU");
    let arena = CudaArena::open(&gpu, &plan).expect("memory");
    CudaDevice::open_on(&gpu, options, config, &arena, GroupId(0)).expect("a device")
}

impl Shape {
    /// The text of the model's `config.json`.
    pub fn text(&self) -> &'static str {
        if small() { TINY } else { self.config }
    }

    pub fn config(&self) -> ModelConfig {
        ModelConfig::parse("config.json".as_ref(), self.text().as_bytes()).expect("a configuration")
    }

    pub fn options(&self, room: Room) -> CudaOptions {
        CudaOptions {
            dtype: Dtype::Bf16,
            kv: KvStorage::Model,
            block_size: 16,
            token_rows: room.token_rows as usize,
            logit_rows: (room.token_rows as usize).min(512),
            max_model_len: room.length as usize,
            deterministic: room.deterministic,
            overlap: room.overlap,
        }
    }

    /// The model on the GPU with a filled KV cache. It has a graph for each of these numbers of token rows and each query
    /// length up to `longest`.
    pub fn open(&self, room: Room, graphs: &[u32], longest: u32) -> Runner<CudaDevice> {
        let (config, options) = (self.config(), self.options(room));
        let num_blocks = room.sequences * room.length.div_ceil(16);
        let device = open(&config, &options, num_blocks);
        let limits = StepLimits {
            token_rows: options.token_rows,
            logit_rows: options.logit_rows,
            max_model_len: options.max_model_len,
        };
        let mut runner = Runner::load(device, &Checkpoint::dummy(config, 0), limits).expect("a model");
        let device = runner.device_mut();
        let (cache, blocks) = (device.cache(), num_blocks as usize);
        let bytes = device.geometry().block_stride() * blocks;
        fill(device.backend(), cache, bytes);
        if !graphs.is_empty() {
            let report =
                runner.capture(&CaptureSizes::new(graphs.to_vec(), (1..=longest).collect())).expect("graphs");
            println!(
                "{}: {} graphs in {:.2} s, {:.1} MB",
                self.name,
                report.graphs,
                report.elapsed.as_secs_f64(),
                report.bytes as f64 / 1e6
            );
        }
        runner
    }
}
