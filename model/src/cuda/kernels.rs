//! The kernel sources of this crate, and how matrix products are cut.

use pagedraft_attention::cuda::{Header, Source};

macro_rules! text {
    ($name:literal) => {
        include_str!(concat!("../../cuda/", $name))
    };
}

const HEADERS: &[Header] = &[
    ("choice.cuh", text!("choice.cuh")),
    ("noise.cuh", text!("noise.cuh")),
    ("select.cuh", text!("select.cuh")),
];

/// The kernel sources of this crate. Those of attention are [`pagedraft_attention::cuda::SOURCES`].
pub const SOURCES: &[Source] = &[
    Source::new("embed.cu", &["embed"], text!("embed.cu"), HEADERS),
    Source::new("rms_norm.cu", &["rms_norm", "add_rms_norm"], text!("rms_norm.cu"), HEADERS),
    Source::new("swiglu.cu", &["swiglu"], text!("swiglu.cu"), HEADERS),
    Source::new(
        "rows.cu",
        &["gather_rows", "copy_rows", "widen_rows", "add_bias", "add_bias_act"],
        text!("rows.cu"),
        HEADERS,
    ),
    Source::new(
        "matmul.cu",
        &["matmul_8", "matmul_16", "matmul_32", "matmul_64", "matmul_128", "matmul_128_serial"],
        text!("matmul.cu"),
        HEADERS,
    ),
    Source::new("argmax.cu", &["argmax"], text!("argmax.cu"), HEADERS),
    Source::new("sample.cu", &["sample"], text!("sample.cu"), HEADERS),
    Source::new("accept.cu", &["accept"], text!("accept.cu"), HEADERS),
];

/// One of the matrix product kernels, and the tile that a block of threads computes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulTile {
    /// The name of the kernel.
    pub kernel: &'static str,
    /// The number of token rows of a tile.
    pub rows: u32,
    /// The number of weight rows of a tile.
    pub n: u32,
    /// The number of threads of a block.
    pub threads: u32,
    /// Whether a block computes all splits, one after the other.
    pub serial: bool,
    stages: u32,
}

/// Splits consist of whole groups of this many values of k.
const DEPTH: u32 = 64;

impl MatmulTile {
    /// All kernels. They all give the same bits.
    pub const ALL: [Self; 6] = [
        Self { kernel: "matmul_8", rows: 8, n: 64, threads: 128, serial: false, stages: 6 },
        Self { kernel: "matmul_16", rows: 16, n: 64, threads: 128, serial: false, stages: 5 },
        Self { kernel: "matmul_32", rows: 32, n: 128, threads: 128, serial: false, stages: 4 },
        Self { kernel: "matmul_64", rows: 64, n: 128, threads: 128, serial: false, stages: 4 },
        Self { kernel: "matmul_128", rows: 128, n: 128, threads: 256, serial: false, stages: 3 },
        Self { kernel: "matmul_128_serial", rows: 128, n: 128, threads: 256, serial: true, stages: 3 },
    ];

    /// The kernel for `rows` token rows by a weight of `[n, k]`, on a GPU of `multiprocessors`.
    #[must_use]
    pub fn choose(rows: u32, n: u32, k: u32, multiprocessors: u32) -> Self {
        let [t8, t16, t32, t64, t128, serial] = Self::ALL;
        match rows {
            0..=8 => t8,
            9..=16 => t16,
            17..=32 => t32,
            33..=64 => t64,
            // If nothing is split, the serial kernel has no advantage.
            _ if splits(n, k) == 1 => t128,
            // There are enough blocks without splits. The serial kernel then adds splits in registers instead of through
            // memory.
            _ if rows.div_ceil(128) * n.div_ceil(128) >= multiprocessors => serial,
            _ => t128,
        }
    }

    /// The bytes of dynamic shared memory.
    #[must_use]
    pub const fn shared_bytes(&self) -> u32 {
        self.stages * (self.n + self.rows) * DEPTH * 2
    }

    /// The grid for `rows` token rows by a weight of `[n, k]`.
    #[must_use]
    pub fn grid(&self, rows: u32, n: u32, k: u32) -> [u32; 3] {
        [rows.div_ceil(self.rows), n.div_ceil(self.n), if self.serial { 1 } else { splits(n, k) }]
    }

    /// The number of f32 values that the kernel needs of the workspace `partial`.
    #[must_use]
    pub fn partial_values(&self, rows: u32, n: u32, k: u32) -> usize {
        let [x, y, z] = self.grid(rows, n, k);
        if z == 1 { 0 } else { x as usize * y as usize * z as usize * (self.rows * self.n) as usize }
    }

    /// The number of counters that the kernel needs of the workspace `arrived`.
    #[must_use]
    pub fn counters(&self, rows: u32, n: u32) -> usize {
        rows.div_ceil(self.rows) as usize * n.div_ceil(self.n) as usize
    }
}

/// Into how many parts the sums over k are cut for a weight of `[n, k]`. The sums depend on it, so it is a function of the
/// weight's shape alone. There are as many parts as are needed for 320 tiles of 64 rows, but at most 8, and each has at
/// least 256 values.
#[must_use]
pub fn splits(n: u32, k: u32) -> u32 {
    let depths = k.div_ceil(DEPTH).max(1);
    let wanted = 320u32.div_ceil(n.div_ceil(64).max(1)).min(8).min(depths / 4).max(1);
    depths.div_ceil(depths.div_ceil(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_whole_and_none_is_empty() {
        for n in [8, 64, 256, 1024, 4096, 6144, 28672, 128_256] {
            for k in [8, 64, 256, 704, 1024, 3072, 4096, 14336] {
                let (splits, depths) = (splits(n, k), k.div_ceil(DEPTH));
                let each = depths.div_ceil(splits);
                assert!((1..=8).contains(&splits));
                assert!((splits - 1) * each < depths, "{n} x {k}: the last of {splits} splits is empty");
            }
        }
        assert_eq!(
            [splits(4096, 4096), splits(28672, 4096), splits(4096, 14336), splits(1024, 3072)],
            [5, 1, 5, 8]
        );
    }

    #[test]
    fn shared_memory_fits_every_gpu_from_sm_80_on() {
        assert!(MatmulTile::ALL.iter().all(|tile| tile.shared_bytes() <= 99 * 1024));
    }
}
