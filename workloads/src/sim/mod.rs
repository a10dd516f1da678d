//! Virtual time: the engine's own scheduler and block manager, steps that cost what a model of costs says, no sleeping.

mod client;
mod cost_file;
mod cost_fit;
mod cost_model;
mod drafting;
mod draws;
mod engine;
mod event_log;
mod freezes;
mod graphs;
mod in_flight;
mod least_squares;
mod observer;
mod options;
mod router;
mod row_sums;
mod simulation;
mod step_trace;

pub use cost_fit::{CostFit, FitQuality, MeasuredStep, fit};
pub use cost_model::{Acceptance, CostModel, DraftCost, Freeze, Overhead, StepCost, StepShape};
pub use graphs::GraphShape;
pub use observer::{Observer, SimEvent};
pub use options::{SimOptions, SimSpeculation};
pub use router::Router;
pub use simulation::{SimReport, simulate};
