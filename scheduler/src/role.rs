//! The roles of KV groups in a model of segments.

/// Segments of a model at most.
pub(crate) const MAX_SEGMENTS: usize = 16;

/// What a KV group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Layers of this segment write it.
    Kv(u16),
    /// Residual rows wait in it behind this segment.
    Hold(u16),
    /// A proposer's KV, which may lag behind.
    Lagging,
}
