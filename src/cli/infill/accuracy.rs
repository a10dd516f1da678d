//! How often what fills a mask is what the text has there.

use anyhow::Context;
use pagedraft::session::{Decoder, Diffusion, Request, Session};

use super::pieces::Piece;
use super::requests;
use crate::cli::together::run;

/// How many of some predictions were right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    pub right: u64,
    pub all: u64,
}

impl Score {
    pub fn add(&mut self, right: bool) {
        self.all += 1;
        self.right += u64::from(right);
    }

    /// The share that was right; 0 of none.
    pub fn share(self) -> f64 {
        self.right as f64 / self.all.max(1) as f64
    }
}

/// Fills all masks of each piece by one pass of the model, each as if it were the only one; `None` if Ctrl-C ended it.
pub fn filled(
    session: &mut Session,
    pieces: &[Piece],
    share: f64,
    mask: u32,
) -> anyhow::Result<Option<Score>> {
    let asked = requests(pieces, |_, piece| Diffusion {
        decoder: Decoder::Baseline,
        block_length: piece.canvas.len() as u32,
        steps: Some(1),
        given: piece.given(share, mask),
        ..Diffusion::default()
    });
    let Some(outputs) = run(session, asked)? else { return Ok(None) };
    let mut score = Score::default();
    for (piece, output) in pieces.iter().zip(&outputs) {
        piece.hidden(share).for_each(|place| score.add(output.token_ids[place] == piece.canvas[place]));
    }
    Ok(Some(score))
}

/// For each token behind the prompt of each piece, what a causal model thinks likeliest behind all tokens before it; `None` if Ctrl-C ended
/// it.
pub fn predicted(session: &mut Session, pieces: &[Piece]) -> anyhow::Result<Option<Vec<Vec<u32>>>> {
    let asked = pieces.iter().enumerate().map(|(index, piece)| {
        let text = [&piece.prompt[..], &piece.canvas].concat();
        let mut request = Request::new(index.to_string(), text, 1);
        request.sampling.prompt_logprobs = Some(1);
        request
    });
    let asked = asked.collect();
    let Some(outputs) = run(session, asked)? else { return Ok(None) };
    let likeliest = pieces.iter().zip(outputs).map(|(piece, output)| {
        let all = output.prompt_logprobs.context("the request gave no log probabilities")?;
        let of = |best: &Option<Vec<_>>| -> anyhow::Result<u32> {
            let best: Option<&pagedraft::spec_decode::sampling::TokenLogprob> =
                best.as_ref().and_then(|best| best.first());
            Ok(best.context("a token of the prompt has no log probability")?.token_id)
        };
        all[piece.prompt.len()..].iter().map(of).collect()
    });
    likeliest.collect::<anyhow::Result<_>>().map(Some)
}
