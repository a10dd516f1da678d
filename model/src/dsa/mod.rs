//! Decoders with sparse attention over latents and with experts (DeepSeek-V3.2, GLM-5), written as operations.
//!
//! A layer is `x += attention(norm(x))`, `x += experts(norm(x))` (or one feed-forward half in the first layers). In
//! attention, queries and keys go through narrow *latents* (MLA). What is cached of a token is its normed latent and one
//! rotated key that all heads share. A query is carried into the space of the latents (*absorbed*): `q_c[h] = W_k[h]^T
//! q_n[h]`. So every kind of row, from prefill to verify, reads the same cache by the same operations, and has the same
//! bits.
//!
//! Which keys a query attends to is chosen by a small attention of its own, the *indexer*: see [`SparseOp::Select`]. Layers
//! may share the indexer of an earlier layer; they then own neither its weights nor its keys. KV is one group of two parts:
//! the latents of all layers, and the indexer keys of the layers that have an indexer. A model that is [cut](crate::cut) has such a
//! group for each run of layers.
//!
//! Formulas: DeepSeek-V3.2-Exp, `inference/model.py` (2025-11-17, with the indexer's rotation corrected). Indexer keys are
//! stored in the dtype of the cache, without the Hadamard rotation and the fp8 of the original.

mod decoder;
mod groups;
mod load;
mod op;

pub use decoder::SparseDecoder;
pub use groups::{kv_groups, parts, shapes};
pub use op::{FillMatrices, HeadColumns, MatrixStack, Rotation, Router, SparseOp};
