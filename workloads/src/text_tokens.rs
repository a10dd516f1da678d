//! What workloads ask of a tokenizer.

/// The part of a tokenizer that workloads need.
pub trait TextTokens: Send + Sync {
    /// The token ids of a text.
    ///
    /// # Errors
    ///
    /// The tokenizer's error.
    fn encode(&self, text: &str) -> Result<Vec<u32>, String>;

    /// The number of tokens of a text that an engine generated or could generate, without those that the
    /// tokenizer puts around a prompt, such as BOS.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    fn count(&self, text: &str) -> Result<u32, String> {
        // This default is right for a tokenizer that puts nothing around a prompt.
        self.encode(text).map(|tokens| u32::try_from(tokens.len()).unwrap_or(u32::MAX))
    }
}
