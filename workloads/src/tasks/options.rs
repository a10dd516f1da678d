use std::path::PathBuf;

/// Which RULER task is generated, and how long.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RulerOptions {
    /// Its name, one of [`RULER_TASKS`](super::RULER_TASKS).
    pub task: String,
    /// Tokens of prompt and answer together, by the run's tokenizer, at most. 4,194,304 is the most.
    pub length: u32,
    /// How many samples.
    pub samples: u64,
    /// A text file (UTF-8) that the needles are hidden in, for the tasks that hide them in essays; it is repeated as
    /// often as needed. `None`: sentences of a small grammar.
    #[serde(default, serialize_with = "crate::path_text::serialize")]
    pub haystack: Option<PathBuf>,
    /// A SQuAD file (JSON, version 1 or 2) for `qa_1`. `None`: made-up facts.
    #[serde(default, serialize_with = "crate::path_text::serialize")]
    pub squad: Option<PathBuf>,
}
