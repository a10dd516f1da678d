//! The metadata of a step, the layout of the paged KV cache, and the attention kernels for the CPU. Those
//! for CUDA are in [`cuda`].
//!
//! # What it promises
//!
//! - [`AttentionMetadata`] has the names and values of FlashAttention-style metadata and serialises as a
//!   trace has it. [`AttentionMetadata::check`] re-derives its fields. [`MetadataBuilder`] builds it without
//!   a heap allocation once its buffers have grown.
//! - A query's output is a function of the query, the keys and values it sees as they are stored, the scale,
//!   and whether multiply-adds are fused. It does not depend, to the bit, on which blocks hold the keys, on
//!   the block size, batch mates, chunks, scorer, threads or work items. What is computed is written
//!   out in [`mod@reference`]; the kernels are tested against it bit for bit.
//! - Keys that a query doesn't see (later ones, or those behind a sliding window) are excluded rather than
//!   weighed with 0. A NaN in a stale slot, a later token or a foreign block therefore cannot leak. Pad rows
//!   are neither read nor written.
//! - Everything the kernels rely on is checked when a step is planned ([`WorkList::plan`]), once for all
//!   layers.
//!
//! - [Sparse attention](sparse) over latents keeps the same promises: exact selections, one path for every kind of row.
//!
//! # What it doesn't promise
//!
//! - It has no threads: callers run [`AttentionCall::run_item`] on theirs.
//! - It does not guard slots: the block manager decides who writes which slot.
//! - A weight below e^-87 of the greatest one is computed as 1e-38, not 0. A query or key that is itself NaN
//!   or infinite gives an unspecified output in its own row and head.
//! - One context is not split over threads: a decode at batch size 1 has as many items as key heads.
//!
//! # What things cost
//!
//! Building metadata copies the tables and does one addition per token (4 µs for 256 rows of 36 blocks).
//! Attention reads K and V of a row once for up to 128 query rows (tokens times heads of a key head), and
//! each pair of a query row and a key costs 2 multiply-adds per value and one exponential. Storing a token
//! costs a strided 16-bit store per value of its key. Scratch memory is about 140 KiB per thread.
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
pub mod mass;
pub mod metadata;
mod metadata_check;
pub mod metadata_row;
pub mod reference;
pub mod sparse;
pub mod token_rows;
mod window;

pub use block_tables::BlockTables;
pub use builder::MetadataBuilder;
pub use error::AttentionError;
pub use kernel::{AttentionCall, AttentionScratch, WorkList};
pub use kv_layer::KvLayer;
pub use kv_layout::{KvDtype, KvLayout};
pub use metadata::{AttentionMetadata, MaskKind, PAD_SLOT};
pub use metadata_row::MetadataRow;
pub use token_rows::TokenRows;
