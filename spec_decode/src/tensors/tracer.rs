//! Writes events while a step runs.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use pagedraft_model::Columns;
use pagedraft_scheduler::PlanRow;

use super::event::{Fact, TensorEvent, TracedTensor};
use super::rows::TracedRow;
use super::sites::Seen;
use super::stats::TensorStats;

/// How much of a tensor is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorLevel {
    /// Its shape.
    Summary,
    /// Its least and greatest value, mean and standard deviation too.
    #[default]
    Stats,
    /// Its values too.
    Full,
}

impl fmt::Display for TensorLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Summary => "summary",
            Self::Stats => "stats",
            Self::Full => "full",
        })
    }
}

/// Which tensors are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorTracing {
    /// How much of each is kept.
    pub level: TensorLevel,
    /// The layers. What belongs to no layer is always traced.
    pub layers: RangeInclusive<u16>,
    /// The steps, by the numbers that the trace gives them.
    pub steps: RangeInclusive<u64>,
    /// The most events. Those behind them are counted and left out.
    pub most: u64,
}

/// Looks at the tensors of the steps of an executor.
#[derive(Debug)]
pub struct TensorTracer {
    options: TensorTracing,
    /// What is added to the numbers of the executor's steps.
    first_step: u64,
    events: Vec<TensorEvent>,
    kept: u64,
    left_out: u64,
    /// The plan rows of the segment that runs.
    pub(super) rows: Vec<TracedRow>,
    /// What is being looked at.
    pub(super) seen: Seen,
}

impl TensorTracer {
    /// A tracer of an executor whose step 0 is step `first_step` of the trace.
    #[must_use]
    pub fn new(options: TensorTracing, first_step: u64) -> Self {
        Self {
            options,
            first_step,
            events: Vec::new(),
            kept: 0,
            left_out: 0,
            rows: Vec::new(),
            seen: Seen::default(),
        }
    }

    /// The events of the last step, in the order in which they happened.
    #[must_use]
    pub fn events(&self) -> &[TensorEvent] {
        &self.events
    }

    /// How many events were written so far, and how many were left out because there would have been too many.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.kept, self.left_out)
    }

    /// Forgets the events of the step before. Returns whether this step is traced.
    pub(crate) fn begin(&mut self, step: u64) -> bool {
        self.events.clear();
        self.options.steps.contains(&step.saturating_add(self.first_step))
    }

    /// Whether the tensors of a layer are traced.
    pub(super) fn has_layer(&self, layer: Option<u16>) -> bool {
        layer.is_none_or(|layer| self.options.layers.contains(&layer))
    }

    /// A tensor of the rows `rows` of some columns. Its values are looked at only if events are still written.
    pub(super) fn traced<'a>(
        &self,
        name: &'static str,
        shape: Vec<usize>,
        dtype: &'static str,
        rows: impl Iterator<Item = &'a [f32]> + Clone,
    ) -> TracedTensor {
        let looks = self.kept < self.options.most;
        let has = |level| looks && self.options.level >= level;
        TracedTensor {
            name,
            shape,
            stats: has(TensorLevel::Stats).then(|| TensorStats::of(dtype, rows.clone())),
            values: if has(TensorLevel::Full) { rows.flatten().copied().collect() } else { Vec::new() },
        }
    }

    /// Writes an event, unless there are too many.
    pub(crate) fn push(&mut self, event: TensorEvent) {
        if self.kept >= self.options.most {
            self.left_out += 1;
            return;
        }
        self.kept += 1;
        self.events.push(event);
    }

    /// Writes the logits of some positions of a request, `rows` of them, and which token each makes the most likely.
    pub(crate) fn logits<'a>(
        &mut self,
        (plan_row, row): (usize, &PlanRow),
        pass: Option<(u32, u32)>,
        positions: Vec<u32>,
        rows: impl Iterator<Item = &'a [f32]> + Clone,
    ) {
        let vocab = rows.clone().next().map_or(0, <[f32]>::len);
        let tensor = self.traced("logits", vec![1, positions.len(), vocab], "f32", rows.clone());
        let mut facts = Vec::new();
        if tensor.stats.is_some() {
            facts.push(("predictions", Fact::Counts(rows.map(most_likely).collect())));
        }
        self.push(TensorEvent {
            event: "LOGITS",
            layer: None,
            request: row.request,
            plan_row: plan_row as u32,
            pass,
            positions: Arc::from(positions),
            tensors: vec![tensor],
            facts,
        });
    }
}

/// The token with the greatest logit, the lowest one of several; 0 if none is a number.
fn most_likely(logits: &[f32]) -> u32 {
    let (groups, rest) = logits.as_chunks::<8>();
    let mut most = [f32::NEG_INFINITY; 8];
    for group in groups {
        for (most, &logit) in most.iter_mut().zip(group) {
            *most = if logit > *most { logit } else { *most };
        }
    }
    let greatest = most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    logits.iter().position(|&logit| logit == greatest).unwrap_or(0) as u32
}

/// The shape of some rows, in heads if there are several.
pub(super) fn shape_of(columns: &Columns<'_>, rows: usize, in_heads: bool) -> Vec<usize> {
    match in_heads {
        true => vec![1, columns.heads, rows, columns.width / columns.heads.max(1)],
        false => vec![1, rows, columns.width],
    }
}
