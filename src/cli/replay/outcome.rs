//! What a replay came to: its directory, and a table.

use std::path::Path;

use anyhow::Context;
use pagedraft_workloads::measures::Summary;
use pagedraft_workloads::run::RunDirectory;
use pagedraft_workloads::trace::SUMMARY_FILE;

use super::table;
use crate::cli::output_file::OutputFile;
use crate::cli::{Ended, stdout};

/// A run that ended, or was stopped.
pub struct Outcome {
    pub directory: RunDirectory,
    pub summary: Summary,
    pub stopped: bool,
    /// SHA-256 of a simulation's event log.
    pub event_log: Option<String>,
}

impl Outcome {
    /// Writes the files that come at the end, and the table.
    pub fn write(self, output: Option<&OutputFile>) -> anyhow::Result<Ended> {
        let path = self.directory.path().clone();
        match self.stopped {
            true => self.directory.stop(&self.summary)?,
            false => self.directory.finish(&self.summary)?,
        }
        if let Some(output) = output {
            let file = path.join(SUMMARY_FILE);
            let summary = std::fs::read_to_string(&file);
            output.write(&summary.with_context(|| format!("can't read {}", file.display()))?)?;
        }
        if !matches!(output, Some(OutputFile::Stdout)) {
            stdout::print(&text(&self.summary, self.event_log.as_deref(), self.stopped, &path))?;
        }
        Ok(if self.stopped { Ended::Interrupted } else { Ended::Done })
    }
}

/// The table, and where the rest is.
fn text(summary: &Summary, event_log: Option<&str>, stopped: bool, path: &Path) -> String {
    let mut text = table::text(summary);
    if let Some(hash) = event_log {
        text.push_str(&format!("event log        sha256 {hash}\n"));
    }
    if stopped {
        text.push_str("stopped          by Ctrl-C; go on with --resume\n");
    }
    text.push_str(&format!("run directory    {}\n", path.display()));
    text
}
