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
    /// No speculation, n-grams and both scorers, eager and on graphs, on the same requests
    ///
    /// Eight runs, interleaved: no speculation, n-gram look-up, and the proposer of --draft (default: builtin:draft for
    /// builtin:target, else ngram) scored by batch expansion and by MQA, each eager and on graphs. --scorer is that of the
    /// n-gram runs; --enforce-eager changes nothing. Exits 1 when a token, a hidden state or a logit of any run is not, bit
    /// by bit, that of the plain eager one.
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
