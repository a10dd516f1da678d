//! `--output-json FILE`: the file is checked before the run, and written as a whole after it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use pagedraft::exit::usage;

use super::{interrupt, stdout};

/// An output file that can be written. If it is dropped unused, it leaves nothing behind.
#[derive(Debug)]
pub enum OutputFile {
    /// Standard output (`-`).
    Stdout,
    /// A link, a device, a pipe, or a file in a directory where no file can be added. It is written in
    /// place.
    InPlace(PathBuf),
    /// A regular file. The output is written beside it, and then renamed.
    Regular {
        /// The path of the file.
        path: PathBuf,
        /// The path that is written to until then.
        temporary: PathBuf,
    },
}

impl OutputFile {
    /// Checks that `path` can be written, without writing to it.
    pub fn reserve(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let cant = || format!("can't write output file {}", path.display());
        if path.is_dir() {
            return Err(usage(anyhow!("it is a directory").context(cant())));
        }
        // A path that leads elsewhere (a link, `/dev/stdout`) must stay what it is.
        let leads_elsewhere = path.is_symlink() || (path.exists() && !path.is_file());
        if leads_elsewhere {
            File::options().write(true).open(path).with_context(cant).map_err(usage)?;
            return Ok(Self::InPlace(path.to_owned()));
        }
        let Some(name) = path.file_name() else {
            return Err(usage(anyhow!("it names no file").context(cant())));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(hidden);
        match File::create(&temporary) {
            Ok(_) => {
                interrupt::remove_with_the_process(temporary.clone());
                Ok(Self::Regular { path: path.to_owned(), temporary })
            }
            // No file can be added to the directory, but the existing one can be written.
            Err(_) if File::options().write(true).open(path).is_ok() => Ok(Self::InPlace(path.to_owned())),
            Err(e) => Err(usage(anyhow::Error::from(e).context(cant()))),
        }
    }

    /// Writes `text` as the whole output.
    pub fn write(&self, text: &str) -> anyhow::Result<()> {
        match self {
            Self::Stdout => stdout::print(text),
            Self::InPlace(path) => {
                let cut = path.is_file();
                let written = File::options()
                    .write(true)
                    .truncate(cut)
                    .open(path)
                    .and_then(|mut file| file.write_all(text.as_bytes()));
                written.with_context(|| format!("can't write output file {}", path.display()))
            }
            Self::Regular { path, temporary } => {
                // A file that is replaced keeps its permissions.
                let kept = path.metadata().ok().map(|old| old.permissions());
                let written = std::fs::write(temporary, text)
                    .and_then(|()| kept.map_or(Ok(()), |kept| std::fs::set_permissions(temporary, kept)))
                    .and_then(|()| std::fs::rename(temporary, path));
                written.with_context(|| format!("can't write output file {}", path.display()))
            }
        }
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Self::Regular { temporary, .. } = self {
            // The file is gone already if it was renamed.
            let _ = std::fs::remove_file(temporary);
        }
    }
}
