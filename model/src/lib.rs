//! Loads models and runs them: checkpoints, architectures, devices and execution.
//!
//! An [`Architecture`] (such as [`dense`]) says which KV groups it keeps, and writes its step as segments of operations
//! ([`Op`]) over the buffers of a [`Device`]. A [`Runner`] loads a [`checkpoint`](checkpoint::Checkpoint) onto a device and
//! runs steps. The devices are the CPU ([`cpu`]) and NVIDIA GPUs ([`cuda`]); [`AnyDevice`] is whichever was chosen when the
//! program started. The KV of all models of an engine lies in one arena of memory.
//!
//! # What this crate promises
//!
//! - **Batch invariance.** A logit is a function of the sequence's tokens, the model, the dtype and the instruction
//!   set. It has the same bits whatever other rows the step has, however the prompt was cut into steps, wherever its KV
//!   blocks lie, whatever their size, and whatever the number of threads.
//! - **No setting is ignored in silence.** If a checkpoint's configuration asks for something that is not implemented
//!   (another architecture, a rope scaling, an activation), the checkpoint is refused and the message names it.
//!
//! It does not promise the same bits on different instruction sets, because AMX and the portable kernels each add up in
//! an order of their own, nor in different versions of the engine.
//!
//! Weights are mapped into memory and packed once. Activations are f32, and weights and KV have the dtype that was
//! asked for. With bf16 and f16, the inputs of a matrix product are rounded to that type, on every instruction set.
//!
//! ```
//! use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
//! # fn main() -> Result<(), pagedraft_model::ModelError> {
//! let config = br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
//!     "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
//!     "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#;
//! let config = ModelConfig::parse("config.json".as_ref(), config)?;
//! assert_eq!(config.head_dim, 8);
//! let checkpoint = Checkpoint::dummy(config, 0); // weights drawn from a seed
//! assert_eq!(checkpoint.embedding()?.shape(), [32, 16]);
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod any_device;
mod architecture;
mod captured;
pub mod checkpoint;
mod choice;
pub mod cpu;
pub mod cuda;
pub mod cut;
pub mod dense;
mod device;
mod device_times;
pub mod dsa;
mod error;
mod graph;
mod kv;
mod layer_groups;
mod lfs_pointer;
mod observe;
mod quantization;
mod runner;
mod selected;
mod single_tokens;
mod step_inputs;
pub mod tiers;
pub mod tokenizer;

pub use any_device::{AnyArena, AnyDevice, AnyGraph};
pub use architecture::{Architecture, Attended, Indexed, Layered};
pub use checkpoint::Dtype;
pub use choice::{Choice, NO_CHOICE};
pub use dense::StepLimits;
pub use device::{BufferId, Device, IndexMass, Mass, Op, Precision, WriteMode};
pub use device_times::{DeviceTimes, Stage};
pub use error::ModelError;
pub use graph::{CaptureReport, CaptureSizes, Fallback, GraphKey, Ran, RunCounts};
pub use kv::{KvRef, KvRows, PartShape};
pub use observe::{Columns, Observer, Site};
pub use quantization::{ActivationType, Quantization};
pub use runner::Runner;
pub use selected::Selected;
pub use step_inputs::StepInputs;
