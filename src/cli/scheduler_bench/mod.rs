//! `pagedraft bench scheduler`: scheduler, block manager and metadata builder without a model.

mod plan_inputs;
mod samples;
mod stated;
mod steady;
mod workload;

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use pagedraft::exit::usage;

use self::steady::Steady;
use self::workload::WorkloadRun;
use super::engine_flags::block_size;
use super::output_file::OutputFile;
use super::{Ended, stdout};

#[derive(Clone, Debug, Args)]
pub struct SchedulerBench {
    /// Requests of 512 prompt tokens in decode
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    running: u32,
    /// Steps that are timed
    #[arg(long, value_name = "S", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Drafts that may follow each sequence's last token
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=64))]
    num_speculative_tokens: u16,
    /// Tokens a KV block: 16, 32 or 64
    #[arg(long, value_name = "TOKENS", default_value = "16", value_parser = block_size)]
    block_size: u32,
    /// Requests end, and others take their places
    #[arg(long)]
    churn: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
    /// Drive the scheduler with these requests, whose outputs are stated
    #[arg(long, value_name = "W.json", requires_all = ["config", "trace_out"], conflicts_with_all = ["running", "steps", "churn"])]
    workload: Option<PathBuf>,
    /// The scheduler's configuration for --workload
    #[arg(long, value_name = "C.json", requires = "workload")]
    config: Option<PathBuf>,
    /// Write the plans of --workload to this directory, as a trace
    #[arg(long, value_name = "DIR", requires = "workload")]
    trace_out: Option<PathBuf>,
}

impl SchedulerBench {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        let (text, json, ended) = match (&self.workload, &self.config, &self.trace_out) {
            (Some(workload), Some(config), Some(directory)) => {
                WorkloadRun { workload, config, directory }.run()?
            }
            (None, ..) => Steady {
                running: self.running,
                steps: self.steps,
                drafts: self.num_speculative_tokens,
                block_size: self.block_size,
                churn: self.churn,
            }
            .run()?,
            _ => return Err(usage(anyhow!("--workload needs --config and --trace-out"))),
        };
        if let Some(output) = &output {
            output.write(&format!("{json:#}\n"))?;
        }
        stdout::print(&text)?;
        Ok(ended)
    }
}
