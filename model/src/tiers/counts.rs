//! What tiers did, in figures.

use serde::Serialize;

use super::below::BelowCounts;
use super::pool::TierId;

/// What was fetched from one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Fetched {
    /// Cells: what one layer holds of a block.
    pub cells: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The microseconds that steps waited for them.
    pub us: f64,
}

/// What tiers did since the engine was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TierCounts {
    /// Blocks that tier 0 holds in each layer.
    pub frames: u32,
    /// Cells that a pass found in tier 0.
    pub hits: u64,
    /// Cells that came from the local pool.
    pub local_pool: Fetched,
    /// Cells that came from the remote pool.
    pub remote_pool: Fetched,
    /// Cells that came from host memory of last resort.
    pub refuge: Fetched,
    /// Cells that left tier 0.
    pub demoted: u64,
    /// Passes over the token rows of a layer, beyond the first of each layer and step.
    pub extra_passes: u64,
    /// Token rows of a layer that needed more blocks than tier 0 holds.
    pub gathered_rows: u64,
    /// Cells that could not be had back.
    pub lost_cells: u64,
    /// Token rows that selected a lost cell.
    pub lost_rows: u64,
    /// Blocks of the prefix cache that went down.
    pub prefixes_saved: u64,
    /// Blocks of the prefix cache that came back.
    pub prefixes_restored: u64,
    /// What happened in the tiers below.
    pub below: BelowCounts,
}

impl TierCounts {
    /// What was fetched from a tier.
    pub(super) fn fetched(&mut self, tier: TierId) -> &mut Fetched {
        match tier {
            TierId::LocalPool => &mut self.local_pool,
            TierId::RemotePool => &mut self.remote_pool,
            TierId::Refuge => &mut self.refuge,
        }
    }
}

/// A cell that a token row of the last step had fetched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fetch {
    /// The layer.
    pub layer: u16,
    /// The first token row that selected it.
    pub token: u32,
    /// The block.
    pub block: u32,
    /// Where it was.
    pub tier: TierId,
    /// The microseconds that it took.
    pub us: f64,
}

/// How long it took to find which frames the blocks of a token row are in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waited {
    /// The layer.
    pub layer: u16,
    /// The token row.
    pub token: u32,
    /// The microseconds.
    pub us: f64,
}
