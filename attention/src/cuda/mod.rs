//! The CUDA side of attention: the kernel sources, their shapes, and how the work of a step is planned.
//!
//! What the kernels compute and how they are launched is described in `cuda/README.md` beside the sources. Nothing here
//! needs a GPU.

pub mod nvrtc;
pub mod plan;
pub mod shape;
pub mod source;

pub use plan::{AttentionPlan, PlanBounds, PlanOptions};
pub use shape::{AttentionShape, Element};
pub use source::{HEADERS, Header, SOURCES, Source};
