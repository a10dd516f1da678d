//! Prompts that lose tokens on their way through a simulated model.

use std::fmt;

use pagedraft_scheduler::SharesKept;

/// Decides how many tokens of a prompt go on behind each cut of the model, and which ones.
///
/// How many they are is exact. Which ones they are changes no plan and no cost, since a simulation has no scores of a model.
pub trait PromptRule: fmt::Debug + Send + Sync {
    /// How many tokens of a prompt of this length go on behind each cut.
    ///
    /// # Errors
    ///
    /// The reason why such a prompt can't be pruned.
    fn counts(&self, prompt_len: u32) -> Result<Vec<u32>, String>;

    /// For each cut the positions of the tokens that go on, ascending: as many as [`counts`](Self::counts) says.
    ///
    /// # Errors
    ///
    /// Those of [`counts`](Self::counts).
    fn positions(&self, prompt_len: u32) -> Result<Vec<Vec<u32>>, String>;

    /// What requests of this prompt have in common that keep the same tokens of it, so that they share their KV.
    ///
    /// # Errors
    ///
    /// Those of [`counts`](Self::counts).
    fn shares_kept(&self, prompt: &[u32]) -> Result<SharesKept, String>;

    /// Whether tokens are numbered anew behind each cut.
    fn is_compact(&self) -> bool;
}
