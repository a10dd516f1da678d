use std::path::PathBuf;

/// Why a dataset can't be read. Each error names the file, and the line if there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// The file can't be opened or read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A line holds something that can't be right.
    #[error("{path}:{line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1. For an element of a JSON array it is the line in which the element
        /// begins.
        line: u64,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// The file as a whole is not what it should be; it is empty, or a column is missing, for example.
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// The options do not go together.
    #[error("{0}")]
    Options(String),
}
