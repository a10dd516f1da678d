//! Weights out of a seed, for speed runs at any shape (`--load-format dummy`).
//!
//! A value is a function of (seed, tensor name, row, column) alone, so rows can be made in any
//! order by any number of threads. Values are multiples of 2^-12 up to 255 in size, so they are the
//! same numbers in float32, float16 and bfloat16; they follow a triangular distribution of mean 0 and
//! standard deviation 0.0255, close to the 0.02 that models are initialised with. Norm weights are
//! 1. One hash gives four values: a core makes over half a billion values a second.

/// The values of one tensor.
#[derive(Clone, Copy)]
pub(super) struct Generator {
    /// None: every value is 1.
    key: Option<u64>,
}

/// 2^-12: values of up to 8 significant bits times it are exact in every type, f16 included.
const UNIT: f32 = 1.0 / 4096.0;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that scatters 64 bits.
const fn scatter(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Generator {
    pub fn new(seed: u64, tensor: &str) -> Generator {
        if tensor.ends_with("norm.weight") {
            return Generator { key: None };
        }
        // FNV-1a, 64 bits.
        let name = tensor.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Generator { key: Some(scatter(scatter(seed) ^ name)) }
    }

    /// Fills a whole row, from column 0.
    pub fn fill_row(self, row: usize, out: &mut [f32]) {
        let Some(key) = self.key else {
            out.fill(1.0);
            return;
        };
        let key = scatter(key ^ row as u64);
        for (counter, four) in out.chunks_mut(4).enumerate() {
            let bits = scatter(key.wrapping_add(counter as u64)).to_le_bytes();
            for (value, pair) in four.iter_mut().zip(bits.chunks_exact(2)) {
                let sum = pair.iter().map(|&byte| i32::from(byte)).sum::<i32>();
                *value = (sum - 255) as f32 * UNIT;
            }
        }
    }
}
