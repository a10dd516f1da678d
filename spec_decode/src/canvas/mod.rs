//! Canvases: output that is denoised block by block in place (LLaDA with Fast-dLLM's caches, and token skip).
//!
//! A canvas begins as masks behind the prompt. A *pass* over its present block runs the model; then those masks are filled whose
//! tokens are the most certain. The first pass of a block is full: it computes the prompt and the whole canvas. Later passes
//! compute what the scheduler's plan row says: everything again, the block and what is behind it, or the block alone, whose keys
//! and values are rewritten in place.
//!
//! With token skip a pass over a block runs in two segments. Behind the first one the [judge](judge) compares the states of each
//! token of the block with those of the pass before. Tokens that hardly changed are *stable*: they skip the later layers, and keep
//! their keys, values and last choice.
//!
//! The passes and their choices are those of Fast-dLLM (Wu et al., 2025), without its faults: no pass over a block that is full already,
//! no endless loop if the model predicts the mask, and any number of requests in a step.

mod candidate;
mod denoise;
mod denoising;
mod fills;
mod judge;
mod record;
mod state;
mod traced;
mod transfer;

pub use denoising::{Denoising, ForcedPass, Guard, Remasking, Skip, SkipPolicy, SkipStates};
pub use record::CanvasPass;
pub(crate) use state::Canvases;
