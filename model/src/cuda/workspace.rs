//! Memory that split kernels share: they run one after the other, so it is the greatest that any of them needs.

use super::attention_work::AttentionWork;
use super::kernels::MatmulTile;
use super::options::CudaOptions;

/// Words of 32 bits that split kernels need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workspace {
    /// Partial sums.
    pub values: usize,
    /// Counters.
    pub counters: usize,
}

impl Workspace {
    /// What attention needs, and products by weights `[n, k]`.
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
            // A tile's need grows with the rows until the next one takes over.
            let steps = [8, 16, 32, 64].into_iter().chain((128..=rows.next_multiple_of(128)).step_by(128));
            for most in steps {
                let tile = MatmulTile::choose(most, n, k, multiprocessors);
                values = values.max(tile.partial_values(most, n, k));
                counters = counters.max(tile.counters(most, n));
            }
        }
        // Of the argmax.
        Self { values, counters: counters.max(options.logit_rows) }
    }
}
