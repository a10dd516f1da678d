//! Looks at the tensors of a step while it runs.
//!
//! Operations are data, so a step can be run one operation at a time ([`Runner::forward_observed`](crate::Runner::forward_observed)),
//! and behind each of them the buffers can be read. The bits are those of any other run of the step.

/// A place in a step where tensors can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// The residual stream before the first layer: the looked-up tokens. It belongs to no layer.
    Embedding,
    /// What the attention of a layer is given, before it is rotated: queries, keys and values, or latents.
    Projections,
    /// What the KV cache holds in the slots that the layer will write.
    KvBefore,
    /// Queries and keys (or latents) after the rotation.
    Rotations,
    /// What the KV cache holds in these slots after the layer has written them.
    KvAfter,
    /// The keys of a layer's indexer.
    IndexKeys,
    /// What attention gives.
    Attention,
    /// The residual stream behind a layer.
    LayerOutput,
}

/// Some columns of the rows of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
    first: usize,
    /// Values of a row.
    pub width: usize,
    /// How many heads the values of a row belong to; 1 if they are not cut into heads.
    pub heads: usize,
    /// The type that the values are stored in.
    pub dtype: &'static str,
}

impl<'a> Columns<'a> {
    /// The columns from `first` on of rows of `stride` values each: `heads` heads of together `width` values, as f32.
    #[must_use]
    pub fn new(data: &'a [f32], stride: usize, (first, width): (usize, usize), heads: usize) -> Self {
        Self { data, stride, first, width, heads, dtype: "f32" }
    }

    /// The columns of row `r`; empty if there is no such row.
    #[must_use]
    pub fn row(&self, r: usize) -> &'a [f32] {
        let start = r * self.stride + self.first;
        self.data.get(start..start + self.width).unwrap_or_default()
    }
}

/// Looks at the tensors of a step. At each [`Site`] it is asked whether it [wants](Self::wants) them, is shown each of them, and is told
/// that this was all.
pub trait Observer {
    /// Whether the tensors of this site are read. `layer` is `None` where the site belongs to no layer.
    fn wants(&mut self, site: Site, layer: Option<u16>) -> bool;

    /// Shows a tensor of the site that was wanted last. Its rows are the token rows of the segment that runs.
    fn tensor(&mut self, name: &'static str, values: Columns<'_>);

    /// All tensors of the site were shown.
    fn done(&mut self);
}
