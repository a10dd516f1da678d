//! `pagedraft report`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use pagedraft::exit::usage;
use pagedraft::report::{self, Shown, Steps};
use pagedraft_workloads::run::REPORT_FILE;

use super::{Ended, stdout};

#[derive(Debug, Args)]
pub struct Report {
    /// Run directories (of replay), or what --trace-out wrote; figures of later ones are compared with the first
    #[arg(value_name = "DIR", required_unless_present = "table2")]
    directories: Vec<PathBuf>,
    /// The page [default: report.html in the first directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print what `bench prune --output-json` wrote as a table in Markdown, in the form of the paper's Table 2
    #[arg(long, value_name = "FILE", conflicts_with_all = ["directories", "out", "steps", "replica"])]
    table2: Option<PathBuf>,
    /// Steps that the block view has, by their numbers, B left out [default: the first 10,000]
    #[arg(long, value_name = "A..B")]
    steps: Option<Steps>,
    /// Engine whose steps and blocks are shown, where a trace is of several (--replicas) [default: 0]
    #[arg(long, value_name = "N")]
    replica: Option<u32>,
}

/// The table of a file of `bench prune`.
fn table(file: &Path) -> anyhow::Result<String> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {shown}"))?;
    let figures = serde_json::from_str(&text).with_context(|| format!("{shown} is not JSON"))?;
    report::table2::markdown(&figures).with_context(|| format!("{shown} can't be made a table"))
}

impl Report {
    pub fn run(&self) -> anyhow::Result<Ended> {
        if let Some(file) = &self.table2 {
            stdout::print(&table(file).map_err(usage)?)?;
            return Ok(Ended::Done);
        }
        let beside_the_first = || self.directories.first().map(|first| first.join(REPORT_FILE));
        let out = self.out.clone().or_else(beside_the_first).unwrap_or_else(|| REPORT_FILE.into());
        let shown = Shown { steps: self.steps, replica: self.replica };
        report::write_shown(&self.directories, &out, shown).map_err(usage)?;
        stdout::print(&format!("page in {}\n", out.display()))?;
        Ok(Ended::Done)
    }
}
