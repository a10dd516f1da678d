//! Engines in virtual time, through the whole path: source, scheduler, recorder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod by_hand;
mod client;
mod determinism;
mod freezes;
mod replicas;
mod speculation;
mod timeline;
mod traced;
mod world;
