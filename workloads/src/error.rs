//! The errors of this crate.

use std::path::PathBuf;

/// An error of this crate. Each one names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path of a trace directory is something else than a directory.
    #[error("trace directory {path} is not a directory")]
    NotADirectory {
        /// The path that was given.
        path: PathBuf,
    },
    /// The trace directory can't be made or written to.
    #[error("can't write to trace directory {path}: {source}")]
    Unwritable {
        /// The path that was given.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file that a trace would write exists already. It belongs to another trace, or is a model's
    /// `config.json`.
    #[error("trace directory {path} holds a {file} already; name another directory, or an empty one")]
    HoldsTrace {
        /// The file.
        file: String,
        /// The path that was given.
        path: PathBuf,
    },
    /// Writing a file failed midway (disk full, directory removed).
    #[error("can't write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A value that can't be written as JSON (a map with keys that aren't strings, say).
    #[error("can't write {what} as JSON: {source}")]
    Encode {
        /// The value.
        what: &'static str,
        /// serde's error.
        source: serde_json::Error,
    },
    /// The configuration of a trace is not a JSON object.
    #[error("the configuration of a trace must be a JSON object")]
    ConfigNotAnObject,
    /// A file of a trace can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// `config.json` of a trace is not JSON, or lacks something.
    #[error("{path}: {what}")]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file that should be a cost model is not one.
    #[error("cost model {path}: {what}")]
    CostModel {
        /// The file.
        path: PathBuf,
        /// The field, and what is wrong with it.
        what: String,
    },
    /// A dataset can't be read.
    #[error(transparent)]
    Dataset(#[from] crate::dataset::DatasetError),
    /// The options do not go together. The text says why, and what to do.
    #[error("{0}")]
    Options(String),
    /// An engine failed.
    #[error("{0}")]
    Engine(String),
    /// A run directory is not what a resumed run needs.
    #[error("{path}: {what}")]
    Run {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
}
