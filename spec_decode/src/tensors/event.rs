//! One event of a trace of tensors.

use std::sync::Arc;

use pagedraft_scheduler::RequestKey;

use super::TensorStats;

/// A tensor of an event: some values of each token row of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedTensor {
    /// Its name in the event.
    pub name: &'static str,
    /// Its shape, as the first program with token skip wrote it: a batch of 1 comes first.
    pub shape: Vec<usize>,
    /// What is known of its values, if statistics are kept and its values are no other event's.
    pub stats: Option<TensorStats>,
    /// Its values, `[token rows, ..]`, if they are kept; otherwise empty.
    pub values: Vec<f32>,
}

/// Something that an event says beside its tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A number.
    Count(u64),
    /// Whole numbers, such as positions.
    Counts(Vec<u32>),
    /// Real numbers.
    Reals(Vec<f64>),
}

/// What was seen of one request at one place of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEvent {
    /// Its name.
    pub event: &'static str,
    /// The layer; `None` where it belongs to no layer.
    pub layer: Option<u16>,
    /// The request.
    pub request: RequestKey,
    /// Its row in the plan.
    pub plan_row: u32,
    /// The block of its canvas and the pass over this block, if it has a canvas.
    pub pass: Option<(u32, u32)>,
    /// The positions in the sequence of the tensors' rows, ascending.
    pub positions: Arc<[u32]>,
    /// The tensors.
    pub tensors: Vec<TracedTensor>,
    /// What else there is to say, by name.
    pub facts: Vec<(&'static str, Fact)>,
}
