//! Runs requests through the engine in real time.
//!
//! The engine's own thread accepts each request when its time has come, between two steps. A client on a
//! thread of its own would need a core, and all cores belong to the engine. Requests are prepared ahead of
//! their time. Latencies count from their intended arrivals, however late a step lets the engine look.
//!
//! `replay` runs workloads in this loop, and `bench calibrate` measures steps in it. A simulation is
//! therefore told the cost of a step in the same loop.

mod before;
mod clock;
mod observe;
mod run;
mod seats;
mod serve;

pub use self::before::Before;
pub use self::clock::Clock;
pub use self::observe::{LiveStep, Observe};
pub use self::seats::Seats;
pub use self::serve::{AHEAD, Stream, prepare};
