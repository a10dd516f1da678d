//! The tensors of a step, as they were computed.
//!
//! A traced step runs operation by operation, with the bits of any other run, and a [`TensorTracer`] looks at the buffers behind the
//! operations. It writes an [event](TensorEvent) for each request at each place, under the names that the first program with token
//! skip gave them: `ATTN_ENTRY`, `ROPE_*`, `KV_CACHE_*`, `SKIP_*`. Events of ours are `ATTN_OUTPUT`, `LAYER_OUTPUT`, `INDEX_KEYS` and
//! `LOGITS`.
//!
//! The layers of the target are traced, not those of a draft model.

mod event;
mod rows;
mod sites;
mod stats;
mod tracer;

pub use event::{Fact, TensorEvent, TracedTensor};
pub use stats::TensorStats;
pub use tracer::{TensorLevel, TensorTracer, TensorTracing};
