//! Pieces of a text, and which of their tokens are masked.

use std::sync::Arc;

use anyhow::ensure;
use pagedraft_spec_decode::sampling::{Noise, Purpose, SamplingParams};

/// A piece of the text.
pub struct Piece {
    /// Its beginning, which is never masked.
    pub prompt: Vec<u32>,
    /// The rest.
    pub canvas: Vec<u32>,
    /// For each token of the rest a number from 0 to 1: a token is masked where its number is below the share that is asked for, so that
    /// what is masked at a low share is masked at a higher one too.
    draws: Vec<f64>,
}

impl Piece {
    /// The places in the canvas that are masked.
    pub fn hidden(&self, share: f64) -> impl Iterator<Item = usize> {
        let draws = self.draws.iter().enumerate();
        draws.filter(move |&(_, &draw)| draw < share).map(|(place, _)| place)
    }

    /// The canvas with masks.
    pub fn given(&self, share: f64, mask: u32) -> Arc<[u32]> {
        let mut ids = self.canvas.clone();
        self.hidden(share).for_each(|place| ids[place] = mask);
        ids.into()
    }
}

/// Cuts up to `count` pieces out of `tokens`, evenly spread. `lens` are the tokens that are never masked, and those behind them.
///
/// # Errors
///
/// The text is shorter than one piece.
pub fn pieces(
    tokens: &[u32],
    count: u32,
    (prompt_len, canvas_len): (u32, u32),
    seed: u64,
) -> anyhow::Result<Vec<Piece>> {
    let (prompt_len, canvas_len) = (prompt_len as usize, canvas_len as usize);
    let len = prompt_len + canvas_len;
    ensure!(
        tokens.len() >= len,
        "the text has {} tokens, and a piece of it {len}: give a longer text, or a shorter --prompt-len or --canvas-len",
        tokens.len()
    );
    let count = (count as usize).min(tokens.len() / len);
    let stride = tokens.len() / count;
    let cut = |index: usize| {
        let piece = &tokens[index * stride..][..len];
        let params = SamplingParams { seed, ..SamplingParams::default() };
        let noise = Noise::new(&params, index as u32);
        Piece {
            prompt: piece[..prompt_len].to_vec(),
            canvas: piece[prompt_len..].to_vec(),
            draws: (0..canvas_len as u32).map(|place| noise.uniform(Purpose::Choice, place)).collect(),
        }
    };
    Ok((0..count).map(cut).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_overlap_and_lower_shares_are_part_of_higher_ones() {
        let tokens: Vec<u32> = (0..1000).collect();
        let all = pieces(&tokens, 50, (4, 36), 7).unwrap();
        assert_eq!(all.len(), 25);
        let mut hidden = 0;
        for (at, piece) in all.iter().enumerate() {
            assert_eq!((piece.prompt[0], piece.canvas[35]), (at as u32 * 40, at as u32 * 40 + 39));
            let (few, many): (Vec<usize>, Vec<usize>) =
                (piece.hidden(0.3).collect(), piece.hidden(0.6).collect());
            assert!(few.iter().all(|place| many.contains(place)));
            let given = piece.given(0.6, 5000);
            let masks = (0..36).filter(|&place| given[place] == 5000).collect::<Vec<_>>();
            assert_eq!(masks, many);
            assert_eq!(piece.hidden(1.0).count(), 36);
            hidden += many.len();
        }
        assert!((hidden as f64 / 900.0 - 0.6).abs() < 0.06, "{hidden} of 900");
        assert!(pieces(&tokens[..39], 1, (4, 36), 7).is_err());
    }
}
