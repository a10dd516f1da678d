//! Step metadata, the layout of the paged KV cache, and the attention kernels of the CPU; those of CUDA are in [`cuda`].
//!
//! # What it promises
//!
//! - [`AttentionMetadata`] has the names and values of FlashAttention-style metadata, serialises as
//!   a trace has it, and [`AttentionMetadata::check`] re-derives it. [`MetadataBuilder`] builds it without a
//!   heap allocation once its buffers have grown.
//! - A query's output is a function of the query, the keys and values it sees as they are stored, the scale
//!   and the arithmetic of the instruction set (fused or not). Which blocks hold them, block size,
//!   batch mates, chunks, scorer, threads and work items show in no bit. What is computed is written
//!   out in [`mod@reference`]; the kernels are tested against it bit for bit.
//! - Keys that a query doesn't see (later ones, or those behind a sliding window) are excluded, not weighed
//!   with 0: a NaN in a stale slot, a later
//!   token or a foreign block cannot leak. Pad rows are neither read nor written.
//! - Everything the kernels rely on is checked when a step is planned ([`WorkList::plan`]), once for all
//!   layers.
//!
//! - [Sparse attention](sparse) over latents keeps the same promises: exact selections, one path for every kind of row.
//!
//! # What it doesn't
//!
//! - It has no threads: callers run [`AttentionCall::run_item`] on theirs.
//! - It guards no slot: who writes which is the block manager's business.
//! - Weights below e^-87 of the greatest are 1e-38, not 0. A query or key that is itself NaN or infinite
//!   gives an unspecified output in its own row and head.
//! - One context is not split over threads: a decode at batch 1 has as many items as key heads.
//!
//! # What things cost
//!
//! Metadata: a copy of the tables and an add a token (4 µs for 256 rows of 36 blocks). Attention: K and
//! V of a row are read once for up to 128 query rows (tokens times heads of a key head), and each
//! pair of query row and key costs 2 multiply-adds a value and an exponential. Storing: a strided
//! 16-bit store a key value. Scratch: about 140 KiB a thread.
//!
//! # Example
//!
//! ```
//! use pagedraft_attention::isa::Isa;
//! use pagedraft_attention::{
//!     AttentionCall, AttentionScratch, KvDtype, KvLayer, KvLayout, MaskKind, MetadataBuilder, TokenRows,
//!     WorkList,
//! };
//! use pagedraft_block_manager::BlockId;
//!
//! // A cache of 8 blocks of 16 tokens: one key head of 4 values.
//! let layout = KvLayout::new(KvDtype::Bf16, 16, 1, 4)?;
//! let mut memory = vec![0u64; 8 * layout.block_bytes() / 8];
//! // SAFETY: the memory outlives the view and is used through it only.
//! let layer = unsafe { KvLayer::new(memory.as_mut_ptr().cast(), layout.block_bytes(), 8, layout) };
//!
//! // A prompt of three tokens in block 5, read by two query heads.
//! let mut builder = MetadataBuilder::new(16)?;
//! builder.begin();
//! builder.push_row(0, 3, &[BlockId(5)], MaskKind::Causal)?;
//! let metadata = builder.finish();
//! assert_eq!(metadata.slot_mapping, [80, 81, 82]);
//!
//! let (k, v) = ([0.5f32; 3 * 4], [0.25f32; 3 * 4]);
//! let (q, mut out) = ([1.0f32; 3 * 8], [0.0f32; 3 * 8]);
//! let isa = Isa::detect();
//! // SAFETY: one thread.
//! unsafe { layer.write(isa, &metadata.slot_mapping, TokenRows::new(&k, 4), TokenRows::new(&v, 4))? };
//!
//! let mut work = WorkList::new();
//! work.plan(metadata, 2, &layer)?;
//! let call =
//!     AttentionCall::new(isa, metadata, &work, layer, 0.5, TokenRows::new(&q, 8), &mut out, 8)?;
//! // SAFETY: the list was planned from this metadata, the keys are stored, one thread runs.
//! unsafe { call.run_all(&mut AttentionScratch::new()) };
//! assert!(out.iter().all(|x| (x - 0.25).abs() < 1e-6), "equal values are their own mean");
//! # Ok::<(), pagedraft_attention::AttentionError>(())
//! ```
#![deny(missing_docs)]

pub mod block_tables;
pub mod builder;
pub mod cuda;
pub mod error;
pub mod isa;
pub mod kernel;
pub mod kv_layer;
pub mod kv_layout;
pub mod lanes;
pub mod metadata;
pub mod metadata_row;
pub mod reference;
pub mod sparse;
pub mod token_rows;

pub use block_tables::BlockTables;
pub use builder::MetadataBuilder;
pub use error::AttentionError;
pub use kernel::{AttentionCall, AttentionScratch, WorkList};
pub use kv_layer::KvLayer;
pub use kv_layout::{KvDtype, KvLayout};
pub use metadata::{AttentionMetadata, MaskKind, PAD_SLOT};
pub use metadata_row::MetadataRow;
pub use token_rows::TokenRows;
