//! Reads what an OpenAI-compatible server sends for a completion: a stream of events, in pieces that are cut anywhere.
//!
//! `replay --endpoint` reads with it. It is public so that `fuzz/` can feed it bytes that no server would send.

mod answer;
mod failure;
mod server_sent;

pub use answer::Answer;
pub use failure::Failure;
pub use server_sent::{Events, TooLong};

/// The most of a server's text that an error tells, in characters.
const MOST_TOLD: usize = 300;

/// The beginning of a text that is told in an error.
#[must_use]
pub fn shortened(text: &str) -> String {
    let mut short: String = text.trim().chars().take(MOST_TOLD).collect();
    if short.len() < text.trim().len() {
        short.push_str(" ..");
    }
    short
}
