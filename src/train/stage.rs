//! The stages of a run: row lengths, steps, and what is learned.

use anyhow::{Context, bail};
use std::fmt;
use std::str::FromStr;

/// What a stage trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Dense attention; the indexers are left out.
    Dense,
    /// Dense attention, which the indexers learn to foretell.
    Index,
    /// Attention to what the indexers choose, and the indexers learn on that.
    Sparse,
}

/// Some steps of equal rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Tokens a row.
    pub time: usize,
    /// Steps.
    pub steps: u64,
    /// What is trained.
    pub kind: Kind,
}

impl FromStr for Stage {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "give LENGTH:STEPS:KIND, such as 128:1000:dense; kinds are dense, index and sparse";
        let mut parts = text.split(':');
        let (Some(time), Some(steps), Some(kind), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            bail!("{form}");
        };
        let kind = match kind {
            "dense" => Kind::Dense,
            "index" => Kind::Index,
            "sparse" => Kind::Sparse,
            other => bail!("{other:?} is no kind: {form}"),
        };
        let stage = Self { time: time.parse().context(form)?, steps: steps.parse().context(form)?, kind };
        // A statement and its question take less than 32 tokens.
        if stage.time < 32 {
            bail!("rows of {} tokens have no room for a question: give at least 32", stage.time);
        }
        Ok(stage)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Dense => "dense",
            Kind::Index => "index",
            Kind::Sparse => "sparse",
        };
        write!(f, "{}:{}:{kind}", self.time, self.steps)
    }
}
