//! Removes the files of a run that never wrote a line.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::Error;
use crate::trace::{CONFIG_FILE, SCHEMA_VERSION, replace_file};

/// The files that were made in a directory. All who write them share this. When the last of them is dropped
/// and no file was used, the files are removed.
#[derive(Debug)]
pub(crate) struct Leftovers {
    directory: PathBuf,
    made_directory: bool,
    files: Mutex<Vec<PathBuf>>,
    used: AtomicBool,
}

impl Leftovers {
    /// Makes `directory` if necessary, and writes `config` with a `schema_version` to its `config.json`.
    pub(crate) fn start(directory: &Path, config: serde_json::Value) -> Result<Self, Error> {
        let unwritable = |source| Error::Unwritable { path: directory.to_owned(), source };
        let config = with_version(config)?;
        let config = serde_json::to_vec_pretty(&config)
            .map_err(|source| Error::Encode { what: "the configuration", source })?;
        let made_directory = !directory.exists();
        std::fs::create_dir_all(directory).map_err(unwritable)?;
        let leftovers = Self {
            directory: directory.to_owned(),
            made_directory,
            files: Mutex::default(),
            used: AtomicBool::new(false),
        };
        let path = directory.join(CONFIG_FILE);
        replace_file(&path, &config).map_err(unwritable)?;
        leftovers.add(path);
        Ok(leftovers)
    }

    /// For a directory that existed before: nothing will be removed.
    pub(crate) fn none(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            made_directory: false,
            files: Mutex::default(),
            used: AtomicBool::new(true),
        }
    }

    /// Says that another file was made.
    pub(crate) fn add(&self, file: PathBuf) {
        self.files.lock().push(file);
    }

    /// Says that something worth keeping was written.
    pub(crate) fn keep(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if self.used.load(Ordering::Relaxed) {
            return;
        }
        // This may run on the way out of another failure, so a file that can't be removed is not reported.
        for file in self.files.get_mut() {
            let _ = std::fs::remove_file(file);
        }
        if self.made_directory {
            let _ = std::fs::remove_dir(&self.directory);
        }
    }
}

/// `config` with a `schema_version`, as it is written.
pub(super) fn with_version(mut config: serde_json::Value) -> Result<serde_json::Value, Error> {
    let Some(fields) = config.as_object_mut() else { return Err(Error::ConfigNotAnObject) };
    fields.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
    Ok(config)
}
