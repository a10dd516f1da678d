//! The memory that split kernels share. They run one after the other, so its size is the greatest that any of them needs.

use super::attention_work::AttentionWork;
use super::kernels::MatmulTile;
use super::options::CudaOptions;

/// The numbers of 32-bit words that split kernels need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workspace {
    /// The number of partial sums.
    pub values: usize,
    /// The number of counters.
    pub counters: usize,
}

impl Workspace {
    /// What attention needs, and what products by weights of shapes `[n, k]` need.
    pub fn of(
        work: &AttentionWork,
        options: &CudaOptions,
        multiprocessors: u32,
        weights: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let rows = options.most_rows() as u32;
        let (mut values, mut counters) = work.workspace(options.token_rows as u32);
        for (n, k) in weights {
            let (n, k) = (n as u32, k as u32);
            // The need of a tile grows with the rows until the next tile takes over.
            let steps = [8, 16, 32, 64].into_iter().chain((128..=rows.next_multiple_of(128)).step_by(128));
            for most in steps {
                let tile = MatmulTile::choose(most, n, k, multiprocessors);
                values = values.max(tile.partial_values(most, n, k));
                counters = counters.max(tile.counters(most, n));
            }
        }
        // The argmax needs a counter for each row.
        Self { values, counters: counters.max(options.logit_rows) }
    }
}
