//! Writes the results of a replay: the files of its directory, and a table.

use std::path::Path;

use anyhow::Context;
use pagedraft::report::{self, Shown};
use pagedraft_workloads::measures::Summary;
use pagedraft_workloads::run::{REPORT_FILE, RunDirectory};
use pagedraft_workloads::trace::SUMMARY_FILE;

use super::table;
use crate::cli::engine_flags::note;
use crate::cli::output_file::OutputFile;
use crate::cli::{Ended, interrupt, stdout};

/// The results of a run that ended or was stopped.
pub struct Outcome {
    pub directory: RunDirectory,
    pub summary: Summary,
    /// Whether a page is made of it.
    pub report: bool,
}

impl Outcome {
    /// Writes the files that come at the end, and prints the table.
    pub fn write(self, output: Option<&OutputFile>) -> anyhow::Result<Ended> {
        let path = self.directory.path().clone();
        let stopped = self.summary.facts.stopped;
        self.directory.finish(&self.summary)?;
        if let Some(output) = output {
            let file = path.join(SUMMARY_FILE);
            let summary = std::fs::read_to_string(&file);
            output.write(&summary.with_context(|| format!("can't read {}", file.display()))?)?;
        }
        let cut = self.report && !report(&path, stopped)?;
        if !matches!(output, Some(OutputFile::Stdout)) {
            stdout::print(&text(&self.summary, &path))?;
        }
        Ok(if stopped || cut { Ended::Interrupted } else { Ended::Done })
    }
}

/// Writes the page of a run. It may take seconds where the trace is long, so that there is none after Ctrl-C, nor where Ctrl-C is
/// pressed meanwhile: `false` then.
fn report(path: &Path, stopped: bool) -> anyhow::Result<bool> {
    let directory = path.to_owned();
    let page = match stopped {
        true => None,
        false => interrupt::or_done(move || report::page(&[directory], Shown::default()))?,
    };
    match page {
        Some(page) => report::save(&page, &path.join(REPORT_FILE))?,
        None => {
            let path = path.display();
            note(&format!("{REPORT_FILE} is left out after Ctrl-C; `pagedraft report {path}` writes it"));
            return Ok(false);
        }
    }
    Ok(true)
}

/// The table, and where the other results are.
fn text(summary: &Summary, path: &Path) -> String {
    let mut text = table::text(summary);
    if let Some(hash) = &summary.facts.event_log_sha256 {
        text.push_str(&format!("event log        sha256 {hash}\n"));
    }
    if summary.facts.stopped {
        text.push_str("stopped          before its end; go on with --resume\n");
    }
    text.push_str(&format!("run directory    {}\n", path.display()));
    text
}
