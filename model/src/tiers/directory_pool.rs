//! A pool in a directory, on a file system that others may serve.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::pool::{Key, Pool, PoolError};

/// A pool of one file for each key, in a directory of its own within the one that it is given. It is removed with the pool.
pub struct DirectoryPool {
    directory: PathBuf,
    keys: HashSet<Key>,
}

impl DirectoryPool {
    /// A pool in a directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// Why it cannot be written.
    pub fn open(within: &Path) -> Result<Self, String> {
        let said = |error: std::io::Error| format!("the directory cannot be written: {error}");
        fs::create_dir_all(within).map_err(said)?;
        for number in 0.. {
            let directory = within.join(format!("pagedraft-{}-{number}", std::process::id()));
            match fs::create_dir(&directory) {
                Ok(()) => return Ok(Self { directory, keys: HashSet::new() }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(said(error)),
            }
        }
        Err("the directory has too many pools".to_owned())
    }

    fn path(&self, key: Key) -> PathBuf {
        self.directory.join(key.to_string())
    }
}

impl Pool for DirectoryPool {
    fn put(&mut self, key: Key, bytes: &[u8]) -> Result<(), PoolError> {
        self.keys.insert(key);
        fs::write(self.path(key), bytes).map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => PoolError::Full,
            _ => PoolError::Failed(error.to_string()),
        })
    }

    fn get(&mut self, key: Key, into: &mut [u8]) -> Result<(), PoolError> {
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => PoolError::Missing,
            _ => PoolError::Failed(error.to_string()),
        };
        let mut file = fs::File::open(self.path(key)).map_err(failed)?;
        let mut found = 0;
        while found < into.len() {
            match file.read(&mut into[found..]).map_err(failed)? {
                0 => return Err(PoolError::Length { found, expected: into.len() }),
                more => found += more,
            }
        }
        match file.read(&mut [0]).map_err(failed)? {
            0 => Ok(()),
            more => Err(PoolError::Length { found: found + more, expected: found }),
        }
    }

    fn forget(&mut self, key: Key) {
        if self.keys.remove(&key) {
            // A file that is gone already is what was asked for.
            let _ = fs::remove_file(self.path(key));
        }
    }
}

impl Drop for DirectoryPool {
    fn drop(&mut self) {
        for key in std::mem::take(&mut self.keys) {
            let _ = fs::remove_file(self.path(key));
        }
        // Whatever else somebody put there stays.
        let _ = fs::remove_dir(&self.directory);
    }
}
