//! One row of a weight matrix in few bits.

use half::f16;

use super::{BLOCK, Format};

/// A row of weights in integers of few bits, with scales; see the [rule](super).
#[derive(Clone, Debug, Default)]
pub struct QuantRow {
    format: Format,
    quants: Vec<i8>,
    scales: Vec<f16>,
    minima: Vec<f16>,
    /// Room for values before they are quantised.
    values: Vec<f32>,
}

/// Two rows are equal if they stand for the same weights.
impl PartialEq for QuantRow {
    fn eq(&self, other: &QuantRow) -> bool {
        (self.format, &self.quants, &self.scales, &self.minima)
            == (other.format, &other.quants, &other.scales, &other.minima)
    }
}

impl QuantRow {
    /// The number of scales that a row of `k` weights in 8 bits has.
    #[must_use]
    pub fn num_scales(k: usize) -> usize {
        k.div_ceil(BLOCK)
    }

    /// Becomes a row of this format without weights, to which blocks can be [added](Self::add).
    pub fn clear(&mut self, format: Format) {
        self.format = format;
        self.quants.clear();
        self.scales.clear();
        self.minima.clear();
    }

    /// Adds the weights that share a scale: as many as the format says, or fewer in the last block. The least value counts only in a format
    /// that has some.
    pub fn add(&mut self, quants: impl IntoIterator<Item = i8>, scale: f16, minimum: f16) {
        self.quants.extend(quants);
        self.scales.push(scale);
        if self.format.has_minima() {
            self.minima.push(minimum);
        }
    }

    /// Becomes the row in 8 bits with these values. A block in which a value is not finite, or too large for a scale in f16 (8.3 million),
    /// gets a scale of NaN.
    pub fn quantise(&mut self, values: &[f32]) {
        self.clear(Format::Int8);
        for block in values.chunks(BLOCK) {
            let most = block.iter().fold(0u32, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
            let scale = scale_of(f32::from_bits(most));
            self.scales.push(scale);
            let scale = scale.to_f32();
            if scale > 0.0 {
                self.quants.extend(block.iter().map(|x| rounded(x / scale) as i8));
            } else {
                self.quants.resize(self.quants.len() + block.len(), 0);
            }
        }
    }

    /// Becomes the row in 8 bits of the `k` values that `fill` writes.
    pub fn quantise_with(&mut self, k: usize, fill: impl FnOnce(&mut [f32])) {
        let mut values = std::mem::take(&mut self.values);
        values.resize(k, 0.0);
        fill(&mut values);
        self.quantise(&values);
        self.values = values;
    }

    /// What kind of weights it has.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The integers, one for each input.
    #[must_use]
    pub fn quants(&self) -> &[i8] {
        &self.quants
    }

    /// The scales, one for each [so many](Format::inputs_a_scale) inputs.
    #[must_use]
    pub fn scales(&self) -> &[f16] {
        &self.scales
    }

    /// The least values, as many as scales, or none.
    #[must_use]
    pub fn minima(&self) -> &[f16] {
        &self.minima
    }

    /// Writes the weights that the integers and scales stand for. Products of them are exact in f32; a least value is added with one rounding.
    ///
    /// # Panics
    ///
    /// If `out` has another length than the row.
    pub fn write(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.quants.len(), "a row of another length");
        let inputs = self.format.inputs_a_scale();
        let parts = out.chunks_mut(inputs).zip(self.quants.chunks(inputs)).zip(&self.scales).enumerate();
        for (part, ((out, quants), scale)) in parts {
            let (scale, minimum) =
                (scale.to_f32(), self.minima.get(part).copied().unwrap_or_default().to_f32());
            let minima = self.format.has_minima();
            for (out, &q) in out.iter_mut().zip(quants) {
                let product = f32::from(q) * scale;
                *out = if minima { product + minimum } else { product };
            }
        }
    }
}

/// The least f16 that is not below `most / 127`; NaN where there is none.
fn scale_of(most: f32) -> f16 {
    let exact = most / 127.0;
    let near = f16::from_f32(exact);
    // Bits of positive numbers are ordered as the numbers are.
    let scale = if near.to_f32() < exact { f16::from_bits(near.to_bits() + 1) } else { near };
    // The quotient that was compared with may itself have been rounded down.
    let scale = if scale.to_f32() * 127.0 < most { f16::from_bits(scale.to_bits() + 1) } else { scale };
    if scale.is_finite() { scale } else { f16::NAN }
}

/// `x` rounded to the nearest integer, ties to even, for |x| below 2^22. It is two additions, which a compiler makes vectors of.
#[inline(always)]
pub(super) fn rounded(x: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}
