//! Cuts prompts for benchmarks from a text that the embedded models were not trained on.

use std::path::Path;

use anyhow::Context;
use pagedraft::exit::usage;
use pagedraft::session::Session;

use super::interrupt;

/// The text.
pub const TEXT: &str = include_str!("../../assets/held_out.txt");

/// The text of a file that `--text` names, or the text.
pub fn read(file: Option<&Path>) -> anyhow::Result<String> {
    let Some(file) = file else { return Ok(TEXT.to_owned()) };
    let read = std::fs::read_to_string(file);
    read.with_context(|| format!("--text {} can't be read as UTF-8", file.display())).map_err(usage)
}

/// Makes `count` prompts of `length` tokens. A model without a tokenizer, or with weights that were never
/// trained, gets token ids drawn from `seed`. There are fewer prompts if Ctrl-C was pressed.
pub fn prompts(session: &Session, count: usize, length: usize, seed: u64) -> anyhow::Result<Vec<Vec<u32>>> {
    match session.tokenizer() {
        Some(tokenizer) if !session.info().dummy_weights => {
            let tokens = tokenizer.encode(TEXT, false).context("the benchmark's text can't be tokenised")?;
            Ok(cut(&tokens, count, length))
        }
        _ => Ok(drawn(count, length, session.info().vocab_size, seed)),
    }
}

/// Cuts one piece after the other, and begins again where the text ends.
fn cut(tokens: &[u32], count: usize, length: usize) -> Vec<Vec<u32>> {
    let mut endless = tokens.iter().copied().cycle();
    wanted(count).map(|_| endless.by_ref().take(length).collect()).collect()
}

/// The indices of the prompts to make, until Ctrl-C is pressed. The first is always there, so that there is
/// a prompt to look at.
fn wanted(count: usize) -> impl Iterator<Item = usize> {
    (0..count).take_while(|&i| i == 0 || !interrupt::pressed())
}

fn drawn(count: usize, length: usize, vocab: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut state = seed;
    let mut next = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % vocab.max(1) as u64) as u32
    };
    wanted(count).map(|_| (0..length).map(|_| next()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_differ_and_a_short_text_goes_round() {
        assert_eq!(cut(&[1, 2, 3, 4, 5], 3, 3), [[1, 2, 3], [4, 5, 1], [2, 3, 4]]);
    }

    #[test]
    fn drawn_ids_are_the_models_and_depend_on_the_seed() {
        let ids = drawn(4, 500, 97, 1);
        assert!(ids.iter().flatten().all(|&id| id < 97));
        assert_eq!(ids, drawn(4, 500, 97, 1));
        assert_ne!(ids, drawn(4, 500, 97, 2));
    }
}
