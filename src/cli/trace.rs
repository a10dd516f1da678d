//! `pagedraft trace`.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use pagedraft::exit::usage;
use pagedraft_workloads::trace::{CheckReport, STEPS_FILE, check_dir};

use super::{Ended, stdout};

#[derive(Debug, Subcommand)]
pub enum Trace {
    /// Re-derive every slot of a trace, and name the first record that breaks a rule
    Check(Check),
}

#[derive(Debug, Args)]
pub struct Check {
    /// What --trace-out wrote
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Trace {
    pub fn run(&self) -> anyhow::Result<Ended> {
        match self {
            Self::Check(check) => check.run(),
        }
    }
}

impl Check {
    fn run(&self) -> anyhow::Result<Ended> {
        let report = check_dir(&self.directory).map_err(|e| usage(e.into()))?;
        if let Some(violation) = &report.violation {
            let file = self.directory.join(STEPS_FILE);
            // The exit code says it where standard error is closed.
            let _ = writeln!(
                std::io::stderr(),
                "error: {violation}\n  {}:{}\n  {} steps before it keep every rule",
                file.display(),
                violation.line,
                report.steps,
            );
            return Ok(Ended::Difference);
        }
        stdout::print(&sound(&report))?;
        Ok(Ended::Done)
    }
}

fn sound(report: &CheckReport) -> String {
    let mut text = format!(
        "trace ok: {} steps, {} plan rows, {} input tokens, {} slots re-derived\n          {} requests, {} finished, {} tokens emitted, {} preemptions, {} blocks still held\n",
        report.steps,
        report.rows,
        report.input_tokens,
        report.slots,
        report.requests,
        report.finished,
        report.emitted_tokens,
        report.preemptions,
        report.blocks_held,
    );
    if report.other_events > 0 {
        text.push_str(&format!("          {} lines of other events, not checked\n", report.other_events));
    }
    if report.cut_last_line {
        text.push_str("          last line incomplete, ignored (the process was stopped while it wrote)\n");
    }
    text
}
