//! `pagedraft report`.

use std::path::PathBuf;

use clap::Args;
use pagedraft::exit::usage;
use pagedraft::report::{self, Steps};
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
}

impl Report {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let beside_the_first = || self.directories.first().map(|first| first.join(REPORT_FILE));
        let out = self.out.clone().or_else(beside_the_first).unwrap_or_else(|| REPORT_FILE.into());
        report::write_steps(&self.directories, &out, self.steps).map_err(usage)?;
        stdout::print(&format!("page in {}\n", out.display()))?;
        Ok(Ended::Done)
    }
}
