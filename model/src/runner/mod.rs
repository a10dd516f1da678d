//! A model on a device, run a step at a time, eagerly or from graphs.

mod forward;
mod logits;
mod observed;
mod selections;

use std::collections::HashMap;
use std::time::Instant;

use pagedraft_attention::MetadataBuilder;
use pagedraft_block_manager::BlockCopy;

use crate::architecture::Architecture;
use crate::captured::CapturedGraphs;
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::dense::{DenseDecoder, StepLimits};
use crate::device::{Device, Op, Precision};
use crate::dsa::SparseDecoder;
use crate::error::ModelError;
use crate::graph::{CaptureReport, CaptureSizes, GraphKey, Ran, RunCounts};

/// Runs forward passes of one model on one device.
pub struct Runner<D: Device> {
    /// Declared before `device` on purpose: fields drop in order, and a graph must be destroyed while its device still exists.
    captured: CapturedGraphs<D::Graph>,
    device: D,
    model: Box<dyn Architecture<D::Buf>>,
    /// A second residual stream, through which [`compact`](Self::compact) moves rows; a model of one segment has none.
    spare: Option<D::Buf>,
    limits: StepLimits,
    ops: Vec<Op<D::Buf>>,
    /// Token rows of the residual stream.
    rows: usize,
    /// The segment that ran last.
    segment: usize,
    enforce_eager: bool,
    /// How that segment ran.
    ran: Ran,
    /// 0, 1, 2, .. up to the greatest number of logit rows: a replayed step computes the logits of every token row.
    every_row: Vec<u32>,
    fault: Option<MetadataBuilder>,
    counts: RunCounts,
}

impl<D: Device> Runner<D> {
    /// Loads the model of `checkpoint` onto `device`: a dense one, or one with sparse attention. Steps run eagerly until graphs are [captured](Self::capture).
    ///
    /// # Errors
    ///
    /// Those of [`DenseDecoder::load`] or [`SparseDecoder::load`], and of [`with`](Self::with).
    pub fn load(mut device: D, checkpoint: &Checkpoint, limits: StepLimits) -> Result<Self, ModelError> {
        if checkpoint.config().dsa.is_some() {
            let model = SparseDecoder::load(&mut device, checkpoint, limits)?;
            return Self::with(device, Box::new(model), limits);
        }
        let model = DenseDecoder::load(&mut device, checkpoint, limits)?;
        Self::with(device, Box::new(model), limits)
    }

    /// A runner of any architecture that was loaded onto `device` for steps of `limits`.
    ///
    /// # Errors
    ///
    /// The device cannot keep the architecture's KV groups, or has not enough memory.
    pub fn with(
        mut device: D,
        model: Box<dyn Architecture<D::Buf>>,
        limits: StepLimits,
    ) -> Result<Self, ModelError> {
        device.attach(model.kv(), model.shapes())?;
        let spare = if model.num_segments() > 1 {
            let hidden = model.config().hidden_size;
            Some(device.activations(limits.token_rows, hidden, Precision::Full)?)
        } else {
            None
        };
        Ok(Self {
            captured: CapturedGraphs::default(),
            device,
            model,
            spare,
            limits,
            ops: Vec::new(),
            rows: 0,
            segment: 0,
            enforce_eager: false,
            ran: Ran::Eager(None),
            every_row: (0..limits.logit_rows as u32).collect(),
            fault: None,
            counts: RunCounts::default(),
        })
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// The model: its KV groups and its segments.
    #[must_use]
    pub fn model(&self) -> &dyn Architecture<D::Buf> {
        &*self.model
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, to look into.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Has the KV cache and the buffers of the largest step backed by memory now ([`Device::touch`]), so that no step waits
    /// for it.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn touch(&mut self) -> Result<(), ModelError> {
        self.device.touch()
    }

    /// The greatest step it was built for.
    #[must_use]
    pub fn limits(&self) -> StepLimits {
        self.limits
    }

    /// Keeps the residual stream of every later step for [`hidden`](Self::hidden). It costs a copy a layer. To be called before
    /// [`capture`](Self::capture): graphs that were captured earlier do not keep it.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn tap_hidden(&mut self) -> Result<(), ModelError> {
        self.tap_first(self.config().num_layers + 1)
    }

    /// The same, but only as it enters each of the first `layers` layers.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn tap_first(&mut self, layers: usize) -> Result<(), ModelError> {
        let (rows, hidden) = (self.limits.token_rows, self.config().hidden_size);
        let taps = (0..layers).map(|_| self.device.activations(rows, hidden, Precision::Full));
        let taps = taps.collect::<Result<_, _>>()?;
        self.model.set_taps(taps);
        Ok(())
    }

    /// Captures a graph for every key of `sizes` and every segment, in place of those there were. Token rows above what the
    /// runner was built for are left out. The graph of the last segment computes the logits of all its rows too, but for models that fill
    /// masks.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    pub fn capture(&mut self, sizes: &CaptureSizes) -> Result<CaptureReport, ModelError> {
        self.captured.clear();
        self.capture_this_way(sizes)
    }

    fn capture_this_way(&mut self, sizes: &CaptureSizes) -> Result<CaptureReport, ModelError> {
        let start = Instant::now();
        let most = self.limits.token_rows.min(self.limits.logit_rows);
        let rows: Vec<u32> =
            sizes.token_rows().iter().copied().filter(|&rows| rows as usize <= most).collect();
        let sizes = CaptureSizes::new(rows, sizes.query_lens().to_vec());
        self.captured.drop_present();
        let (mut graphs, mut bytes) = (HashMap::new(), 0);
        let segments = self.model.num_segments();
        for segment in 0..segments {
            for key in sizes.keys() {
                let key = GraphKey { segment: segment as u16, ..key };
                let rows = key.token_rows as usize;
                self.ops.clear();
                self.model.segment(segment, rows, &mut self.ops);
                if segment + 1 == segments && self.graphs_have_heads() {
                    self.model.head(rows, &mut self.ops);
                }
                let graph = self.device.capture(&self.ops, key)?;
                bytes += self.device.graph_bytes(&graph);
                graphs.insert(key, graph);
            }
        }
        self.captured.replace(sizes, graphs);
        Ok(CaptureReport { graphs: self.captured.len(), elapsed: start.elapsed(), bytes })
    }

    /// Whether the graph of the last segment computes the logits of all its rows. Of a block of a canvas, only the rows of masks have their logits
    /// computed, and they are fewer with each pass.
    fn graphs_have_heads(&self) -> bool {
        self.model.config().mask_token_id.is_none()
    }

    /// Whether the device's results are a function of the row; see [`Device::set_deterministic`]. If graphs had been captured,
    /// a change captures them anew under this setting, once; those of the other setting are kept, so that the next change back
    /// is swift. The KV of earlier steps stays as it was computed.
    ///
    /// # Errors
    ///
    /// The device has one way to compute only, a library is not there, or the device has a fault.
    pub fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        if yes == self.device.is_deterministic() {
            return Ok(());
        }
        self.device.set_deterministic(yes)?;
        match self.captured.turn() {
            Some(sizes) => self.capture_this_way(&sizes).map(drop),
            None => Ok(()),
        }
    }

    /// Whether every later step is eager, graphs or not.
    pub fn set_enforce_eager(&mut self, yes: bool) {
        self.enforce_eager = yes;
    }

    /// From now on replays steps of several query tokens a sequence on the graphs of single tokens: a graph is then picked by
    /// the number of token rows alone, as an engine once did. Token row r is attended as if it were the one query of sequence
    /// r, and rows behind the last sequence keep what was in the buffer. This is for showing that such a fault is noticed.
    ///
    /// # Errors
    ///
    /// A block size that is not 16, 32 or 64.
    pub fn inject_decode_graph_for_verify(&mut self, block_size: u32) -> Result<(), ModelError> {
        self.fault = Some(MetadataBuilder::new(block_size)?);
        Ok(())
    }

    /// Copies KV blocks; to be called before [`forward`](Self::forward) of the step whose plan has them.
    ///
    /// # Errors
    ///
    /// A group that the arena does not have, or a block outside its group.
    pub fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        if copies.is_empty() { Ok(()) } else { self.device.copy_blocks(copies) }
    }

    /// How segments ran since [`reset_counts`](Self::reset_counts). A device with a clock of its own is waited for, so this is
    /// to be asked between steps.
    #[must_use]
    pub fn counts(&mut self) -> &RunCounts {
        if let Some(busy) = self.device.busy() {
            self.counts.in_kernels += busy.forward;
            self.counts.device.get_or_insert_default().merge(&busy);
        }
        &self.counts
    }

    /// Counts from 0 again.
    pub fn reset_counts(&mut self) {
        self.device.busy();
        self.counts = RunCounts::default();
    }

    /// The operations of a step of `rows` token rows, all segments and the logits of all rows included: to be timed one by one.
    #[must_use]
    pub fn operations(&self, rows: usize) -> Vec<Op<D::Buf>> {
        let mut ops = Vec::new();
        for segment in 0..self.model.num_segments() {
            self.model.segment(segment, rows, &mut ops);
        }
        self.model.head(rows.min(self.limits.logit_rows), &mut ops);
        ops
    }

    fn run_ops(&mut self) -> Result<(), ModelError> {
        let start = Instant::now();
        self.device.run(&self.ops)?;
        self.clock(start);
        Ok(())
    }

    /// Counts the time of operations run since `start`, unless the device has a clock that is asked later.
    fn clock(&mut self, start: Instant) {
        if !self.device.has_clock() {
            self.counts.in_kernels += start.elapsed();
        }
    }
}
