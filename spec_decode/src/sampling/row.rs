//! A row of logits that was checked once: it has no NaN, and its greatest value is known.

use super::error::SamplingError;

const LANES: usize = 16;

/// The checked logits of one position.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// One logit for each token, finite or minus infinity.
    pub logits: &'a [f32],
    /// The lowest token with the greatest logit.
    pub best: u32,
    /// The greatest logit, which is finite.
    pub max: f32,
}

impl<'a> Row<'a> {
    /// Refuses a row that has NaN or plus infinity anywhere, or nothing finite.
    pub fn new(logits: &'a [f32]) -> Result<Row<'a>, SamplingError> {
        // This is one pass in lanes, so that it vectorises. Which token was bad is searched for afterwards.
        let (blocks, rest) = logits.as_chunks::<LANES>();
        let mut usable = [true; LANES];
        let mut best = [f32::NEG_INFINITY; LANES];
        for block in blocks {
            for lane in 0..LANES {
                usable[lane] &= block[lane] < f32::INFINITY;
                best[lane] = if block[lane] > best[lane] { block[lane] } else { best[lane] };
            }
        }
        let usable = usable.iter().all(|u| *u) && rest.iter().all(|l| *l < f32::INFINITY);
        let max = best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
        if !usable {
            let bad = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
            let token = logits.iter().position(bad).unwrap_or_default();
            return Err(SamplingError::BadLogit {
                token: token as u32,
                value: logits.get(token).copied().unwrap_or(f32::NAN),
            });
        }
        if max == f32::NEG_INFINITY {
            let vocab = logits.len();
            return Err(SamplingError::NoToken { vocab });
        }
        let best = logits.iter().position(|&logit| logit == max);
        Ok(Row { logits, best: best.unwrap_or_default() as u32, max })
    }
}
