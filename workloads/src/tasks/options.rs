use std::path::PathBuf;

/// Which RULER task is generated, and at which length.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RulerOptions {
    /// The name of the task, one of [`RULER_TASKS`](super::RULER_TASKS).
    pub task: String,
    /// The most tokens of prompt and answer together, by the run's tokenizer; at most 4,194,304.
    pub length: u32,
    /// The number of samples.
    pub samples: u64,
    /// A text file (UTF-8) to hide the needles in, for the tasks that hide them in essays. It is repeated
    /// as often as needed. `None` means sentences of a small grammar.
    #[serde(default, serialize_with = "crate::path_text::serialize")]
    pub haystack: Option<PathBuf>,
    /// A SQuAD file (JSON, version 1 or 2) for `qa_1`. `None` means made-up facts.
    #[serde(default, serialize_with = "crate::path_text::serialize")]
    pub squad: Option<PathBuf>,
}
