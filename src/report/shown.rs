//! Which part of a trace the page shows step by step.

use std::str::FromStr;

/// A range of steps of a trace by their numbers: from `from` up to, but not including, `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The first step.
    pub from: u64,
    /// The step after the last one.
    pub to: u64,
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not A..B with step numbers A < B");
        let (from, to) = text.split_once("..").ok_or_else(bad)?;
        let number = |part: &str| part.trim().parse::<u64>().map_err(|_| bad());
        let steps = Self { from: number(from)?, to: number(to)? };
        if steps.from < steps.to { Ok(steps) } else { Err(bad()) }
    }
}

/// Which part of a trace is shown step by step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The steps in the block view; by default the first 10,000.
    pub steps: Option<Steps>,
    /// The engine, if the trace is of several; by default engine 0.
    pub replica: Option<u32>,
}
