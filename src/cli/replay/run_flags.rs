//! The flags that say what runs a workload, and which results are kept.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::anyhow;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use pagedraft::exit::usage_hint;
use pagedraft_workloads::measures::Slo;
use pagedraft_workloads::sim::Router;

use super::endpoint::EndpointFlags;
use super::numbers::named;
use super::slo_flag::slo;
use crate::cli::stamp::stamp;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct RunFlags {
    /// `real`: this engine in real time; `sim`: its scheduler in virtual time, by a model of what steps cost
    #[arg(long, value_enum, default_value = "real")]
    pub executor: ExecutorName,
    /// `sim`: what steps cost, as `bench calibrate` writes it (default: a model that is built in)
    #[arg(long, value_name = "FILE")]
    pub cost_model: Option<PathBuf>,
    /// Engines under the one stream of requests (default 1); real ones share the CPU threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub replicas: Option<u32>,
    /// Which of several engines gets a request (default: each in turn)
    #[arg(long, value_name = "ROUTER", value_parser = PossibleValuesParser::new(["round-robin", "least-loaded", "prefix-aware"])
        .try_map(|name| named::<Router>(&name)))]
    pub router: Option<Router>,
    /// Goals of latency; the summary has the rate of requests that meet them all
    #[arg(long, value_name = "ttft=MS,tpot=MS,e2el=MS", value_parser = slo)]
    pub slo: Option<Slo>,
    /// Keep what was generated: token ids and text in requests.jsonl
    #[arg(long)]
    pub save_outputs: bool,
    /// Directory of the run (default: runs/WORKLOAD-DATE-TIME)
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in --out, behind its last finished request; the others keep their intended arrivals, from which latencies count
    #[arg(long, requires = "out")]
    pub resume: bool,
    /// `real`: write no trace of the steps
    #[arg(long, conflicts_with = "trace_steps")]
    no_trace: bool,
    /// `sim`: write a trace of the steps
    #[arg(long)]
    trace_steps: bool,
    /// Make no page of the run (`pagedraft report` makes it later)
    #[arg(long)]
    no_report: bool,
    /// Write the summary to this file too
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    #[command(flatten)]
    pub endpoint: EndpointFlags,
}

/// Who runs the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExecutorName {
    /// The model
    Real,
    /// A model of its costs
    Sim,
}

impl RunFlags {
    pub fn simulates(&self) -> bool {
        self.executor == ExecutorName::Sim
    }

    /// Whether a server runs the requests, and not this program.
    pub fn asks_a_server(&self) -> bool {
        self.endpoint.endpoint.is_some()
    }

    /// Whether requests are followed token by token, and not step by step: by a server's streams, or those of several engines.
    pub fn streams(&self) -> bool {
        self.asks_a_server() || (!self.simulates() && self.replicas.unwrap_or(1) > 1)
    }

    /// Whether a router chooses engines.
    pub fn routes(&self) -> bool {
        self.simulates() || (!self.asks_a_server() && self.replicas.is_some())
    }

    /// The executor's name: `real`, `sim`, or `endpoint` if a server runs the requests.
    pub fn executor_name(&self) -> &'static str {
        match self.executor {
            _ if self.asks_a_server() => "endpoint",
            ExecutorName::Real => "real",
            ExecutorName::Sim => "sim",
        }
    }

    /// Whether the run has a trace of its steps.
    pub fn traces(&self) -> bool {
        match self.executor {
            ExecutorName::Real => !self.no_trace && !self.asks_a_server(),
            ExecutorName::Sim => self.trace_steps,
        }
    }

    /// Whether a page is made of the run.
    pub fn reports(&self) -> bool {
        !self.no_report
    }

    /// The latency goals; none if nothing was said.
    pub fn goals(&self) -> Slo {
        self.slo.unwrap_or_default()
    }

    /// The directory of the run.
    pub fn directory(&self, workload: &str) -> PathBuf {
        let named = || Path::new("runs").join(stamp(workload, SystemTime::now()));
        self.out.clone().unwrap_or_else(named)
    }

    /// Refuses flags that only a simulation has in a real run, and those that a simulation does not have.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.simulates() {
            if self.save_outputs {
                return Err(usage_hint(
                    anyhow!("--save-outputs: a simulated engine generates nothing that could be kept"),
                    "leave it out, or use --executor real",
                ));
            }
            return Ok(());
        }
        if self.cost_model.is_some() {
            return Err(usage_hint(
                anyhow!("--cost-model is for simulated engines, and this run is a real one"),
                "add --executor sim, or leave it out",
            ));
        }
        if self.router.is_some() && self.replicas.unwrap_or(1) == 1 {
            return Err(usage_hint(
                anyhow!("--router: there is one engine, which gets every request"),
                "say how many there are with --replicas, or leave it out",
            ));
        }
        Ok(())
    }
}
