//! Requests that drop prompt tokens between two segments of the model.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use pagedraft_scheduler::RequestKey;

/// What the last tokens of a prompt show of those before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// What they attend to, the mean over heads.
    Attention,
    /// What the indexer of a model with sparse attention scores for them.
    Index,
}

/// Decides which of a prompt's tokens go on into the model's next segment.
///
/// A token's score is a function of its own residual row and its position, so that chunks of a prompt can be
/// scored one by one; or of what the prompt's last tokens [show](Watched), once all of it has run. Which tokens stay is decided once, over the whole prompt.
pub trait Thin: Send + Sync + fmt::Debug {
    /// Whether tokens are scored by their rows of the residual stream behind segment `segment`.
    fn reads_rows(&self, segment: u16) -> bool {
        let _ = segment;
        true
    }

    /// How many of the prompt's last tokens that reach the end of segment `segment` show which tokens matter in the segment's last layer, and
    /// by what. `None`: tokens are scored one by one.
    fn watch(&self, segment: u16) -> Option<(Watched, u32)> {
        let _ = segment;
        None
    }

    /// Makes scores of `mass`: what the tokens that are [watched](Self::watch) show of each token that reaches the end of segment `segment`, the
    /// mean over them.
    fn score_attended(&self, segment: u16, mass: &mut [f32]) {
        let _ = (segment, mass);
    }

    /// The score of the token at this position of the prompt, whose residual row is `row` (`[hidden]`) behind
    /// segment `segment`. The row is empty if the rule does not [read rows](Self::reads_rows).
    fn score(&self, segment: u16, position: u32, row: &[f32]) -> f32;

    /// Chooses which `count` of the prompt's tokens that reached the end of segment `segment` go on. `scores`
    /// and `positions` have an entry for each of them. Returns their indices in ascending order.
    ///
    /// # Errors
    ///
    /// The reason why nothing can be chosen, such as a score that is not a number. Only this request fails.
    fn keep(&self, segment: u16, scores: &[f32], positions: &[u32], count: usize)
    -> Result<Vec<u32>, String>;
}

/// How a request's prompt is thinned.
#[derive(Clone, Debug)]
pub struct Thinning {
    /// The rule that chooses tokens.
    pub rule: Arc<dyn Thin>,
    /// How many prompt tokens go on behind each cut. The request was submitted with the same numbers
    /// ([`RequestSpec::kept`](pagedraft_scheduler::RequestSpec::kept)).
    pub kept: Vec<u32>,
    /// Whether tokens are numbered anew behind each cut: a token's position is then its index among the tokens
    /// that reach the segment. Otherwise every token keeps its position in the sequence.
    pub compact: bool,
}

/// What has been decided about a prompt that is being thinned.
#[derive(Debug, Default)]
pub(crate) struct Thinned {
    /// For each segment behind the first, the positions of the prompt tokens that reach it.
    pub kept: Vec<Vec<u32>>,
    /// The scores of the prompt tokens that have run through the present segment.
    pub scores: Vec<f32>,
    /// The queries of the prompt tokens that the rule watches and that have run through the present segment.
    pub queries: Vec<f32>,
}

impl Thinned {
    /// The position of a token in its sequence. It is token `index` of those that reach `segment`, and the
    /// prompt has `prompt_len` tokens. Output tokens follow the kept prompt tokens.
    pub fn position(&self, segment: u16, index: u32, prompt_len: u32) -> u32 {
        let kept = usize::from(segment).checked_sub(1).and_then(|cut| self.kept.get(cut));
        match kept {
            None => index,
            Some(kept) => match kept.get(index as usize) {
                Some(&position) => position,
                None => prompt_len + (index - kept.len() as u32),
            },
        }
    }

    /// Takes token `index` of those that reach the segment after `segment`. Returns its index among those
    /// that reach `segment`.
    pub fn before(&self, segment: u16, index: u32, prompt_len: u32) -> u32 {
        let position = self.position(segment + 1, index, prompt_len);
        let kept = usize::from(segment).checked_sub(1).and_then(|cut| self.kept.get(cut));
        match kept {
            None => position,
            Some(kept) if position < prompt_len => {
                kept.binary_search(&position).map_or(u32::MAX, |index| index as u32)
            }
            Some(kept) => kept.len() as u32 + (position - prompt_len),
        }
    }
}

/// The prompts that are being thinned.
#[derive(Debug, Default)]
pub(crate) struct ThinnedPrompts {
    prompts: HashMap<RequestKey, Thinned>,
}

impl ThinnedPrompts {
    pub fn get(&self, request: RequestKey) -> Option<&Thinned> {
        self.prompts.get(&request)
    }

    pub fn get_or_begin(&mut self, request: RequestKey) -> &mut Thinned {
        self.prompts.entry(request).or_default()
    }

    /// Forgets what was decided about a prompt, because it is done or is computed again from its beginning.
    pub fn forget(&mut self, request: RequestKey) {
        self.prompts.remove(&request);
    }
}
