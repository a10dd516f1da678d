//! The attention of a step: which kernel runs it, in how many blocks of threads, over which items.

use pagedraft_attention::cuda::{AttentionPlan, AttentionShape, PlanBounds, PlanOptions};

use super::error::CudaError;
use super::modules::attention_shape;
use super::options::CudaOptions;
use crate::checkpoint::ModelConfig;

/// How many items are cut out of long contexts for each item that runs at once. With several, blocks of threads end their
/// work at about the same time.
const SLOTS_AT_ONCE: u32 = 4;

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
        let blocks = self.multiprocessors * self.shape.blocks_at_once(rows);
        blocks.div_ceil(self.shape.kv_heads()).max(1)
    }

    /// How a step is planned if its longest row has `longest` query tokens.
    #[must_use]
    pub fn options(&self, longest: u32) -> PlanOptions {
        let rows = self.shape.rows_for(longest.max(1));
        let at_once = self.at_once(rows);
        PlanOptions { rows, at_once, max_slots: SLOTS_AT_ONCE * at_once, num_blocks: self.num_blocks }
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
