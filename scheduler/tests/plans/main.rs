//! The scheduler: against a reference, by its rules, and in simulated time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

mod draft_lengths;
mod firewall;
mod forks;
mod never_worse;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../rig/mod.rs"]
mod rig;
mod rules;
#[path = "../sim/mod.rs"]
mod sim;
mod twin;
