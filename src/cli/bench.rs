//! `pagedraft bench`.

use clap::{Parser, Subcommand};

use super::Ended;
use super::compare::Compare;
use super::latency::Latency;
use super::scheduler_bench::SchedulerBench;

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Latency of a batch of requests, from its first step to its last token
    Latency(Box<Latency>),
    /// Latency without speculation, with n-grams and with both scorers, eager and on graphs, on the same requests: are the
    /// tokens and the logits the same, and what is faster?
    Compare(Box<Compare>),
    /// Scheduler, block manager and metadata without a model
    Scheduler(SchedulerBench),
}

impl Bench {
    pub fn run(&self) -> anyhow::Result<Ended> {
        match self {
            Self::Latency(latency) => latency.run(),
            Self::Compare(compare) => compare.run(),
            Self::Scheduler(scheduler) => scheduler.run(),
        }
    }
}

/// What the program does without arguments: `bench latency` with its defaults.
pub fn main_job() -> anyhow::Result<Ended> {
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        latency: Latency,
    }
    Defaults::try_parse_from(["pagedraft"])?.latency.run()
}
