//! What a replay came to: its directory, and a table.

use pagedraft_workloads::measures::Summary;
use pagedraft_workloads::run::RunDirectory;

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
        let mut text = table::text(&self.summary);
        if let Some(hash) = &self.event_log {
            text.push_str(&format!("event log        sha256 {hash}\n"));
        }
        if self.stopped {
            text.push_str("stopped          by Ctrl-C; go on with --resume\n");
        }
        text.push_str(&format!("run directory    {}\n", path.display()));
        stdout::print(&text)?;
        if let Some(output) = output {
            let summary = std::fs::read_to_string(path.join(pagedraft_workloads::trace::SUMMARY_FILE))?;
            output.write(&summary)?;
        }
        Ok(if self.stopped { Ended::Interrupted } else { Ended::Done })
    }
}
