//! Virtual time: the engine's own scheduler and block manager, steps that cost what a model of costs says, no sleeping.

mod cost_file;
mod cost_model;
mod router;
mod simulation;

pub use cost_model::{Acceptance, CostModel, DraftCost, Freeze, Overhead, StepCost, StepShape};
pub use router::Router;
pub use simulation::{Observer, SimOptions, SimReport, SimSpeculation, simulate};
