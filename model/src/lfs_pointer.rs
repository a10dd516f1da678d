//! Git LFS pointers: the small texts that stand where a large file was not downloaded.

use std::path::Path;

use crate::error::ModelError;

/// What every pointer begins with; the specification fixes it.
const START: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses the contents of a file where they are a pointer.
pub(crate) fn refuse(path: &Path, contents: &[u8]) -> Result<(), ModelError> {
    match contents.starts_with(START) {
        true => Err(ModelError::LfsPointer { path: path.to_owned() }),
        false => Ok(()),
    }
}
