//! Files that are there whole or not at all.

use std::io::Write;
use std::path::Path;

/// Writes `bytes` beside `path` and renames: a reader sees the old file or the new one, never half of it.
///
/// # Errors
///
/// The system's; the temporary file is then gone.
pub fn replace_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = std::fs::File::create(&temporary).and_then(|mut file| file.write_all(bytes));
    let done = written.and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        // The first error is the one to tell; a leftover can't be helped.
        let _ = std::fs::remove_file(&temporary);
    }
    done
}
