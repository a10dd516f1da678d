//! `pagedraft bench`.

use clap::{Parser, Subcommand};

use super::Ended;
use super::calibrate::Calibrate;
use super::compare::Compare;
use super::infill::Infill;
use super::latency_flags::Latency;
use super::perplexity::Perplexity;
use super::prune_bench::PruneBench;
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
    /// A cost model for `replay --executor sim`, from measured steps of the real engine
    ///
    /// Runs requests of all sizes for some seconds, without drafts and with those of n-gram look-up, of synthetic drafts and
    /// of the model that --draft names, by both scorers, eager and on graphs. Prefix caching is on unless it is turned off, and
    /// with --trace-out the cost of a trace is part of what is measured: give the flags of the runs that are to be simulated.
    /// Every fourth run of steps is held out, and tells how good the model is.
    Calibrate(Box<Calibrate>),
    /// Dense and pruned prefills in turn: speed beside what the operations allow, KV memory, quality
    ///
    /// Each round runs the same prompt dense and in every way to prune, one request at a time, with outputs of one length. Figures are medians
    /// over the rounds; ratios are taken within a round. A model with a tokenizer and trained weights is judged too: by the perplexity of
    /// held-out text behind a pruned prompt, by RULER tasks, and, with --draft, by the drafts that are accepted.
    Prune(Box<PruneBench>),
    /// How well a model fills masks in a text, and what token skip changes about it
    ///
    /// Some tokens of held-out text are masked, and all are filled in one pass. Beside the model's share of right tokens stand that of the most
    /// frequent token, and that of a causal model which knows all tokens before the place, masked or not. With --decoder dual-cache-skip the
    /// masks are also filled pass by pass: with the dual cache, with token skip in the very same passes, and with token skip on its own.
    Infill(Box<Infill>),
    /// How well a model predicts a text: its perplexity
    ///
    /// The text is cut into pieces of one length. Each token of a piece but the first is predicted from those before it in the piece.
    Perplexity(Box<Perplexity>),
    /// Scheduler, block manager and metadata without a model
    Scheduler(SchedulerBench),
}

impl Bench {
    pub fn run(&self) -> anyhow::Result<Ended> {
        match self {
            Self::Latency(latency) => latency.run(),
            Self::Compare(compare) => compare.run(),
            Self::Calibrate(calibrate) => calibrate.run(),
            Self::Prune(prune) => prune.run(),
            Self::Infill(infill) => infill.run(),
            Self::Perplexity(perplexity) => perplexity.run(),
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
