//! Begins a file of records beside the steps of a trace.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::parts::Part;
use super::rotation::{Rotation, next_number};
use crate::Error;
use crate::run::{Begin, Leftovers};

/// How the files beside the steps of a trace are begun.
pub(super) struct Beside<'a> {
    pub directory: &'a Path,
    /// The first step that is written, if a stopped run is gone on with: records that it left of earlier steps are kept.
    pub first_step: Option<u64>,
    /// The bytes with which a file is full, if files are cut.
    pub rotate_bytes: Option<u64>,
    pub leftovers: Arc<Leftovers>,
}

/// A file that is about to be opened.
#[derive(Debug)]
pub(super) struct Begun {
    pub path: PathBuf,
    pub begin: Begin,
    pub rotation: Option<Rotation>,
}

/// What a file has of the steps before some step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Earlier {
    /// The bytes up to the end of the last whole record of these steps.
    pub bytes: u64,
    /// Whether there is one.
    pub any: bool,
}

impl Beside<'_> {
    /// Prepares `STEM.EXTENSION`. If a stopped run is gone on with, its records of steps that its trace lacks are removed, which
    /// `earlier` finds: it says what a file has of the steps before a step. Files that are cut are begun anew behind those that are
    /// there, and a file that is not cut is appended to.
    ///
    /// # Errors
    ///
    /// Files that are there can't be read or changed.
    pub fn begin(
        &self,
        stem: &'static str,
        extension: &'static str,
        earlier: impl Fn(&Path, u64) -> Result<Earlier, Error>,
    ) -> Result<Begun, Error> {
        let path = self.directory.join(format!("{stem}.{extension}"));
        let mut begin = Begin::New;
        match (self.first_step, self.rotate_bytes) {
            (Some(first), Some(_)) => {
                if path.exists() {
                    let number = next_number(self.directory, stem);
                    let part = Part::new(self.directory, stem, number, extension);
                    std::fs::rename(&path, part.path)
                        .map_err(|source| Error::Unwritable { path: path.clone(), source })?;
                }
                // A file may have nothing but records of steps that are lacking. Then the one before it may have some, too.
                for part in Part::ending(self.directory, stem, extension).into_iter().rev() {
                    let kept = earlier(&part.path, first)?;
                    if kept.any {
                        cut(&part.path, kept.bytes)?;
                        break;
                    }
                    std::fs::remove_file(&part.path)
                        .map_err(|source| Error::Unwritable { path: part.path.clone(), source })?;
                }
            }
            (Some(first), None) if path.exists() => {
                cut(&path, earlier(&path, first)?.bytes)?;
                begin = Begin::Append;
            }
            _ => {}
        }
        let rotation = self.rotate_bytes.map(|bytes| Rotation::new(self.directory, stem, extension, bytes));
        Ok(Begun { path, begin, rotation })
    }
}

/// Removes what is behind the first `bytes` bytes of a file.
fn cut(path: &Path, bytes: u64) -> Result<(), Error> {
    let file = std::fs::OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.set_len(bytes))
        .map_err(|source| Error::Unwritable { path: path.to_owned(), source })
}
