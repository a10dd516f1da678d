//! A model that is run over a text to see which of its tokens are attended to.

use pagedraft_attention::mass::MassOver;
use pagedraft_attention::{MetadataBuilder, MetadataRow};
use pagedraft_block_manager::BlockId;
use pagedraft_model::{AnyDevice, Runner, StepInputs};

use crate::error::{Result, ensure};

/// Tokens that a draft model looks ahead, as in SpecPrefill (2502.02789).
pub const LOOK_AHEAD: usize = 8;

/// A model with room for the KV of one text. It runs a layer at a time.
pub struct Probe {
    runner: Runner<AnyDevice>,
    builder: MetadataBuilder,
    table: Vec<BlockId>,
}

impl Probe {
    /// A probe of a [layerwise](pagedraft_model::cut::layerwise()) decoder of one KV group, which has `num_blocks` blocks of `block_size` tokens.
    ///
    /// # Errors
    ///
    /// A block size that is not 16, 32 or 64.
    pub fn new(runner: Runner<AnyDevice>, block_size: u32, num_blocks: u32) -> Result<Self> {
        let builder = MetadataBuilder::new(block_size)?;
        Ok(Self { runner, builder, table: (0..num_blocks).map(BlockId).collect() })
    }

    /// For each layer and each of the first `from` tokens, the attention that the tokens behind them pay to it, the mean over heads and over
    /// these tokens.
    ///
    /// # Errors
    ///
    /// No tokens on one side of `from`, more tokens than the model has room for, or a fault of the device.
    pub fn answer_mass(&mut self, tokens: &[u32], from: usize) -> Result<Vec<Vec<f32>>> {
        ensure!(0 < from && from < tokens.len(), "an answer of {} tokens", tokens.len() - from);
        self.run(tokens, 0, from, None)?;
        let mut by_layer = Vec::new();
        self.run(tokens, from, tokens.len(), Some((MassOver::Sum, &mut by_layer)))?;
        let pairs = (tokens.len() - from) * self.runner.config().num_heads;
        for mass in &mut by_layer {
            mass.truncate(from);
            mass.iter_mut().for_each(|mass| *mass /= pairs as f32);
        }
        Ok(by_layer)
    }

    /// For each token of a prompt, the attention that the [tokens to come](LOOK_AHEAD) pay to it: the greatest of all layers and heads, the
    /// mean over these tokens. They are the model's most likely ones.
    ///
    /// # Errors
    ///
    /// An empty prompt, more tokens than the model has room for, or a fault of the device.
    pub fn look_ahead(&mut self, prompt: &[u32]) -> Result<Vec<f32>> {
        ensure!(!prompt.is_empty(), "an empty prompt");
        let vocab = self.runner.config().vocab_size as u32;
        // An id that only the target has is padding.
        let mut tokens: Vec<u32> = prompt.iter().map(|&token| token.min(vocab - 1)).collect();
        let mut last = self.run(&tokens, 0, prompt.len(), None)?;
        let mut mean = vec![0.0; prompt.len()];
        for _ in 0..LOOK_AHEAD {
            let rows = [last];
            let logits = self.runner.logits(&rows)?;
            let best =
                |(best, at): (f32, u32), (i, &x): (u32, &f32)| if x > best { (x, i) } else { (best, at) };
            let (_, next) = (0..).zip(logits.row(0)).fold((f32::NEG_INFINITY, 0), best);
            tokens.push(next);
            let mut by_layer = Vec::new();
            let end = tokens.len();
            last = self.run(&tokens, end - 1, end, Some((MassOver::Greatest, &mut by_layer)))?;
            for (at, mean) in mean.iter_mut().enumerate() {
                let most = by_layer.iter().map(|mass| mass[at]);
                // A weight that is no number makes its score none.
                *mean +=
                    most.fold(0.0, |a: f32, b| if b > a || b.is_nan() { b } else { a }) / LOOK_AHEAD as f32;
            }
        }
        Ok(mean)
    }

    /// Runs `tokens[start..end]`, whose predecessors have run. Adds to `mass` what each layer's queries attend to. Returns the row of the last
    /// token.
    fn run(
        &mut self,
        tokens: &[u32],
        start: usize,
        end: usize,
        mut mass: Option<(MassOver, &mut Vec<Vec<f32>>)>,
    ) -> Result<u32> {
        let most = self.runner.limits().token_rows;
        let room = self.table.len() * self.builder.block_size() as usize;
        ensure!(end <= room, "{end} tokens, and there is room for {room}");
        ensure!(mass.is_none() || end - start <= most, "{} tokens, and {most} are the most", end - start);
        let mut from = start;
        let mut last = 0;
        while from < end {
            let to = end.min(from + most);
            self.builder.begin();
            self.builder.push(MetadataRow::causal(from as u32, (to - from) as u32, &self.table))?;
            let inputs = StepInputs {
                tokens: tokens[from..to].to_vec(),
                positions: (from as u32..to as u32).collect(),
                groups: vec![self.builder.take(Default::default())],
            };
            for layer in 0..self.runner.model().num_segments() {
                self.runner.forward_segment(layer, &inputs)?;
                if let Some((over, by_layer)) = &mut mass {
                    let q = self.runner.queries(0..to - from)?.to_vec();
                    by_layer.push(self.runner.attention_mass((&self.table, to), &q, *over)?);
                }
            }
            last = (to - from) as u32 - 1;
            from = to;
        }
        Ok(last)
    }
}
