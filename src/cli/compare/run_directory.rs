//! Writes the directory of a comparison.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use pagedraft::exit::{usage, usage_hint};

use crate::cli::interrupt;
use crate::cli::output_file::OutputFile;
use crate::cli::stamp::stamp;

const FILES: [&str; 3] = ["config.json", "summary.json", "compare.svg"];

/// A directory that can be written. If nothing is written to it after it was made, it is removed again.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// The directories that had to be made, the innermost first.
    made: Vec<PathBuf>,
    files: Vec<OutputFile>,
}

impl RunDirectory {
    /// Reserves `path`, or a directory below `runs` that is named after the time.
    ///
    /// # Errors
    ///
    /// The directory can't be written, or holds a run.
    pub fn reserve(path: Option<&Path>) -> anyhow::Result<Self> {
        let path =
            path.map_or_else(|| Path::new("runs").join(stamp("compare", SystemTime::now())), Path::to_owned);
        for file in FILES {
            if path.join(file).exists() {
                let error = anyhow!("run directory {} holds a {file} already", path.display());
                return Err(usage_hint(error, "name another directory with --out, or an empty one"));
            }
        }
        let missing = |p: &&Path| !p.as_os_str().is_empty() && !p.exists();
        let made = path.ancestors().take_while(missing).map(Path::to_owned).collect();
        let cant = || format!("can't make the run directory {}", path.display());
        std::fs::create_dir_all(&path).with_context(cant).map_err(usage)?;
        let mut directory = Self { path, made, files: Vec::new() };
        for file in FILES {
            directory.files.push(OutputFile::reserve(&directory.path.join(file))?);
        }
        directory.made.iter().cloned().for_each(interrupt::remove_with_the_process);
        Ok(directory)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the configuration, the results and the chart.
    ///
    /// # Errors
    ///
    /// The disk has a fault.
    pub fn write(&self, config: &str, summary: &str, picture: &str) -> anyhow::Result<()> {
        self.files.iter().zip([config, summary, picture]).try_for_each(|(file, text)| file.write(text))
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // The temporary files go first, so that directories that were made for nothing are empty.
        // Directories with files can't be removed this way.
        self.files.clear();
        for made in &self.made {
            if std::fs::remove_dir(made).is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_made_for_nothing_is_gone_and_one_that_was_there_stays() {
        let there = std::env::temp_dir().join(format!("pagedraft-run-directory-{}", std::process::id()));
        std::fs::create_dir_all(&there).unwrap();
        drop(RunDirectory::reserve(Some(&there.join("a/b"))).unwrap());
        drop(RunDirectory::reserve(Some(&there)).unwrap());
        assert_eq!(std::fs::read_dir(&there).unwrap().count(), 0);
        let kept = RunDirectory::reserve(Some(&there.join("c"))).unwrap();
        kept.write("{}", "{}", "<svg/>").unwrap();
        drop(kept);
        assert_eq!(std::fs::read_dir(there.join("c")).unwrap().count(), 3);
        assert!(RunDirectory::reserve(Some(&there.join("c"))).is_err());
        std::fs::remove_dir_all(&there).unwrap();
    }
}
