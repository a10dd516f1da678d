//! What a request changes in the logits before a token is chosen: biases, penalties, and no end before some length.

use serde::Serialize;

use super::error::SamplingError;

/// What a request changes in the logits before a token is chosen. Every change depends on the tokens in front of the position alone: on
/// the prompt, on what was generated, and, in a verify row, on the drafts in front of it. A draft is only ever followed by a token if
/// all drafts in front of it were accepted. So speculation changes nothing, and neither does the batch.
///
/// The changes come in vLLM's order: `min_tokens`, `bias`, `repetition`, `frequency`, `presence`; temperature and filters come after
/// them. Log probabilities are those of the logits before any change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogitChanges {
    /// Is added to the logits of these tokens. No token is named twice.
    pub bias: Vec<(u32, f32)>,
    /// Is subtracted from the logits of tokens that were generated before, from -2 to 2.
    pub presence: f32,
    /// Is subtracted once for each time that the token was generated before, from -2 to 2.
    pub frequency: f32,
    /// Divides the positive logits of tokens that are in the prompt or were generated before, and multiplies the negative ones; above 0, and 1
    /// for no change.
    pub repetition: f32,
    /// No token of `ends` is chosen before so many tokens were generated.
    pub min_tokens: u32,
    /// The tokens that end the sequence.
    pub ends: Vec<u32>,
}

/// No change.
impl Default for LogitChanges {
    fn default() -> Self {
        Self {
            bias: Vec::new(),
            presence: 0.0,
            frequency: 0.0,
            repetition: 1.0,
            min_tokens: 0,
            ends: Vec::new(),
        }
    }
}

impl LogitChanges {
    /// Whether any of it changes anything.
    #[must_use]
    pub fn is_some(&self) -> bool {
        !self.bias.is_empty() || self.penalises() || self.min_tokens > 0
    }

    /// Whether what was generated before changes the logits.
    fn penalises(&self) -> bool {
        self.presence != 0.0 || self.frequency != 0.0 || self.repetition != 1.0
    }

    /// Checks every number.
    ///
    /// # Errors
    ///
    /// The error names the first number that is out of its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        for (name, found) in [("presence_penalty", self.presence), ("frequency_penalty", self.frequency)] {
            if !(-2.0..=2.0).contains(&found) {
                return Err(SamplingError::Penalty { name, found, range: "from -2 to 2" });
            }
        }
        if !(self.repetition > 0.0 && self.repetition.is_finite()) {
            let (name, found) = ("repetition_penalty", self.repetition);
            return Err(SamplingError::Penalty { name, found, range: "above 0 (1 = off)" });
        }
        match self.bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            Some(&(token, found)) => Err(SamplingError::Bias { token, found }),
            None => Ok(()),
        }
    }
}

/// Changes rows of logits. It holds only buffers.
#[derive(Debug, Default)]
pub struct Changer {
    rows: Vec<f32>,
    /// The tokens in front of a position, in ascending order: those of the prompt, and those that were generated.
    prompt: Vec<u32>,
    generated: Vec<u32>,
}

impl Changer {
    /// The changed logits of a row with drafts, `[drafts + 1, vocab]`. `tokens` are the tokens in front of the first draft, of which
    /// `prompt_len` are the prompt's.
    ///
    /// This takes a copy of the logits, and for each of their rows time in proportion to the tokens in front of it, sorted anew.
    pub fn change(
        &mut self,
        changes: &LogitChanges,
        (tokens, prompt_len): (&[u32], usize),
        drafts: &[u32],
        logits: &[f32],
    ) -> &[f32] {
        self.rows.clear();
        self.rows.extend_from_slice(logits);
        let (prompt, generated) = tokens.split_at(prompt_len.min(tokens.len()));
        if changes.penalises() {
            sorted(&mut self.prompt, prompt);
        }
        let vocab = (logits.len() / (drafts.len() + 1)).max(1);
        for (j, row) in self.rows.chunks_exact_mut(vocab).enumerate() {
            if generated.len() + j < changes.min_tokens as usize {
                changes.ends.iter().for_each(|&token| set(row, token, |_| f32::NEG_INFINITY));
            }
            changes.bias.iter().for_each(|&(token, bias)| set(row, token, |logit| logit + bias));
            if changes.penalises() {
                sorted(&mut self.generated, generated);
                self.generated.extend(drafts.iter().take(j));
                self.generated.sort_unstable();
                penalise(row, changes, &self.prompt, &self.generated);
            }
        }
        &self.rows
    }
}

/// Both lists are in ascending order.
fn penalise(row: &mut [f32], changes: &LogitChanges, prompt: &[u32], generated: &[u32]) {
    let repeat = |logit: f32| match logit > 0.0 {
        true => logit / changes.repetition,
        false => logit * changes.repetition,
    };
    for same in prompt.chunk_by(|a, b| a == b) {
        if generated.binary_search(&same[0]).is_err() {
            set(row, same[0], repeat);
        }
    }
    for same in generated.chunk_by(|a, b| a == b) {
        let count = same.len() as f32;
        set(row, same[0], |logit| repeat(logit) - changes.frequency * count - changes.presence);
    }
}

fn sorted(buffer: &mut Vec<u32>, tokens: &[u32]) {
    buffer.clear();
    buffer.extend_from_slice(tokens);
    buffer.sort_unstable();
}

/// Changes the logit of a token. A token outside the vocabulary has none.
fn set(row: &mut [f32], token: u32, change: impl Fn(f32) -> f32) {
    if let Some(logit) = row.get_mut(token as usize) {
        *logit = change(*logit);
    }
}
