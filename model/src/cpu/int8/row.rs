//! One row of a weight matrix in 8 bits.

use half::f16;

use super::BLOCK;

/// A row of weights in 8-bit integers, with a scale for each block of 64 inputs; see the [rule](super).
#[derive(Clone, Debug, Default)]
pub struct Int8Row {
    quants: Vec<i8>,
    scales: Vec<f16>,
    /// Room for values before they are quantised.
    values: Vec<f32>,
}

/// Two rows are equal if they stand for the same weights.
impl PartialEq for Int8Row {
    fn eq(&self, other: &Int8Row) -> bool {
        self.quants == other.quants && self.scales == other.scales
    }
}

impl Int8Row {
    /// The number of scales that a row of `k` weights has.
    #[must_use]
    pub fn num_scales(k: usize) -> usize {
        k.div_ceil(BLOCK)
    }

    /// Becomes the row with these values. A block in which a value is not finite, or too large for a scale in f16 (8.3 million), gets a
    /// scale of NaN.
    pub fn quantise(&mut self, values: &[f32]) {
        self.quants.clear();
        self.scales.clear();
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

    /// Becomes the row of the `k` values that `fill` writes.
    pub fn quantise_with(&mut self, k: usize, fill: impl FnOnce(&mut [f32])) {
        let mut values = std::mem::take(&mut self.values);
        values.resize(k, 0.0);
        fill(&mut values);
        self.quantise(&values);
        self.values = values;
    }

    /// Becomes the row with these integers and scales. An integer of -128 becomes -127.
    ///
    /// # Panics
    ///
    /// If there is not one scale for each block.
    pub fn take(&mut self, quants: impl Iterator<Item = i8>, scales: impl Iterator<Item = f16>) {
        self.quants.clear();
        self.quants.extend(quants.map(|q| q.max(-127)));
        self.scales.clear();
        self.scales.extend(scales);
        assert_eq!(self.scales.len(), Self::num_scales(self.quants.len()), "scales of another row");
    }

    /// The integers, one for each input.
    #[must_use]
    pub fn quants(&self) -> &[i8] {
        &self.quants
    }

    /// The scales, one for each block.
    #[must_use]
    pub fn scales(&self) -> &[f16] {
        &self.scales
    }

    /// Writes the weights that the integers and scales stand for. They are exact in f32.
    ///
    /// # Panics
    ///
    /// If `out` has another length than the row.
    pub fn write(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.quants.len(), "a row of another length");
        for ((out, quants), scale) in out.chunks_mut(BLOCK).zip(self.quants.chunks(BLOCK)).zip(&self.scales) {
            let scale = scale.to_f32();
            out.iter_mut().zip(quants).for_each(|(out, &q)| *out = f32::from(q) * scale);
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
