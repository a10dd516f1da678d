//! What can go wrong with files of a run.

use std::path::PathBuf;

/// A fault of this crate; each names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The trace directory is something else.
    #[error("trace directory {path} is not a directory")]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// The trace directory can't be made or written.
    #[error("can't write to trace directory {path}: {source}")]
    Unwritable {
        /// What was given.
        path: PathBuf,
        /// The system's word on it.
        source: std::io::Error,
    },
    /// A file that a trace would write is there already: of another trace, or a model's `config.json`.
    #[error("trace directory {path} holds a {file} already; name another directory, or an empty one")]
    HoldsTrace {
        /// The file.
        file: String,
        /// What was given.
        path: PathBuf,
    },
    /// Writing a file failed midway (disk full, directory removed).
    #[error("can't write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's word on it.
        source: std::io::Error,
    },
    /// A value that can't be written as JSON (a map with keys that aren't strings, say).
    #[error("can't write {what} as JSON: {source}")]
    Encode {
        /// Which value.
        what: &'static str,
        /// serde's word on it.
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
        /// The system's word on it.
        source: std::io::Error,
    },
    /// `config.json` of a trace lacks something or isn't JSON.
    #[error("{path}: {what}")]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file that should be a cost model is none.
    #[error("cost model {path}: {what}")]
    CostModel {
        /// The file.
        path: PathBuf,
        /// Which field, and what is wrong with it.
        what: String,
    },
    /// A dataset can't be read.
    #[error(transparent)]
    Dataset(#[from] crate::dataset::DatasetError),
    /// Options that do not go together: what, and what to do.
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
