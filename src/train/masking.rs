//! Masks over a batch, as masked diffusion is trained (LLaDA: Nie et al., 2025).

use super::corpus::Batch;
use super::noise::Noise;

/// The least share of a row that is masked, so that no weight is infinite.
const LEAST: f32 = 1e-3;

/// The batch with masks for tokens: of each row a share t is drawn, each of its tokens becomes the mask with probability t, and the
/// prediction of a masked token counts 1 / t, that of any other nothing. The loss is then an upper bound of the text's negative
/// log-likelihood a token (equation 3 of the paper).
///
/// The shares of the rows are spread evenly from one drawn offset, (offset + row / rows) modulo 1, which makes the sum over the rows
/// vary less. Each of them is uniform in `LEAST..1`.
pub fn masked(batch: Batch, mask: u32, mut noise: Noise) -> Batch {
    let rows = (batch.inputs.len() / batch.time).max(1);
    let offset = noise.uniform();
    let mut hidden = Batch {
        inputs: batch.inputs.clone(),
        next: batch.inputs,
        time: batch.time,
        weights: vec![0.0; rows * batch.time],
    };
    for row in 0..rows {
        let share = LEAST + (1.0 - LEAST) * (offset + row as f32 / rows as f32).fract();
        for at in row * batch.time..(row + 1) * batch.time {
            if noise.uniform() < share {
                hidden.inputs[at] = mask;
                hidden.weights[at] = 1.0 / share;
            }
        }
    }
    hidden
}
