//! Step metadata, and the attention kernels.
#![deny(missing_docs)]
pub mod block_tables;
pub mod builder;
pub mod error;
pub mod isa;
pub mod kernel;
pub mod kv_layer;
pub mod kv_layout;
pub mod lanes;
pub mod metadata;
pub mod reference;
pub mod token_rows;

pub use block_tables::BlockTables;
pub use builder::MetadataBuilder;
pub use error::AttentionError;
pub use kernel::{AttentionCall, AttentionScratch, WorkList};
pub use kv_layer::KvLayer;
pub use kv_layout::{KvDtype, KvLayout};
pub use metadata::{AttentionMetadata, MaskKind, PAD_SLOT};
pub use token_rows::TokenRows;
