//! The CPU as a [`Device`].
//!
//! Buffers are host memory, operations run on a team of threads, each operation on all of them. A row of any
//! result is computed by one fixed sequence of operations, whichever thread has it and whatever rows stand
//! beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pagedraft_attention::isa::Isa;
use pagedraft_attention::kernel::{AttentionCall, AttentionScratch, WorkList};
use pagedraft_attention::metadata::PAD_SLOT;
use pagedraft_attention::{KvDtype, KvLayer, KvLayout, TokenRows};
use pagedraft_block_manager::BlockCopy;
use parking_lot::Mutex;

use crate::checkpoint::{Dtype, ModelConfig, Tensor};
use crate::cpu::buffer::{Activations, Buffer, Rows, RowsMut, Table};
use crate::cpu::matmul::{Epilogue, OutRows, Product};
use crate::cpu::memory::Memory;
use crate::cpu::panel::PackedMatrix;
use crate::cpu::rows::PackedRows;
use crate::cpu::rowwise;
use crate::cpu::team::Team;
use crate::device::{BufferId, Device, Into, Op, Precision, StepInputs};
use crate::error::ModelError;
use crate::graph::GraphKey;

/// What a CPU device is built from.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Instruction set; must be available.
    pub isa: Isa,
    /// Threads, the caller's included.
    pub threads: usize,
    /// Of weights and KV; activations are f32.
    pub dtype: Dtype,
    /// A layer's part of a KV block.
    pub layout: KvLayout,
    /// KV blocks.
    pub num_blocks: u32,
    /// Greatest number of token rows in a step.
    pub token_rows: usize,
}

/// A captured list of operations: on the CPU, the list itself, over fixed buffers, and the shape it is for.
#[derive(Debug)]
pub struct Tape {
    ops: Box<[Op<BufferId>]>,
    key: GraphKey,
}

/// The CPU.
pub struct CpuDevice {
    isa: Isa,
    dtype: Dtype,
    team: Arc<Team>,
    heads: usize,
    layout: KvLayout,
    layers: usize,
    num_blocks: u32,
    kv: Memory<u8>,
    buffers: Vec<Buffer>,
    inputs: StepInputs,
    /// What the inputs were padded to.
    bound: Option<GraphKey>,
    work: WorkList,
    selection: Vec<u32>,
    packed: PackedRows,
    scratch: Vec<Mutex<AttentionScratch>>,
}

impl CpuDevice {
    /// How a layer's part of a KV block is laid out for this model.
    ///
    /// # Errors
    ///
    /// A block size that is not 16, 32 or 64.
    pub fn kv_layout(config: &ModelConfig, dtype: Dtype, block_size: u32) -> Result<KvLayout, ModelError> {
        let dtype = match dtype {
            Dtype::F32 => KvDtype::F32,
            Dtype::F16 => KvDtype::F16,
            Dtype::Bf16 => KvDtype::Bf16,
        };
        Ok(KvLayout::new(dtype, block_size, config.num_kv_heads, config.head_dim)?)
    }

    /// A device with a KV cache of `num_blocks` blocks for this model, and no weights yet.
    ///
    /// # Errors
    ///
    /// A KV cache larger than memory.
    pub fn new(options: &CpuOptions, config: &ModelConfig) -> Result<Self, ModelError> {
        let team = Team::new(options.threads).map_err(|e| ModelError::NoDevice {
            what: format!("{} threads cannot be started: {e}; ask for fewer with --threads", options.threads),
        })?;
        Self::on_team(options, config, Arc::new(team))
    }

    /// A device for another model on this one's threads; `options.threads` counts for nothing. The two run in turns.
    ///
    /// # Errors
    ///
    /// A KV cache larger than memory.
    pub fn beside(&self, options: &CpuOptions, config: &ModelConfig) -> Result<Self, ModelError> {
        Self::on_team(options, config, Arc::clone(&self.team))
    }

    /// The instruction set it runs on.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    fn on_team(options: &CpuOptions, config: &ModelConfig, team: Arc<Team>) -> Result<Self, ModelError> {
        let layout = options.layout;
        let bytes = (options.num_blocks as usize)
            .checked_mul(layout.block_bytes())
            .and_then(|b| b.checked_mul(config.num_layers));
        let kv = bytes.and_then(|bytes| Memory::zeroed(bytes).ok()).ok_or_else(|| ModelError::NoDevice {
            what: format!(
                "there is no memory for a KV cache of {} blocks; ask for fewer with --num-blocks",
                options.num_blocks
            ),
        })?;
        Ok(Self {
            scratch: (0..team.members()).map(|_| Mutex::default()).collect(),
            isa: options.isa,
            dtype: options.dtype,
            team,
            heads: config.num_heads,
            layout,
            layers: config.num_layers,
            num_blocks: options.num_blocks,
            kv,
            buffers: Vec::new(),
            inputs: StepInputs::default(),
            bound: None,
            work: WorkList::new(),
            selection: Vec::new(),
            packed: PackedRows::with_room_for(0, 0)?,
        })
    }

    /// A view of one layer's KV.
    fn layer(&self, layer: usize) -> KvLayer {
        // A block's layers lie behind one another, so that a block is one piece of memory.
        let part = self.layout.block_bytes();
        // SAFETY: the arena holds `num_blocks` times `layers` parts, is aligned and zeroed, and is accessed
        // through such views alone.
        unsafe {
            KvLayer::new(self.kv.as_ptr().add(layer * part), part * self.layers, self.num_blocks, self.layout)
        }
    }

    fn push(&mut self, buffer: Buffer) -> BufferId {
        self.buffers.push(buffer);
        BufferId::new(self.buffers.len() - 1)
    }

    fn buffer(&self, buf: BufferId) -> &Buffer {
        &self.buffers[buf.index()]
    }

    fn rows(&self, buf: BufferId) -> Rows<'_> {
        self.buffer(buf).activations().rows()
    }

    /// Runs `each` for every row, the rows split among the threads; a step of few rows stays on this one.
    fn for_rows(&self, rows: usize, cost: usize, each: impl Fn(usize) + Sync) {
        // Waking the team costs about as much as some thousand elements.
        if rows < 2 || rows * cost < 8 * 1024 {
            (0..rows).for_each(each);
            return;
        }
        self.team.run(&|worker, workers| {
            let share = rows.div_ceil(workers);
            (worker * share..rows.min((worker + 1) * share)).for_each(&each);
        });
    }

    fn run_op(&mut self, op: &Op<BufferId>) -> Result<(), ModelError> {
        match *op {
            Op::Embed { table, out, rows } => {
                let (table, tokens) = (self.buffer(table).table(), &self.inputs.tokens);
                let out = self.rows_mut(out);
                for (r, &token) in tokens.iter().enumerate().take(rows) {
                    // SAFETY: rows are written by this thread alone.
                    table.read(token as usize, unsafe { out.row(r) });
                }
            }
            Op::RmsNorm { x, weight, out, eps, rows } => {
                let (x, weight, out) = (self.rows(x), self.buffer(weight).vector(), self.rows_mut(out));
                self.for_rows(rows, x.width(), |r| {
                    // SAFETY: each row is written by one thread.
                    rowwise::rms_norm(self.isa, x.row(r), weight, eps, unsafe { out.row(r) });
                });
            }
            Op::MatMul { x, matrix, bias, out, into, rows } => {
                let w = self.buffers[matrix.index()].matrix();
                let x = self.buffers[x.index()].activations().rows();
                self.packed.pack(&self.team, self.isa, w.dtype(), x.data(), rows, w.k(), x.width())?;
                let bias = bias.map(|b| self.buffer(b).vector());
                let epilogue = match into {
                    Into::Store => Epilogue::Store,
                    Into::Add => Epilogue::Add,
                };
                let out = self.rows_mut(out);
                // SAFETY: the product is the only one that touches `out`.
                let out = OutRows::new(unsafe { out.all() }, rows, w.n(), out.width());
                let product =
                    Product::new(self.team.members(), self.isa, &self.packed, w, bias, out, epilogue);
                self.team.run(&|_, _| product.work());
            }
            Op::RopeAndCache { qkv, qk_norm, rope, q, layer, rows } => {
                self.rope_and_cache(qkv, qk_norm, rope, q, layer, rows)?;
            }
            Op::Attention { q, out, layer, .. } => self.attend(q, out, layer)?,
            Op::SwiGlu { x, out, rows } => {
                let (x, out) = (self.rows(x), self.rows_mut(out));
                // Half a row at a time would not balance better: decode steps have several rows.
                self.for_rows(rows, x.width(), |r| {
                    let (gate, up) = x.row(r).split_at(x.width() / 2);
                    // SAFETY: each row is written by one thread.
                    rowwise::swiglu(self.isa, gate, up, unsafe { out.row(r) });
                });
            }
            Op::Gather { x, out, rows } => {
                if self.selection.len() < rows {
                    let what = format!("{} rows are selected, and {rows} are gathered", self.selection.len());
                    return Err(ModelError::BadInputs { what });
                }
                let (x, out) = (self.rows(x), self.rows_mut(out));
                for (r, &from) in self.selection.iter().enumerate().take(rows) {
                    // SAFETY: rows are written by this thread alone.
                    unsafe { out.row(r) }.copy_from_slice(x.row(from as usize));
                }
            }
            Op::Copy { x, out, rows } => {
                let (x, out) = (self.rows(x), self.rows_mut(out));
                for r in 0..rows {
                    // SAFETY: rows are written by this thread alone.
                    unsafe { out.row(r) }.copy_from_slice(x.row(r));
                }
            }
        }
        Ok(())
    }

    fn rows_mut(&self, buf: BufferId) -> RowsMut {
        self.buffer(buf).activations().rows_mut()
    }

    fn rope_and_cache(
        &self,
        qkv: BufferId,
        qk_norm: Option<(BufferId, BufferId, f32)>,
        rope: BufferId,
        q: BufferId,
        layer: u16,
        rows: usize,
    ) -> Result<(), ModelError> {
        let d = self.layout.head_dim();
        let (q_width, kv_width) = (self.heads * d, self.layout.kv_heads() * d);
        let (rows_mut, q_out) = (self.rows_mut(qkv), self.rows_mut(q));
        let rope = self.buffer(rope).vector();
        let norms = qk_norm.map(|(q, k, eps)| (self.buffer(q).vector(), self.buffer(k).vector(), eps));
        self.for_rows(rows, q_width + kv_width, |r| {
            let position = self.inputs.positions[r] as usize;
            let (cos, sin) = rope[position * d..(position + 1) * d].split_at(d / 2);
            // SAFETY: each row is read and written by one thread.
            let (row, q_row) = unsafe { (rows_mut.row(r), q_out.row(r)) };
            for (head, out) in row[..q_width].chunks_exact(d).zip(q_row.chunks_exact_mut(d)) {
                match norms {
                    Some((weight, _, eps)) => rowwise::rms_norm(self.isa, head, weight, eps, out),
                    None => out.copy_from_slice(head),
                }
                rowwise::rotate(self.isa, out, cos, sin);
            }
            for head in row[q_width..q_width + kv_width].chunks_exact_mut(d) {
                if let Some((_, weight, eps)) = norms {
                    rowwise::rms_norm_head(self.isa, head, weight, eps);
                }
                rowwise::rotate(self.isa, head, cos, sin);
            }
        });
        let stored = self.rows(qkv);
        let slots = &self.inputs.metadata.slot_mapping[..rows];
        let values = |from: usize| TokenRows::new(&stored.data()[from..], stored.width());
        // SAFETY: no other operation runs, so nobody reads or writes the cache meanwhile.
        unsafe {
            let layer = self.layer(usize::from(layer));
            layer.write(self.isa, slots, values(q_width), values(q_width + kv_width))?;
        }
        Ok(())
    }

    fn attend(&self, q: BufferId, out: BufferId, layer: u16) -> Result<(), ModelError> {
        let scale = 1.0 / (self.layout.head_dim() as f32).sqrt();
        let (q, out) = (self.rows(q), self.rows_mut(out));
        // SAFETY: the attention call is the only one that touches `out`.
        let (data, width) = (unsafe { out.all() }, out.width());
        let q = TokenRows::new(q.data(), q.width());
        let layer = self.layer(usize::from(layer));
        let call =
            AttentionCall::new(self.isa, &self.inputs.metadata, &self.work, layer, scale, q, data, width)?;
        let items = AtomicUsize::new(0);
        self.team.run(&|share, _| {
            let mut scratch = self.scratch[share].lock();
            loop {
                let item = items.fetch_add(1, Ordering::Relaxed);
                if item >= call.num_items() {
                    return;
                }
                // SAFETY: the list was planned from this step's metadata, whose K and V are stored; each item is
                // drawn once.
                unsafe { call.run_item(item, &mut scratch) };
            }
        });
        Ok(())
    }
}

impl Device for CpuDevice {
    type Buf = BufferId;
    type Graph = Tape;

    fn activations(&mut self, rows: usize, width: usize, _: Precision) -> Result<BufferId, ModelError> {
        Ok(self.push(Buffer::Rows(Activations::zeroed(rows, width)?)))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<BufferId, ModelError> {
        let mut kept = Memory::zeroed(values.len())?;
        kept.copy_from_slice(&values);
        Ok(self.push(Buffer::Vector(kept)))
    }

    fn matrix(&mut self, stacked: &[Tensor<'_>]) -> Result<BufferId, ModelError> {
        let k = stacked.first().map_or(0, Tensor::row_len);
        if let Some(other) = stacked.iter().find(|t| t.row_len() != k) {
            let what =
                format!("tensor {} has {} columns where {k} are stacked", other.name(), other.row_len());
            return Err(ModelError::BadInputs { what });
        }
        let n = stacked.iter().map(Tensor::rows).sum();
        let fault = Mutex::new(None);
        let fill = |row: usize, out: &mut [f32]| {
            let mut row = row;
            for tensor in stacked {
                if row < tensor.rows() {
                    if let Err(e) = tensor.read_row(row, out) {
                        *fault.lock() = Some(e);
                    }
                    return;
                }
                row -= tensor.rows();
            }
        };
        let matrix = PackedMatrix::pack(&self.team, self.dtype, n, k, &fill)?;
        match fault.into_inner() {
            Some(e) => Err(e),
            None => Ok(self.push(Buffer::Matrix(matrix))),
        }
    }

    fn table(&mut self, tensor: &Tensor<'_>) -> Result<BufferId, ModelError> {
        let table = Table::new(tensor, self.dtype)?;
        Ok(self.push(Buffer::Table(table)))
    }

    fn bind(&mut self, inputs: &StepInputs, key: Option<GraphKey>) -> Result<(), ModelError> {
        let rows = inputs.tokens.len();
        let slots = inputs.metadata.slot_mapping.len();
        if inputs.positions.len() != rows || slots != rows {
            let positions = inputs.positions.len();
            let what = format!("{rows} tokens, {positions} positions, {slots} slots");
            return Err(ModelError::BadInputs { what });
        }
        let sequences = inputs.metadata.num_rows();
        if let Some(key) = key.filter(|k| rows > k.token_rows as usize || sequences > k.sequences as usize) {
            let what = format!("{rows} token rows of {sequences} sequences do not fit {key:?}");
            return Err(ModelError::BadInputs { what });
        }
        self.work.plan(&inputs.metadata, self.heads, &self.layer(0))?;
        self.inputs.tokens.clone_from(&inputs.tokens);
        self.inputs.positions.clone_from(&inputs.positions);
        self.inputs.metadata.clone_from(&inputs.metadata);
        self.bound = key;
        if let Some(key) = key {
            // Sequences need no padding: the work list has those that there are.
            let rows = key.token_rows as usize;
            self.inputs.tokens.resize(rows, 0);
            self.inputs.positions.resize(rows, 0);
            self.inputs.metadata.slot_mapping.resize(rows, PAD_SLOT);
        }
        Ok(())
    }

    fn select(&mut self, rows: &[u32]) -> Result<(), ModelError> {
        self.selection.clear();
        self.selection.extend_from_slice(rows);
        Ok(())
    }

    fn run(&mut self, ops: &[Op<BufferId>]) -> Result<(), ModelError> {
        ops.iter().try_for_each(|op| self.run_op(op))
    }

    fn capture(&mut self, ops: &[Op<BufferId>], key: GraphKey) -> Result<Tape, ModelError> {
        Ok(Tape { ops: ops.into(), key })
    }

    fn touch(&mut self) -> Result<(), ModelError> {
        self.kv.touch();
        let (mut rows, mut width) = (0, 0);
        for buffer in &mut self.buffers {
            if let Buffer::Rows(activations) = buffer {
                activations.touch();
                (rows, width) = (rows.max(activations.room()), width.max(activations.width()));
            }
        }
        let widest = self.buffers.iter().filter_map(|buffer| match buffer {
            Buffer::Matrix(matrix) => Some(matrix.k()),
            _ => None,
        });
        self.packed.reserve(self.isa, self.dtype, rows, widest.max().unwrap_or(0).min(width))?;
        Ok(())
    }

    fn graph_bytes(&self, graph: &Tape) -> usize {
        size_of::<Tape>() + size_of_val(&*graph.ops)
    }

    fn replay(&mut self, graph: &Tape) -> Result<(), ModelError> {
        if self.bound != Some(graph.key) {
            let what = format!(
                "the inputs were bound for {:?}, the tape was captured for {:?}",
                self.bound, graph.key
            );
            return Err(ModelError::BadInputs { what });
        }
        self.run(&graph.ops)
    }

    fn read(&mut self, buffer: BufferId, rows: usize) -> Result<&[f32], ModelError> {
        let all = self.rows(buffer);
        let limit = all.data().len() / all.width().max(1);
        all.data().get(..rows * all.width()).ok_or(ModelError::StepTooLarge { rows, limit })
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        for copy in copies {
            for layer in 0..self.layers {
                // SAFETY: no operation runs, so nobody accesses the cache meanwhile.
                unsafe { self.layer(layer).copy_block(copy.src, copy.dst)? };
            }
        }
        Ok(())
    }
}
