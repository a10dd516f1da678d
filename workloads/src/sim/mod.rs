//! Virtual time: the engine's own scheduler and block manager, steps that cost what a model of costs says, no sleeping.

mod client;
mod cost_file;
mod cost_model;
mod drafting;
mod draws;
mod engine;
mod event_log;
mod freezes;
mod graphs;
mod observer;
mod options;
mod router;
mod simulation;

pub use cost_model::{Acceptance, CostModel, DraftCost, Freeze, Overhead, StepCost, StepShape};
pub use graphs::GraphShape;
pub use observer::{Observer, SimEvent};
pub use options::{SimOptions, SimSpeculation};
pub use router::Router;
pub use simulation::{SimReport, simulate};
