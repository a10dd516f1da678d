//! Writes files that are there whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes `bytes` to a file beside `path` and renames it. A reader sees the old file or the new one, never
/// half of it.
///
/// # Errors
///
/// The operating system's errors. The temporary file is removed then.
pub fn replace_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    replace_file_with(path, |file| file.write_all(bytes))
}

/// The same for contents that are written piece by piece.
pub(crate) fn replace_file_with<E: From<std::io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary).map_err(E::from).and_then(|mut file| write(&mut file));
    let done = written.and_then(|()| std::fs::rename(&temporary, path).map_err(E::from));
    if done.is_err() {
        // The first error is the one to report. Nothing can be done if the temporary file can't be removed.
        let _ = std::fs::remove_file(&temporary);
    }
    done
}
