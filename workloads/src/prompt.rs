//! Prompts as token ids: from text by a tokenizer, from a trace's lengths and block names by a seed.
//!
//! What is drawn comes from a counter-based generator. Token `i` of a block is a function of the seed, the
//! block's name and `i`. Token `i` of a prompt's own part is a function of the seed, the request's index
//! and `i`. Equal blocks are therefore equal tokens wherever they stand, any prompt can be made without
//! those before it, and two requests share tokens only by chance (one token in as many as the vocabulary
//! has).

use std::ops::Range;

use crate::dataset::Prompt;
pub use crate::text_tokens::TextTokens;

/// Makes prompts for traces that have no text.
///
/// ```
/// use pagedraft_workloads::{dataset::Prompt, prompt::PromptMaker};
/// let maker = PromptMaker::new(7, 0..32_000, 1.0)?;
/// let prompt = |ids: &[u64]| Prompt::Blocks { length: 1000, block_size: 512, ids: ids.to_vec() };
/// let (a, b) = (maker.make(0, &prompt(&[5, 6])), maker.make(1, &prompt(&[5, 8])));
/// let (a, b) = (a.ok_or("text")?, b.ok_or("text")?);
/// assert_eq!(a.len(), 1000);
/// assert_eq!(a[..512], b[..512]);
/// assert_ne!(a[512..], b[512..]);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug)]
pub struct PromptMaker {
    seed: u64,
    vocabulary: Range<u32>,
    scale: f64,
}

impl PromptMaker {
    /// Makes prompts of tokens in `vocabulary`, with their lengths multiplied by `scale`.
    ///
    /// # Errors
    ///
    /// The vocabulary is empty, or the scale is not a positive number.
    pub fn new(seed: u64, vocabulary: Range<u32>, scale: f64) -> Result<Self, String> {
        if vocabulary.is_empty() {
            return Err(format!(
                "no token ids to make prompts of: {} to {}",
                vocabulary.start, vocabulary.end
            ));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(format!("--length-scale is {scale}; expected a positive number"));
        }
        Ok(Self { seed, vocabulary, scale })
    }

    /// A number of tokens after scaling. It is rounded, and at least 1 if it was at least 1 before.
    #[must_use]
    pub fn scaled(&self, tokens: u32) -> u32 {
        // A conversion out of range gives the greatest number, which is too long for any engine.
        self.place(u64::from(tokens)).max(u64::from(tokens > 0)).try_into().unwrap_or(u32::MAX)
    }

    /// Where position `at` of a prompt lies after scaling. It grows with `at`, so the order of positions
    /// stays.
    fn place(&self, at: u64) -> u64 {
        if self.scale == 1.0 { at } else { (at as f64 * self.scale).round() as u64 }
    }

    /// The number of tokens of a prompt, without making it; `None` if that takes a tokenizer.
    #[must_use]
    pub fn length(&self, prompt: &Prompt) -> Option<u32> {
        match prompt {
            Prompt::Length(length) | Prompt::Blocks { length, .. } | Prompt::SharedPrefix { length, .. } => {
                Some(self.scaled(*length))
            }
            Prompt::Tokens(ids) => Some(u32::try_from(ids.len()).unwrap_or(u32::MAX)),
            Prompt::Text(_) => None,
        }
    }

    /// The token ids of the prompt of request `index`; `None` if that takes a tokenizer.
    ///
    /// The boundaries of blocks are scaled as lengths are, so that a shared prefix stays one. Token ids of
    /// a dataset are not scaled. Those outside the vocabulary are folded into it in such a way that equal
    /// ones stay equal.
    #[must_use]
    pub fn make(&self, index: u64, prompt: &Prompt) -> Option<Vec<u32>> {
        let length = self.length(prompt)? as usize;
        let mut tokens = Vec::with_capacity(length);
        match prompt {
            Prompt::Text(_) => return None,
            Prompt::Tokens(ids) => tokens.extend(ids.iter().map(|&id| self.fold(id))),
            Prompt::Length(_) => self.draw(&mut tokens, Purpose::Request, index, length),
            Prompt::SharedPrefix { prefix, group, .. } => {
                // The prefix is rounded as a length is, but it may become 0.
                let prefix = usize::try_from(self.place(u64::from(*prefix))).unwrap_or(length).min(length);
                self.draw(&mut tokens, Purpose::Group, *group, prefix);
                self.draw(&mut tokens, Purpose::Request, index, length);
            }
            Prompt::Blocks { block_size, ids, .. } => {
                for (&id, number) in ids.iter().zip(1_u64..) {
                    let end = self.place(number.saturating_mul(u64::from(*block_size)));
                    self.draw(
                        &mut tokens,
                        Purpose::Block,
                        id,
                        usize::try_from(end).unwrap_or(length).min(length),
                    );
                }
                // If the blocks name fewer tokens than the length, the rest is drawn for this request
                // alone.
                self.draw(&mut tokens, Purpose::Request, index, length);
            }
        }
        Some(tokens)
    }

    /// Appends the tokens of a stream, from its first one on, until there are `length` tokens.
    fn draw(&self, tokens: &mut Vec<u32>, purpose: Purpose, name: u64, length: usize) {
        let start = tokens.len();
        if length <= start {
            return;
        }
        let draws = Draws::new(self.seed, purpose, name);
        let Range { start: low, end } = self.vocabulary;
        let span = u64::from(end - low);
        // The token is the high half of a product with 32 random bits. All tokens are equally likely to 1
        // in 2^32 / span.
        let token = |bits: u64| low + ((bits * span) >> 32) as u32;
        tokens.resize(length, 0);
        let mut pairs = tokens[start..].chunks_exact_mut(2);
        let mut i = 0;
        for pair in &mut pairs {
            let bits = draws.bits(i);
            pair[0] = token(bits >> 32);
            pair[1] = token(bits & 0xffff_ffff);
            i += 1;
        }
        if let [last] = pairs.into_remainder() {
            *last = token(draws.bits(i) >> 32);
        }
    }

    fn fold(&self, id: u32) -> u32 {
        let Range { start, end } = self.vocabulary;
        if (start..end).contains(&id) { id } else { start + id % (end - start) }
    }
}

/// What a stream of random numbers is drawn for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// The tokens of a prompt's own part, by the request's index.
    Request = 1,
    /// The tokens of a named block.
    Block = 2,
    /// The common prefix of a group.
    Group = 3,
    /// The lengths of the random workload, by the request's index.
    Lengths = 4,
}

/// Random bits by their index. Streams of different (seed, purpose, name) are independent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws {
    key: u64,
}

impl Draws {
    pub(crate) fn new(seed: u64, purpose: Purpose, name: u64) -> Self {
        let key = mix(seed.wrapping_add((purpose as u64).wrapping_mul(STEP)));
        // `mix` is one to one, so different names of one purpose never have the same key.
        Self { key: mix(key ^ mix(name)) }
    }

    /// The `i`-th 64 random bits.
    #[inline]
    pub(crate) fn bits(self, i: u64) -> u64 {
        mix(self.key.wrapping_add(i.wrapping_add(1).wrapping_mul(STEP)))
    }
}

/// The odd number nearest to 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
