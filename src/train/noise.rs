//! Random numbers that depend on their key alone.
//!
//! Nothing here is a stream that others draw from: what a step draws is a function of the seed and
//! of what it is drawn for, so that a resumed run goes on with the very batches, dropout masks and
//! weights that an uninterrupted one would have had.

/// One round of SplitMix64 (Steele, Lea and Flood, 2014) over a 64-bit word.
#[inline]
pub fn scramble(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The numbers that belong to one key.
#[derive(Debug, Clone)]
pub struct Noise {
    key: u64,
    drawn: u64,
}

impl Noise {
    /// The numbers of `purpose` (a short name, so that two uses of one seed never share numbers)
    /// at `index` under `seed`.
    pub fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let mut key = scramble(seed);
        for byte in purpose.bytes() {
            key = scramble(key ^ u64::from(byte));
        }
        Self { key: scramble(key ^ index), drawn: 0 }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.drawn += 1;
        scramble(self.key ^ self.drawn.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// Uniform in `[0, 1)`, 24 bits of it.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Uniform in `0..bound` (0 for a bound of 0); the bias of the multiply-shift is below 2^-32
    /// for the bounds used here.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * f64::from(1.0 - self.uniform()).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.uniform());
        (radius * angle.cos()) as f32
    }
}
