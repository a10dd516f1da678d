//! What sparse attention and experts keep between operations.

use pagedraft_attention::metadata::AttentionMetadata;
use pagedraft_attention::sparse::{LatentScores, LatentScratch, SelectScratch, SparseRows};
use parking_lot::Mutex;

use crate::cpu::memory::OutOfMemory;
use crate::cpu::rows::PackedRows;
use crate::error::ModelError;

/// The working memory of one thread.
pub(in crate::cpu) struct ThreadRoom {
    pub select: SelectScratch,
    pub latent: LatentScratch,
    /// The rows of one head.
    pub packed: PackedRows,
}

/// What threads share where a step has fewer items than there are threads.
#[derive(Default)]
pub(in crate::cpu) struct SharedRoom {
    /// Parts of the choice of keys.
    pub parts: Vec<Mutex<SelectScratch>>,
    /// Scores of latents.
    pub scores: LatentScores,
}

/// A token row and one of its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cpu) struct Routed {
    pub expert: u32,
    pub row: u32,
    /// The place of the expert among those of the row.
    pub place: u32,
}

/// The state of one device.
pub(in crate::cpu) struct SparseState {
    /// The token rows of the step bound, one list a KV group.
    plans: Vec<SparseRows>,
    /// Token rows of the step bound, pads excluded.
    rows: usize,
    /// One for each thread.
    pub rooms: Vec<Mutex<ThreadRoom>>,
    pub shared: Mutex<SharedRoom>,
    pub routed: Vec<Routed>,
}

impl SparseState {
    pub fn new(threads: usize) -> Result<Self, OutOfMemory> {
        let room = || -> Result<_, OutOfMemory> {
            let packed = PackedRows::with_room_for(0, 0)?;
            let (select, latent) = (SelectScratch::default(), LatentScratch::default());
            Ok(Mutex::new(ThreadRoom { select, latent, packed }))
        };
        let rooms = (0..threads).map(|_| room()).collect::<Result<_, _>>()?;
        Ok(Self { plans: Vec::new(), rows: 0, rooms, shared: Mutex::default(), routed: Vec::new() })
    }

    /// Makes place for the plans of so many groups.
    pub fn attach(&mut self, groups: usize) {
        self.plans.resize_with(groups, SparseRows::new);
    }

    /// Plans a step in one group.
    pub fn plan(
        &mut self,
        group: usize,
        metadata: &AttentionMetadata,
        block_size: u32,
        num_blocks: u32,
    ) -> Result<(), ModelError> {
        if let Some(plan) = self.plans.get_mut(group) {
            plan.plan(metadata, block_size, num_blocks)?;
        }
        Ok(())
    }

    /// The token rows of a group.
    pub fn rows_of(&self, group: usize) -> Result<&SparseRows, ModelError> {
        let none = || ModelError::BadInputs { what: format!("KV group {group} was not planned") };
        self.plans.get(group).ok_or_else(none)
    }

    /// Says how many token rows the step has, pads excluded.
    pub fn set_rows(&mut self, rows: usize) {
        self.rows = rows;
    }

    /// Token rows of the step, pads excluded.
    pub fn rows(&self) -> usize {
        self.rows
    }
}
