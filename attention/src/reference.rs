//! Attention written out slowly. The kernels give these very bits.
//!
//! For a query that sees keys `first .. visible` (`first` is 0 without a sliding window):
//!
//! 1. Keys are taken in tiles of 64, counted from index 0 whatever the block size and `first`. A tile of
//!    which the query sees no key changes nothing.
//! 2. The score of key j is `scale * (q_0 k_j0 + q_1 k_j1 + ..)`, the sum one chain of multiply-adds over
//!    ascending d that starts at 0.
//! 3. The running maximum becomes that of itself and the tile's scores; what was summed so far is
//!    multiplied with `exp(old maximum - new)`.
//! 4. The weight of key j is `exp(score - maximum)`. Keys 16 apart share a partial sum of weights: four
//!    of a tile as `(a + b) + (c + d)`, added to the partial sum with one multiply-add by the factor of 3.
//!    Keys that aren't seen weigh 0 there.
//! 5. Each output value is one chain: the factor of 3, then a multiply-add of weight and value for
//!    each key seen, ascending. Keys that aren't seen are not in it at all.
//! 6. In the end each output value is divided by the sum of the 16 partial sums (halves folded onto
//!    each other: 8, 4, 2, 1).

use crate::isa::Isa;

const TILE: usize = 64;
const LANES: usize = 16;

/// Scalar arithmetic as an instruction set does it: a multiply-add rounds once, or twice on
/// `Isa::Portable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// Whether a multiply-add rounds once.
    pub fused: bool,
}

impl Arithmetic {
    /// The arithmetic of an instruction set.
    #[must_use]
    pub fn of(isa: Isa) -> Arithmetic {
        Arithmetic { fused: isa != Isa::Portable }
    }

    /// `a * b + c`, rounded once or twice.
    #[must_use]
    pub fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        if self.fused { a.mul_add(b, c) } else { a * b + c }
    }

    /// e to the power of x, with the bits of [`Lanes::exp`](crate::lanes::Lanes::exp).
    #[must_use]
    pub fn exp(self, x: f32) -> f32 {
        let x = x.clamp(-87.33, 88.37);
        let n = (x * std::f32::consts::LOG2_E).round_ties_even();
        let r = self.mul_add(n, -0.693_359_4, x);
        let r = self.mul_add(n, 2.121_944_4e-4, r);
        let mut p = 1.987_569_2e-4;
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.mul_add(p, r, c);
        }
        let y = self.mul_add(p, r * r, r) + 1.0;
        y * f32::from_bits(((n as i32 + 127) as u32) << 23)
    }

    /// The output of one query in one head. `key(j, d)` and `value(j, d)` return what is stored; they are
    /// called only for `first <= j < visible`. `first` must be less than `visible`.
    #[must_use]
    pub fn attend(
        self,
        q: &[f32],
        first: usize,
        visible: usize,
        scale: f32,
        key: impl Fn(usize, usize) -> f32,
        value: impl Fn(usize, usize) -> f32,
    ) -> Vec<f32> {
        let mut out = vec![0.0f32; q.len()];
        let mut sums = [0.0f32; LANES];
        let mut maximum = f32::NEG_INFINITY;
        for tile in (first / TILE * TILE..visible).step_by(TILE) {
            let (start, end) = (first.max(tile), visible.min(tile + TILE));
            let mut scores = Vec::new();
            for j in start..end {
                let mut dot = 0.0;
                for (d, &q) in q.iter().enumerate() {
                    dot = self.mul_add(q, key(j, d), dot);
                }
                scores.push(scale * dot);
            }
            let before = maximum;
            maximum = scores.iter().copied().fold(maximum, f32::max);
            let factor = self.exp(before - maximum);
            let mut weights = [0.0f32; TILE];
            for (weight, score) in weights[start - tile..].iter_mut().zip(scores) {
                *weight = self.exp(score - maximum);
            }
            for (lane, sum) in sums.iter_mut().enumerate() {
                let w = |n: usize| weights[n * LANES + lane];
                *sum = self.mul_add(*sum, factor, (w(0) + w(1)) + (w(2) + w(3)));
            }
            for (d, out) in out.iter_mut().enumerate() {
                *out *= factor;
                for j in start..end {
                    *out = self.mul_add(weights[j - tile], value(j, d), *out);
                }
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                sums[lane] += sums[lane + half];
            }
            half /= 2;
        }
        out.iter().map(|sum| sum / sums[0]).collect()
    }
}
