//! A row of logits that was looked at once: no NaN, and where its greatest value is.

use super::error::SamplingError;

const LANES: usize = 16;

/// Logits of one position, checked.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// One a token; finite or minus infinity.
    pub logits: &'a [f32],
    /// The lowest token with the greatest logit.
    pub best: u32,
    /// That logit; finite.
    pub max: f32,
}

impl<'a> Row<'a> {
    /// Refuses NaN and plus infinity anywhere, and a row with nothing finite in it.
    pub fn new(logits: &'a [f32]) -> Result<Row<'a>, SamplingError> {
        // One pass in lanes, so that it vectorises; who it was is looked for afterwards.
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
