//! `pagedraft report`.

use std::path::PathBuf;

use clap::Args;
use pagedraft::exit::usage;
use pagedraft::report::{self, Shown, Steps};
use pagedraft_workloads::run::REPORT_FILE;

use super::{Ended, stdout};

#[derive(Debug, Args)]
pub struct Report {
    /// Run directories (of replay), or what --trace-out wrote; figures of later ones are compared with the first
    #[arg(value_name = "DIR", required = true)]
    directories: Vec<PathBuf>,
    /// The page [default: report.html in the first directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Steps that the block view has, by their numbers, B left out [default: the first 10,000]
    #[arg(long, value_name = "A..B")]
    steps: Option<Steps>,
    /// Engine whose steps and blocks are shown, where a trace is of several (--replicas) [default: 0]
    #[arg(long, value_name = "N")]
    replica: Option<u32>,
}

impl Report {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let beside_the_first = || self.directories.first().map(|first| first.join(REPORT_FILE));
        let out = self.out.clone().or_else(beside_the_first).unwrap_or_else(|| REPORT_FILE.into());
        let shown = Shown { steps: self.steps, replica: self.replica };
        report::write_shown(&self.directories, &out, shown).map_err(usage)?;
        stdout::print(&format!("page in {}\n", out.display()))?;
        Ok(Ended::Done)
    }
}
