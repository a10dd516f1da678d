//! What a run that never wrote a line takes away again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::Error;
use crate::trace::{CONFIG_FILE, SCHEMA_VERSION, replace_file};

/// The files that were made in a directory, shared by those that write them: whoever is dropped last takes them away, if
/// none was used.
#[derive(Debug)]
pub(crate) struct Leftovers {
    directory: PathBuf,
    made_directory: bool,
    files: Mutex<Vec<PathBuf>>,
    used: AtomicBool,
}

impl Leftovers {
    /// Makes `directory` if need be, and writes `config` with a `schema_version` to its `config.json`.
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

    /// Those of a directory that was there before: nothing is taken away.
    pub(crate) fn none(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            made_directory: false,
            files: Mutex::default(),
            used: AtomicBool::new(true),
        }
    }

    /// A file more was made.
    pub(crate) fn add(&self, file: PathBuf) {
        self.files.lock().push(file);
    }

    /// Something was written that is worth keeping.
    pub(crate) fn keep(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if self.used.load(Ordering::Relaxed) {
            return;
        }
        // On the way out of another failure: what can't be removed is not worth a second one.
        for file in self.files.get_mut() {
            let _ = std::fs::remove_file(file);
        }
        if self.made_directory {
            let _ = std::fs::remove_dir(&self.directory);
        }
    }
}

/// `config` as it is written.
pub(super) fn with_version(mut config: serde_json::Value) -> Result<serde_json::Value, Error> {
    let Some(fields) = config.as_object_mut() else { return Err(Error::ConfigNotAnObject) };
    fields.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
    Ok(config)
}
