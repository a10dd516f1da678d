//! A model on a device, run a step at a time, eagerly or from graphs.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::metadata::{MaskKind, PAD_SLOT};
use pagedraft_block_manager::BlockCopy;

use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::dense::{DenseDecoder, StepLimits};
use crate::device::{Choice, Device, Op, StepInputs};
use crate::error::ModelError;
use crate::graph::{CaptureReport, CaptureSizes, Fallback, GraphKey, Ran, RunCounts};

/// Runs forward passes of one model on one device.
pub struct Runner<D: Device> {
    /// Before the device, as they go first.
    graphs: HashMap<GraphKey, D::Graph>,
    /// Those of the device's other way to compute, where it was changed.
    other_way: HashMap<GraphKey, D::Graph>,
    device: D,
    model: DenseDecoder<D::Buf>,
    limits: StepLimits,
    ops: Vec<Op<D::Buf>>,
    rows: usize,
    sizes: Option<CaptureSizes>,
    enforce_eager: bool,
    /// How the last step ran.
    ran: Ran,
    /// 0, 1, 2, .. up to the greatest number of logit rows: a replayed step computes the logits of every token row.
    every_row: Vec<u32>,
    fault: Option<MetadataBuilder>,
    counts: RunCounts,
}

impl<D: Device> Runner<D> {
    /// Loads the model of `checkpoint` onto `device`. Steps run eagerly until graphs are [captured](Self::capture).
    ///
    /// # Errors
    ///
    /// See [`DenseDecoder::load`].
    pub fn load(mut device: D, checkpoint: &Checkpoint, limits: StepLimits) -> Result<Self, ModelError> {
        let model = DenseDecoder::load(&mut device, checkpoint, limits)?;
        Ok(Self {
            graphs: HashMap::new(),
            other_way: HashMap::new(),
            device,
            model,
            limits,
            ops: Vec::new(),
            rows: 0,
            sizes: None,
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

    /// Keeps the residual stream of every later step for [`hidden`](Self::hidden); costs a copy a layer. Before
    /// [`capture`](Self::capture), or replayed steps won't have it.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn tap_hidden(&mut self) -> Result<(), ModelError> {
        self.model.tap_hidden(&mut self.device, self.limits.token_rows)
    }

    /// Captures a graph for every key of `sizes`, in place of those there were. Token rows above what the runner was built
    /// for are left out. A replayed step computes the logits of all its rows.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    pub fn capture(&mut self, sizes: &CaptureSizes) -> Result<CaptureReport, ModelError> {
        self.other_way.clear();
        self.capture_this_way(sizes)
    }

    fn capture_this_way(&mut self, sizes: &CaptureSizes) -> Result<CaptureReport, ModelError> {
        let start = Instant::now();
        let most = self.limits.token_rows.min(self.limits.logit_rows);
        let rows: Vec<u32> =
            sizes.token_rows().iter().copied().filter(|&rows| rows as usize <= most).collect();
        let sizes = CaptureSizes::new(rows, sizes.max_query_len());
        self.graphs.clear();
        let mut bytes = 0;
        for key in sizes.keys() {
            let rows = key.token_rows as usize;
            self.ops.clear();
            self.model.trunk(rows, &mut self.ops);
            self.model.head(rows, &mut self.ops);
            let graph = self.device.capture(&self.ops, key)?;
            bytes += self.device.graph_bytes(&graph);
            self.graphs.insert(key, graph);
        }
        self.sizes = Some(sizes);
        Ok(CaptureReport { graphs: self.graphs.len(), elapsed: start.elapsed(), bytes })
    }

    /// Whether the device's results are a function of the row; see [`Device::set_deterministic`]. A change captures the graphs
    /// of that way, where the other has some, and keeps the other's: the next change back is swift. The KV of earlier steps stays,
    /// computed as it was.
    ///
    /// # Errors
    ///
    /// A device with one way to compute; a library that is not there; a fault of the device.
    pub fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        if yes == self.device.is_deterministic() {
            return Ok(());
        }
        self.device.set_deterministic(yes)?;
        std::mem::swap(&mut self.graphs, &mut self.other_way);
        match self.sizes.clone() {
            Some(sizes) if self.graphs.is_empty() => self.capture_this_way(&sizes).map(drop),
            _ => Ok(()),
        }
    }

    /// Whether every later step is eager, graphs or not.
    pub fn set_enforce_eager(&mut self, yes: bool) {
        self.enforce_eager = yes;
    }

    /// From now on replays steps of several query tokens a sequence on the graphs of single tokens: a graph picked by the
    /// number of token rows alone, as an engine once did. Token row r is then attended as if it were the one query of
    /// sequence r, and rows behind the last sequence keep what was in the buffer. For showing that it is noticed.
    ///
    /// # Errors
    ///
    /// A block size that is not 16, 32 or 64.
    pub fn inject_decode_graph_for_verify(&mut self, block_size: u32) -> Result<(), ModelError> {
        self.fault = Some(MetadataBuilder::new(block_size)?);
        Ok(())
    }

    /// Copies KV blocks; call before [`forward`](Self::forward) of the step whose plan has them.
    ///
    /// # Errors
    ///
    /// A block outside the pool.
    pub fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        if copies.is_empty() { Ok(()) } else { self.device.copy_blocks(copies) }
    }

    /// Computes the residual stream of every token row, and writes their KV: from the graph of the step's shape where one
    /// was captured, or else eagerly.
    ///
    /// # Errors
    ///
    /// More rows than [`limits`](Self::limits) says, inconsistent inputs, or a fault of the device.
    pub fn forward(&mut self, inputs: &StepInputs) -> Result<Ran, ModelError> {
        let ran = self.rehearse(inputs)?;
        self.counts.add(ran);
        Ok(ran)
    }

    /// A [`forward`](Self::forward) that is not counted: one to be timed, of nobody's tokens.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn rehearse(&mut self, inputs: &StepInputs) -> Result<Ran, ModelError> {
        match self.key(inputs) {
            Ok(key) => {
                self.check(inputs)?;
                self.replay(inputs, key)?;
                self.ran = Ran::Graph(key);
            }
            Err(why) => {
                self.forward_eager(inputs)?;
                self.ran = Ran::Eager(why);
            }
        }
        Ok(self.ran)
    }

    /// Whether [`forward`](Self::forward) would replay a graph for these inputs.
    #[must_use]
    pub fn replays(&self, inputs: &StepInputs) -> bool {
        self.key(inputs).is_ok()
    }

    /// How the steps ran since [`reset_counts`](Self::reset_counts). A device with a clock of its own is waited for: to be
    /// asked between steps.
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

    /// [`forward`](Self::forward), but operation by operation whatever was captured, and not counted.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_eager(&mut self, inputs: &StepInputs) -> Result<(), ModelError> {
        self.check(inputs)?;
        self.device.bind(inputs, None)?;
        self.ops.clear();
        self.model.trunk(self.rows, &mut self.ops);
        self.ran = Ran::Eager(None);
        self.run_ops()
    }

    /// The operations of a step of `rows` token rows, logits of all of them included: to be timed one by one.
    #[must_use]
    pub fn operations(&self, rows: usize) -> Vec<Op<D::Buf>> {
        let mut ops = Vec::new();
        self.model.trunk(rows, &mut ops);
        self.model.head(rows.min(self.limits.logit_rows), &mut ops);
        ops
    }

    fn run_ops(&mut self) -> Result<(), ModelError> {
        let start = Instant::now();
        self.device.run(&self.ops)?;
        self.clock(start);
        Ok(())
    }

    /// Counts what operations run since `start` took, where the device has no clock to be asked later.
    fn clock(&mut self, start: Instant) {
        if !self.device.has_clock() {
            self.counts.in_kernels += start.elapsed();
        }
    }

    fn check(&mut self, inputs: &StepInputs) -> Result<(), ModelError> {
        let rows = inputs.tokens.len();
        if rows > self.limits.token_rows {
            return Err(ModelError::StepTooLarge { rows, limit: self.limits.token_rows });
        }
        let vocab = self.model.config().vocab_size;
        if let Some(token) = inputs.tokens.iter().find(|&&t| t as usize >= vocab) {
            let what = format!("token id {token}, and the model's are below {vocab}");
            return Err(ModelError::BadInputs { what });
        }
        let positions = self.limits.max_model_len;
        if let Some(position) = inputs.positions.iter().find(|&&p| p as usize >= positions) {
            let what = format!("position {position}, and the engine was built for {positions}");
            return Err(ModelError::BadInputs { what });
        }
        self.rows = rows;
        Ok(())
    }

    /// The graph that a step replays; or why it doesn't, `None` when graphs are off.
    fn key(&self, inputs: &StepInputs) -> Result<GraphKey, Option<Fallback>> {
        let Some(sizes) = self.sizes.as_ref().filter(|_| !self.enforce_eager) else { return Err(None) };
        let rows = u32::try_from(inputs.tokens.len()).unwrap_or(u32::MAX);
        let metadata = &inputs.metadata;
        let key = sizes.key(rows, metadata.max_query_len, metadata.num_rows() as u32).map_err(Some)?;
        let key = match &self.fault {
            // Picked by the token rows alone: as many sequences.
            Some(_) if key.max_query_len > 1 => sizes.key(key.token_rows, 1, key.token_rows).map_err(Some)?,
            _ => key,
        };
        if self.graphs.contains_key(&key) { Ok(key) } else { Err(Some(Fallback::NotCaptured)) }
    }

    fn replay(&mut self, inputs: &StepInputs, key: GraphKey) -> Result<(), ModelError> {
        let Some(graph) = self.graphs.get(&key) else {
            return Err(ModelError::BadInputs { what: format!("no graph was captured for {key:?}") });
        };
        match &mut self.fault {
            Some(builder) if inputs.metadata.max_query_len > 1 => {
                self.device.bind(&as_single_tokens(builder, inputs, key)?, Some(key))?;
            }
            _ => self.device.bind(inputs, Some(key))?,
        }
        self.device.select(&self.every_row[..key.token_rows as usize])?;
        let start = Instant::now();
        self.device.replay(graph)?;
        self.clock(start);
        Ok(())
    }

    /// Computes the logits of token rows of the last forward pass, where it did not.
    fn head(&mut self, rows: &[u32]) -> Result<(), ModelError> {
        if rows.len() > self.limits.logit_rows {
            return Err(ModelError::StepTooLarge { rows: rows.len(), limit: self.limits.logit_rows });
        }
        if let Some(&row) = rows.iter().find(|&&r| r as usize >= self.rows) {
            return Err(ModelError::NoSuchTokenRow { row: row as usize, rows: self.rows });
        }
        if matches!(self.ran, Ran::Eager(_)) {
            self.device.select(rows)?;
            self.ops.clear();
            self.model.head(rows.len(), &mut self.ops);
            self.run_ops()?;
        }
        Ok(())
    }

    /// Whether [`choose`](Self::choose) gives tokens.
    #[must_use]
    pub fn chooses(&self) -> bool {
        self.device.chooses()
    }

    /// The tokens that `choices` take from the logits of token rows of the last [`forward`](Self::forward), chosen on the device;
    /// [`NO_CHOICE`](crate::NO_CHOICE) where a row has none. Their logits can still be [had](Self::logits).
    ///
    /// # Errors
    ///
    /// Those of [`logits`](Self::logits).
    pub fn choose(&mut self, rows: &[u32], choices: &[Choice]) -> Result<&[u32], ModelError> {
        self.head(rows)?;
        let rows = match self.ran {
            // All rows are there, the step's own first.
            Ran::Graph(_) => rows,
            Ran::Eager(_) => &self.every_row[..rows.len()],
        };
        self.device.choose(self.model.logits(), rows, choices)
    }

    /// The logits of token rows of the last [`forward`](Self::forward).
    ///
    /// # Errors
    ///
    /// More rows than `limits().logit_rows`, a row that the step did not have, or a fault of the device.
    pub fn logits<'a>(&'a mut self, rows: &'a [u32]) -> Result<Selected<'a>, ModelError> {
        self.head(rows)?;
        self.selected(self.model.logits(), rows, self.config().vocab_size)
    }

    /// The final norm's output of the rows last given to [`logits`](Self::logits).
    ///
    /// # Errors
    ///
    /// A fault of the device.
    pub fn final_hidden<'a>(&'a mut self, rows: &'a [u32]) -> Result<Selected<'a>, ModelError> {
        self.selected(self.model.final_hidden(), rows, self.config().hidden_size)
    }

    fn selected<'a>(
        &'a mut self,
        buffer: D::Buf,
        rows: &'a [u32],
        width: usize,
    ) -> Result<Selected<'a>, ModelError> {
        Ok(match self.ran {
            // All rows are there, the step's own first.
            Ran::Graph(_) => Selected { data: self.device.read(buffer, self.rows)?, width, rows: Some(rows) },
            Ran::Eager(_) => Selected { data: self.device.read(buffer, rows.len())?, width, rows: None },
        })
    }

    /// The residual stream of the last step as it entered layer `layer` (`num_layers`: as it left the last), `None` where
    /// [`tap_hidden`](Self::tap_hidden) was not called or there is no such layer.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    pub fn hidden(&mut self, layer: usize) -> Result<Option<&[f32]>, ModelError> {
        match self.model.taps().get(layer) {
            Some(&tap) => self.device.read(tap, self.rows).map(Some),
            None => Ok(None),
        }
    }
}

/// Some rows of a buffer, in the order they were asked for.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'a> {
    data: &'a [f32],
    width: usize,
    /// Where each row lies; without, they lie one after the other.
    rows: Option<&'a [u32]>,
}

impl<'a> Selected<'a> {
    /// Row `i` of those asked for; empty where there is none.
    #[must_use]
    pub fn row(&self, i: usize) -> &'a [f32] {
        self.block(i..i + 1)
    }

    /// Rows `range` of those asked for, which must have been neighbours in the step: `[range.len(), width]`, row-major.
    #[must_use]
    pub fn block(&self, range: Range<usize>) -> &'a [f32] {
        let first = match self.rows {
            Some(rows) => rows.get(range.start).map_or(usize::MAX, |&row| row as usize),
            None => range.start,
        };
        let start = first.saturating_mul(self.width);
        self.data.get(start..start.saturating_add(range.len() * self.width)).unwrap_or_default()
    }
}

/// What a graph of single tokens takes these inputs for: the first token rows are the queries of one sequence each.
fn as_single_tokens(
    builder: &mut MetadataBuilder,
    inputs: &StepInputs,
    key: GraphKey,
) -> Result<StepInputs, ModelError> {
    let metadata = &inputs.metadata;
    builder.begin();
    for row in 0..key.token_rows as usize {
        match (metadata.seq_lens.get(row), metadata.block_tables.get(row)) {
            (Some(&len), Some(table)) => builder.push_row(len - 1, 1, table, MaskKind::Causal)?,
            _ => builder.push_pad_row(1)?,
        }
    }
    let mut seen = builder.finish().clone();
    seen.slot_mapping.clone_from(&metadata.slot_mapping);
    seen.slot_mapping.resize(key.token_rows as usize, PAD_SLOT);
    let mut seen =
        StepInputs { tokens: inputs.tokens.clone(), positions: inputs.positions.clone(), metadata: seen };
    seen.tokens.resize(key.token_rows as usize, 0);
    seen.positions.resize(key.token_rows as usize, 0);
    Ok(seen)
}
