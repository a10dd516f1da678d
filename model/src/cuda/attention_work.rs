//! The attention of a step: which kernel runs it, in how many blocks of threads, over which items.

use pagedraft_attention::cuda::{AttentionPlan, AttentionShape, PlanBounds, PlanOptions};

use super::error::CudaError;
use super::modules::attention_shape;
use super::options::CudaOptions;
use crate::checkpoint::ModelConfig;

/// How many items may be cut out of long contexts for each item that runs at once, by the kernel. What is not cut out is one item, so
/// with too few one block works on when the others have ended; a slot of partial sums is the larger the more rows an item has. On a
/// GPU of 132 multiprocessors these come to about 130, 105 and 140 MB with heads of 128 values.
const fn slots_at_once(rows: u32) -> u32 {
    match rows {
        16 => 40,
        32 => 24,
        _ => 16,
    }
}

/// How the attention kernel is launched for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionLaunch {
    /// The number of rows of an item (queries times heads of a key head). It selects the kernel.
    pub rows: u32,
    /// The number of blocks of threads per key head. Each takes items until none are left.
    pub grid: u32,
}

impl AttentionLaunch {
    /// The kernel's name.
    #[must_use]
    pub fn kernel(self) -> &'static str {
        match self.rows {
            16 => "attention_16",
            32 => "attention_32",
            _ => "attention_64",
        }
    }
}

/// What a device's plans are made with.
#[derive(Clone, Copy, Debug)]
pub struct AttentionWork {
    shape: AttentionShape,
    multiprocessors: u32,
    num_blocks: u32,
    max_len: u32,
}

impl AttentionWork {
    /// What plans are made with for sequences of up to `max_len` tokens, on a GPU of `multiprocessors` and over
    /// `num_blocks` KV blocks.
    #[must_use]
    pub fn new(shape: AttentionShape, multiprocessors: u32, num_blocks: u32, max_len: u32) -> Self {
        Self { shape, multiprocessors, num_blocks, max_len }
    }

    /// What plans of a model are made with on a device with these options, over `num_blocks` KV blocks.
    ///
    /// # Errors
    ///
    /// There are no kernels for the model or the dtype.
    pub fn of(
        config: &ModelConfig,
        options: &CudaOptions,
        num_blocks: u32,
        multiprocessors: u32,
    ) -> Result<Self, CudaError> {
        let shape = attention_shape(config, options)?;
        Ok(Self::new(shape, multiprocessors, num_blocks, options.max_model_len as u32))
    }

    /// The shape that the kernels are compiled for.
    #[must_use]
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// The number of items of a key head that the GPU runs at once.
    fn at_once(&self, rows: u32) -> u32 {
        // Rounded down: one block more than there are places for would start when the others have ended.
        let blocks = self.multiprocessors * self.shape.blocks_at_once(rows);
        (blocks / self.shape.kv_heads()).max(1)
    }

    /// How a step is planned if its longest row has `longest` query tokens.
    #[must_use]
    pub fn options(&self, longest: u32) -> PlanOptions {
        let rows = self.shape.rows_for(longest.max(1));
        let at_once = self.at_once(rows);
        PlanOptions { rows, at_once, max_slots: slots_at_once(rows) * at_once, num_blocks: self.num_blocks }
    }

    /// How a step of `items` items is launched.
    #[must_use]
    pub fn launch(&self, longest: u32, items: u32) -> AttentionLaunch {
        let PlanOptions { rows, at_once, .. } = self.options(longest);
        AttentionLaunch { rows, grid: items.min(at_once) }
    }

    /// The greatest number of items of a step of `token_rows` rows, if the longest row has `longest` query tokens.
    #[must_use]
    pub fn most_items(&self, token_rows: u32, longest: u32) -> u32 {
        self.bounds(token_rows, longest).items
    }

    /// The greatest number of items of any step of at most `token_rows` rows.
    #[must_use]
    pub fn items_of_any(&self, token_rows: u32) -> u32 {
        self.kinds(token_rows).map(|longest| self.most_items(token_rows, longest)).max().unwrap_or(0)
    }

    /// The numbers of partial sums and of counters that any step of at most `token_rows` rows needs at most.
    #[must_use]
    pub fn workspace(&self, token_rows: u32) -> (usize, usize) {
        let kinds = self.kinds(token_rows).map(|longest| {
            let (bounds, rows) = (self.bounds(token_rows, longest), self.options(longest).rows);
            let counters = bounds.groups as usize * self.shape.kv_heads() as usize;
            (bounds.slots as usize * self.shape.slot_values(rows), counters)
        });
        kinds.fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)))
    }

    /// For each kernel with which a step of so many rows can be launched, a query length that leads to it.
    fn kinds(&self, token_rows: u32) -> impl Iterator<Item = u32> {
        let group = self.shape.group();
        AttentionShape::ROWS.into_iter().map(move |rows| (rows / group).clamp(1, token_rows.max(1)))
    }

    fn bounds(&self, token_rows: u32, longest: u32) -> PlanBounds {
        AttentionPlan::bounds(&self.shape, self.options(longest), token_rows, token_rows, self.max_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagedraft_attention::cuda::Element;
    use pagedraft_attention::{MaskKind, MetadataBuilder};
    use pagedraft_block_manager::BlockId;

    /// How much longer the busiest block of threads works on decode rows of these lengths than all would if they shared evenly.
    fn lateness(lengths: &[u32]) -> f64 {
        let shape = AttentionShape::new(32, 8, 128, 16, Element::Bf16, Element::Bf16).unwrap();
        let work = AttentionWork::new(shape, 132, 1 << 20, 131_072);
        let mut builder = MetadataBuilder::new(16).unwrap();
        let table: Vec<_> = (0..131_072 / 16).map(BlockId).collect();
        for &length in lengths {
            builder
                .push_row(length - 1, 1, &table[..length.div_ceil(16) as usize], MaskKind::Causal)
                .unwrap();
        }
        let (mut plan, starts) = (AttentionPlan::new(), vec![0; lengths.len()]);
        let options = work.options(1);
        plan.plan(&shape, options, builder.finish(), 0..lengths.len(), &starts).unwrap();
        let launch = work.launch(1, plan.items().len() as u32);
        assert!(
            launch.grid * shape.kv_heads() <= 132 * shape.blocks_at_once(16),
            "some blocks have no place"
        );
        let mut spans = vec![0u32; launch.grid as usize];
        for (i, item) in plan.items().iter().enumerate() {
            spans[i % launch.grid as usize] += item[6] - item[5];
        }
        let all: u32 = spans.iter().sum();
        f64::from(*spans.iter().max().unwrap()) / (f64::from(all) / f64::from(options.at_once)).max(1.0)
    }

    #[test]
    fn the_whole_of_a_large_gpu_shares_long_contexts() {
        for (what, lengths) in [
            ("1 of 128K", vec![131_072]),
            ("8 of 32K", vec![32_768; 8]),
            ("64 of 8K", vec![8192; 64]),
            ("100 of 4K", vec![4096; 100]),
            ("mixed", (1..50).map(|i| i * 300).collect()),
        ] {
            let lateness = lateness(&lengths);
            assert!(lateness <= 1.12, "{what}: {lateness:.2} times as long as an even share");
        }
    }
}
