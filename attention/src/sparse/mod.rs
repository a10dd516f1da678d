//! Sparse attention over a latent cache (DeepSeek-V3.2's DSA) on the CPU.
//!
//! Two calls make the attention of a layer. [`SelectCall`] gives each query token the list of the keys that its indexer scores
//! highest, exactly and in ascending order. [`LatentCall`] attends over such a list: keys are latents that all heads share, and
//! queries have been carried into their space (the *absorbed* form of MLA).
//!
//! Both work on token rows: [`SparseRows::plan`] finds for each row of a step which keys it sees. Prefill, chunk, decode and
//! verify rows take one path, so a row's bits do not depend on which of them it is. What is computed is written out in
//! [`mod@reference`]; the kernels give these very bits.
//!
//! Neither call holds a matrix of rows times keys. Scores are made 64 keys at a time and go into a [selection](Candidates)
//! that keeps at most twice the keys to be chosen. A row that sees no more keys than may be chosen takes all of them, and
//! scores are computed only where they are kept.

mod candidates;
pub mod fp8;
mod index_scores;
mod latent_call;
mod latent_row;
mod latent_tile;
pub mod reference;
mod rows;
mod select_call;
mod selection;
mod vector_layer;

pub use candidates::Candidates;
pub use latent_call::{LatentCall, LatentScores, LatentScratch, LatentShape};
pub use rows::{SparseRow, SparseRows};
pub use select_call::{IndexShape, SelectCall, SelectScratch};
pub use selection::{ChosenScores, KeepScores, SelectionView};
pub use vector_layer::{VectorDtype, VectorLayer, VectorLayout};

/// Keys of a tile: entries of the list in attention, keys in a row when scores are made.
pub(crate) const TILE: usize = 64;
