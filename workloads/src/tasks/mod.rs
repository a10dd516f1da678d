//! Tasks with right answers: RULER's thirteen, generated at any length, and how answers are scored.

/// Which RULER task is generated, and how long.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RulerOptions {
    /// Its name, as `niah_single_1`.
    pub task: String,
    /// Tokens of prompt and answer together, by the run's tokenizer, at most.
    pub length: u32,
    /// How many samples.
    pub samples: u64,
}

/// Stands in for the generator until that is merged.
pub(crate) fn ruler_samples(
    _options: &RulerOptions,
    _seed: u64,
    _tokenizer: std::sync::Arc<dyn crate::prompt::TextTokens>,
) -> Result<
    Box<dyn Iterator<Item = Result<crate::dataset::Sample, crate::dataset::DatasetError>> + Send>,
    crate::dataset::DatasetError,
> {
    Err(crate::dataset::DatasetError::Options("RULER samples can't be generated yet".into()))
}
