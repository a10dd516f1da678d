//! What token skip changes, pass by pass: the same passes with and without it.

use std::collections::BTreeMap;

use pagedraft::session::{Decoder, Diffusion, DiffusionOutput, RequestOutput, Session};
use pagedraft_spec_decode::ForcedPass;

use super::accuracy::Score;
use super::pieces::Piece;
use super::requests;
use crate::cli::together::run;

/// What some canvases took, and what came out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// Passes of the model.
    pub evaluations: u64,
    /// Masks that were filled.
    pub filled: u64,
    /// The sum over passes and layers of the tokens that ran through.
    pub token_layers: u64,
    /// Tokens of blocks in all passes but the first of each block, and those of them that skipped the later layers.
    pub block_tokens: (u64, u64),
    /// What stood in the end where masks were.
    pub right: Score,
}

/// Token skip against the dual cache.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// How often both chose the same token for a mask, by the pass over the block, counted from 1: the first pass is a full one, which
    /// skips nothing, and is left out.
    pub agreement: BTreeMap<u32, Score>,
    /// How often these choices of the dual cache are what the text has.
    pub dual_choices: Score,
    /// How often those with token skip are, in the same passes over the same canvases.
    pub skip_choices: Score,
    /// The dual cache on its own.
    pub dual: Run,
    /// Token skip on its own.
    pub skip: Run,
}

impl Compared {
    /// All passes together.
    pub fn all(&self) -> Score {
        self.agreement
            .values()
            .fold(Score::default(), |a, b| Score { right: a.right + b.right, all: a.all + b.all })
    }

    fn add(&mut self, piece: &Piece, dual: &DiffusionOutput, forced: &DiffusionOutput) {
        let passes = dual.steps.iter().flatten().zip(forced.steps.iter().flatten());
        for (one, other) in passes.filter(|(one, _)| one.step > 0) {
            // Both have the same masks, but without a guard there are some for which skipping has no choice.
            let theirs: BTreeMap<u32, u32> = other.choices.iter().copied().collect();
            for &(position, token) in &one.choices {
                let text = piece.canvas[position as usize - piece.prompt.len()];
                let their = theirs.get(&position);
                self.agreement.entry(one.step).or_default().add(their == Some(&token));
                self.dual_choices.add(token == text);
                self.skip_choices.add(their == Some(&text));
            }
        }
    }
}

/// Denoises the canvases with the dual cache, then with token skip made to fill the very same masks in every pass, then with token skip on its
/// own; `None` if Ctrl-C ended it.
pub fn compare(
    session: &mut Session,
    pieces: &[Piece],
    share: f64,
    mask: u32,
    how: &Diffusion,
) -> anyhow::Result<Option<Compared>> {
    let skipping = |piece: &Piece| Diffusion {
        given: piece.given(share, mask),
        return_steps: true,
        return_choices: true,
        ..how.clone()
    };
    let dual = |_, piece: &Piece| Diffusion { decoder: Decoder::DualCache, ..skipping(piece) };
    let Some(dual) = run(session, requests(pieces, dual))? else { return Ok(None) };
    let forced = |index: usize, piece: &Piece| {
        let steps = dual[index].diffusion.iter().flat_map(|canvas| canvas.steps.iter().flatten());
        let passes = steps.map(|step| ForcedPass {
            block: step.block,
            step: step.step,
            fills: step.pos.iter().copied().zip(step.tok.iter().copied()).collect(),
        });
        Diffusion { forced: passes.collect(), ..skipping(piece) }
    };
    let Some(forced) = run(session, requests(pieces, forced))? else { return Ok(None) };
    let Some(free) = run(session, requests(pieces, |_, piece| skipping(piece)))? else { return Ok(None) };
    let mut compared = Compared::default();
    for (index, piece) in pieces.iter().enumerate() {
        if let (Some(one), Some(other)) = (&dual[index].diffusion, &forced[index].diffusion) {
            compared.add(piece, one, other);
        }
        compared.dual.add(piece, share, &dual[index]);
        compared.skip.add(piece, share, &free[index]);
    }
    Ok(Some(compared))
}

impl Run {
    /// Masks filled a pass.
    pub fn tokens_a_forward(&self) -> f64 {
        self.filled as f64 / self.evaluations.max(1) as f64
    }

    /// The share of the blocks' tokens that skipped layers.
    pub fn skipped(&self) -> f64 {
        self.block_tokens.1 as f64 / self.block_tokens.0.max(1) as f64
    }

    fn add(&mut self, piece: &Piece, share: f64, output: &RequestOutput) {
        let Some(canvas) = &output.diffusion else { return };
        self.evaluations += u64::from(canvas.nfe);
        self.token_layers += canvas.token_layers;
        for step in canvas.steps.iter().flatten() {
            self.filled += step.pos.len() as u64;
            if step.step > 0 {
                self.block_tokens.0 += u64::from(step.stable + step.active);
                self.block_tokens.1 += u64::from(step.stable);
            }
        }
        piece.hidden(share).for_each(|place| self.right.add(output.token_ids[place] == piece.canvas[place]));
    }
}
