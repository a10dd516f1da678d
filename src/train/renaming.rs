//! Other tokens in the place of keys and values, so that a model learns to copy whatever stands there.
//!
//! A model that answers with some hundred words alone learns these words, and after millions of questions it answers with them even
//! where the text has another one. In a share of the samples each word is therefore another token of the vocabulary, throughout the sample.

use super::bpe;
use super::noise::Noise;
use super::rows::Words;
use anyhow::Result;
use std::collections::{HashMap, HashSet};
use tokenizers::Tokenizer;

/// What statements and questions are made of beside keys and values.
const FRAME: &str = "The word for is was.";

/// Draws the tokens that stand for words.
#[derive(Debug, Clone)]
pub struct Renaming {
    /// The tokens of the words that training uses.
    words: HashSet<u32>,
    /// What may stand in their place: letters, but none of the held-out words and of the words around keys and values.
    others: Vec<u32>,
    /// The share of the samples that are renamed, from 0 to 1.
    share: f32,
    seed: u64,
}

impl Renaming {
    /// Renames a `share` of the samples of these words.
    ///
    /// # Errors
    ///
    /// The tokenizer cannot write a word.
    pub fn new(tokenizer: &Tokenizer, words: &Words, share: f32, seed: u64) -> Result<Self> {
        let tokens = |words: &[String]| -> Result<HashSet<u32>> {
            let encoded = words.iter().map(|word| bpe::encode(tokenizer, &format!(" {word}")));
            Ok(encoded.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        let held_out = tokens(&words.held_out)?;
        let frame: HashSet<u32> = bpe::encode(tokenizer, FRAME)?.into_iter().collect();
        let mut others: Vec<u32> = Vec::new();
        for (token, id) in tokenizer.get_vocab(false) {
            let word = token.strip_prefix('Ġ').unwrap_or(&token);
            let letters = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic());
            if letters && !held_out.contains(&id) && !frame.contains(&id) {
                others.push(id);
            }
        }
        others.sort_unstable();
        Ok(Self { words: tokens(&words.trained)?, others, share, seed })
    }

    /// Renames the words among the tokens of sample `index`, if it is one of the share. A word has one name in a sample, and no two words
    /// have the same.
    pub fn apply(&self, index: u64, tokens: &mut [u32]) {
        let mut noise = Noise::new(self.seed, "renaming", index);
        if noise.uniform() >= self.share {
            return;
        }
        let mut free = self.others.clone();
        let mut names: HashMap<u32, u32> = HashMap::new();
        for token in tokens.iter_mut().filter(|token| self.words.contains(token)) {
            if let Some(name) = names.get(token) {
                *token = *name;
            } else if !free.is_empty() {
                let name = free.swap_remove(noise.below(free.len()));
                names.insert(*token, name);
                *token = name;
            }
        }
    }
}
