//! Pruned prefills: prompts of which only the tokens that matter go on, behind some layers of the model.
//!
//! A [`PruneSpec`] says behind which layers, how many tokens stay, which always stay, and who scores the others. [`Pruner`] applies it to
//! one request: it is the rule by which the executor thins the prompt. The counts follow from the spec and the prompt's length alone, so
//! that the scheduler knows them before anything is computed.

mod counts;
mod modules;
mod probe;
mod pruner;
mod simulated;
mod spec;
mod told;

pub use modules::Modules;
pub use probe::{LOOK_AHEAD, Probe};
pub use pruner::Pruner;
pub use simulated::SimulatedPruner;
pub use spec::{Positions, Preset, PruneChoice, PruneScorer, PruneSpec};
pub use told::{LazyProbe, Teller, Told};
