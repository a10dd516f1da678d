use std::path::PathBuf;

/// Why a dataset can't be read: always with the file, and the line where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// The file can't be opened or read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word on it.
        source: std::io::Error,
    },
    /// A line says something it can't.
    #[error("{path}:{line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1; of a JSON array's element, the one that it begins in.
        line: u64,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// The file as a whole is not what it should be (empty, a column is missing).
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// Options that do not go together.
    #[error("{0}")]
    Options(String),
}
