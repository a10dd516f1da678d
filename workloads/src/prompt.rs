//! Prompts as token ids: from text by a tokenizer, from a trace's lengths and block names by a seed.

/// A tokenizer, as far as workloads need one.
pub trait TextTokens: Send + Sync {
    /// Token ids of a text.
    ///
    /// # Errors
    ///
    /// The tokenizer's word on it.
    fn encode(&self, text: &str) -> Result<Vec<u32>, String>;
}
