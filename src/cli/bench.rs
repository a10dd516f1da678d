//! `pagedraft bench`.

use clap::{Parser, Subcommand};

use super::Ended;
use super::latency::Latency;
use super::scheduler_bench::SchedulerBench;

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Latency of a batch of requests, from its first step to its last token
    Latency(Box<Latency>),
    /// Scheduler, block manager and metadata without a model
    Scheduler(SchedulerBench),
}

impl Bench {
    pub fn run(&self) -> anyhow::Result<Ended> {
        match self {
            Self::Latency(latency) => latency.run(),
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
