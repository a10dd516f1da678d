//! The CPU as a [`Device`].
//!
//! Buffers are host memory. Every [operation](super::operations) runs on all threads of a team.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pagedraft_attention::KvLayout;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::kernel::{AttentionScratch, WorkList};
use pagedraft_attention::mass::MassCall;
use pagedraft_attention::metadata::{AttentionMetadata, PAD_SLOT};
use pagedraft_attention::sparse::{ChosenScores, KeepScores};
use pagedraft_block_manager::{BlockCopy, GroupId, KvGroup};
use parking_lot::Mutex;

use crate::checkpoint::{Dtype, ModelConfig, Tensor};
use crate::cpu::arena::KvArena;
use crate::cpu::buffer::{Activations, Buffer, Table};
use crate::cpu::int8::{Format, QuantRow};
use crate::cpu::kv::{self, CpuKv};
use crate::cpu::memory::Memory;
use crate::cpu::panel::PackedMatrix;
use crate::cpu::rows::{InputType, PackedRows};
use crate::cpu::sparse::{Choices, SparseState};
use crate::cpu::team::Team;
use crate::device::{BufferId, Device, IndexMass, Mass, Op, Precision};
use crate::dsa::{FillMatrices, MatrixStack};
use crate::error::ModelError;
use crate::graph::GraphKey;
use crate::kv::{KvRef, KvRows, PartShape};
use crate::quantization::{ActivationType, Quantization};
use crate::step_inputs::StepInputs;
use crate::tiers::{TierOptions, Tiers};

/// What a CPU device is built from.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// The instruction set. It must be available.
    pub isa: Isa,
    /// The number of threads, the caller's included.
    pub threads: usize,
    /// The type of weights and KV. Activations are f32.
    pub dtype: Dtype,
    /// How many tokens a KV block holds.
    pub block_size: u32,
}

/// How a matrix is kept for products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    In(Dtype),
    Quantised(Format, ActivationType),
}

/// Some weights are not finite, or too large.
fn beyond_8_bits(matrix: &str) -> ModelError {
    let what = format!(
        "{matrix} has a weight that 8 bits can't hold: it is not finite, or beyond 8 million; run the model with --quantization none"
    );
    ModelError::BadInputs { what }
}

/// A captured list of operations. On the CPU it is the list itself, over fixed buffers, together with the
/// shape that it was captured for.
#[derive(Debug)]
pub struct Tape {
    ops: Box<[Op<BufferId>]>,
    key: GraphKey,
}

/// Token rows from which on a matrix product may take so long that an interrupt is looked for before each. A smaller step looks once a
/// layer.
const LARGE_STEP: usize = 256;

/// The CPU as a device.
pub struct CpuDevice {
    pub(super) isa: Isa,
    dtype: Dtype,
    quantization: Quantization,
    block_size: u32,
    pub(super) team: Arc<Team>,
    pub(super) kv: CpuKv,
    pub(super) buffers: Vec<Buffer>,
    pub(super) inputs: StepInputs,
    /// The shape that the inputs of the bound step were padded to.
    bound: Option<GraphKey>,
    /// The attention work of the bound step: one list per KV group.
    pub(super) work: Vec<WorkList>,
    pub(super) selection: Vec<u32>,
    pub(super) packed: PackedRows,
    /// One scratch memory per thread.
    pub(super) scratch: Vec<Mutex<AttentionScratch>>,
    /// Set by somebody else when the step that runs is to end early.
    interrupt: Option<Arc<AtomicBool>>,
    /// What sparse attention and experts need.
    pub(super) sparse: SparseState,
}

impl CpuDevice {
    /// Where one layer's keys and values lie in a KV block of this model.
    ///
    /// # Errors
    ///
    /// A block size that is not 16, 32 or 64.
    pub fn kv_layout(config: &ModelConfig, dtype: Dtype, block_size: u32) -> Result<KvLayout, ModelError> {
        kv::layout(dtype, block_size, config.num_kv_heads, config.head_dim)
    }

    /// A device without weights, which keeps its KV in the groups `groups` of `arena`. The model's KV
    /// groups 0, 1, .. are these groups, in this order.
    ///
    /// # Errors
    ///
    /// The threads cannot be started.
    pub fn new(options: &CpuOptions, arena: &Arc<KvArena>, groups: &[GroupId]) -> Result<Self, ModelError> {
        let team = Team::new(options.threads).map_err(|e| ModelError::NoDevice {
            what: format!("{} threads cannot be started: {e}; ask for fewer with --threads", options.threads),
        })?;
        Self::on_team(options, arena, groups, Arc::new(team))
    }

    /// A device for another model that shares this one's threads, so `options.threads` has no effect. The
    /// two devices run in turns.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn beside(
        &self,
        options: &CpuOptions,
        arena: &Arc<KvArena>,
        groups: &[GroupId],
    ) -> Result<Self, ModelError> {
        Self::on_team(options, arena, groups, Arc::clone(&self.team))
    }

    /// Has the latents of a model with sparse attention kept in tiers. Its part of the arena's plan must be
    /// [tiered](pagedraft_block_manager::KvPart::tiered) then. To be called before a model is loaded.
    pub fn keep_in_tiers(&mut self, options: TierOptions) {
        self.kv.keep_in_tiers(options);
    }

    /// Has the matrices of the layers quantised when they are loaded. To be called before a model is loaded.
    pub fn quantise(&mut self, quantization: Quantization) {
        self.quantization = quantization;
    }

    /// Writes what a [choice](crate::dsa::SparseOp::Select) of keys for a token row would have been: for measurements under selections
    /// that are known. They ascend.
    ///
    /// # Errors
    ///
    /// A row that the buffer does not have, or another buffer.
    pub fn set_choices(&mut self, buffer: BufferId, row: usize, keys: &[u32]) -> Result<(), ModelError> {
        match self.buffers.get(buffer.index()) {
            Some(Buffer::Choices(choices)) => choices.set_row(row, keys),
            _ => Err(ModelError::BadInputs { what: "the buffer holds no choices".to_owned() }),
        }
    }

    /// The instruction set that it runs on.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The memory that holds its KV.
    #[must_use]
    pub fn arena(&self) -> &KvArena {
        self.kv.arena()
    }

    fn on_team(
        options: &CpuOptions,
        arena: &Arc<KvArena>,
        groups: &[GroupId],
        team: Arc<Team>,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            sparse: SparseState::new(team.members())?,
            scratch: (0..team.members()).map(|_| Mutex::default()).collect(),
            isa: options.isa,
            dtype: options.dtype,
            quantization: Quantization::None,
            block_size: options.block_size,
            team,
            kv: CpuKv::new(Arc::clone(arena), groups),
            buffers: Vec::new(),
            inputs: StepInputs::default(),
            bound: None,
            work: Vec::new(),
            selection: Vec::new(),
            packed: PackedRows::with_room_for(0, 0)?,
            interrupt: None,
        })
    }

    /// Whether the step is to end before `op`. The flag is looked at before the attention of each layer, and before each matrix product of
    /// a large step.
    fn check_interrupt(&self, op: &Op<BufferId>) -> Result<(), ModelError> {
        let looks = match *op {
            Op::Attention { .. } => true,
            Op::MatMul { rows, .. } => rows >= LARGE_STEP,
            _ => false,
        };
        match &self.interrupt {
            Some(flag) if looks && flag.load(Ordering::Relaxed) => Err(ModelError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Packs tensors, stacked along n, as one part.
    fn stack(&self, stacked: &[Tensor<'_>], kept: Kept) -> Result<PackedMatrix, ModelError> {
        let k = stacked.first().map_or(0, Tensor::row_len);
        let n = stacked.iter().map(Tensor::rows).sum();
        // The tensor that a row of the stack belongs to, and its row there.
        let place = |row: usize| {
            let mut row = row;
            stacked.iter().find_map(|tensor| {
                let here = row < tensor.rows();
                let found = here.then_some((tensor, row));
                row = row.wrapping_sub(tensor.rows());
                found
            })
        };
        let fault = Mutex::new(None);
        let fill = |row: usize, out: &mut [f32]| {
            if let Some(Err(e)) = place(row).map(|(tensor, row)| tensor.read_row(row, out)) {
                *fault.lock() = Some(e);
            }
        };
        let matrix = match kept {
            Kept::In(dtype) => PackedMatrix::pack(&self.team, dtype, n, k, &fill)?,
            Kept::Quantised(format, activations) => {
                let quantise = |row: usize, to: &mut QuantRow| match place(row) {
                    // What is stored in this format is taken as it is.
                    Some((tensor, row)) if tensor.quant_format() == Some(format) => {
                        tensor.take_quantised(row, to);
                    }
                    found => {
                        to.quantise_with(k, |out| fill(row, out));
                        if to.scales().iter().any(|scale| scale.is_nan()) {
                            let name = found.map_or("a matrix", |(tensor, _)| tensor.name());
                            *fault.lock() = Some(beyond_8_bits(name));
                        }
                    }
                };
                PackedMatrix::pack_quantised(&self.team, (format, activations), n, k, &quantise)?
            }
        };
        match fault.into_inner() {
            Some(e) => Err(e),
            None => Ok(matrix),
        }
    }

    /// How a tensor is kept for products.
    fn kept(&self, tensor: &Tensor<'_>) -> Kept {
        match (self.quantization, tensor.quant_format()) {
            (Quantization::Int8(activations), _) => Kept::Quantised(Format::Int8, activations),
            (Quantization::Gguf(activations), Some(format)) => Kept::Quantised(format, activations),
            (Quantization::None | Quantization::Gguf(_), _) => Kept::In(self.dtype),
        }
    }

    fn push(&mut self, buffer: Buffer) -> BufferId {
        self.buffers.push(buffer);
        BufferId::new(self.buffers.len() - 1)
    }
}

impl Device for CpuDevice {
    type Buf = BufferId;
    type Graph = Tape;

    fn token_bytes(&self, shape: PartShape) -> Result<usize, ModelError> {
        kv::token_bytes(shape, self.dtype, self.block_size)
    }

    fn attach(&mut self, groups: &[KvGroup], shapes: &[Vec<PartShape>]) -> Result<(), ModelError> {
        self.kv.attach(groups, shapes, (self.dtype, self.block_size))?;
        self.work.resize_with(groups.len(), WorkList::new);
        self.inputs.groups.resize_with(groups.len(), AttentionMetadata::default);
        self.sparse.attach(groups.len());
        Ok(())
    }

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
        // Neighbours that are kept alike are one part.
        let parts = stacked.chunk_by(|a, b| self.kept(a) == self.kept(b));
        let parts = parts.map(|part| self.stack(part, self.kept(&part[0])));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        Ok(self.push(Buffer::Matrix(parts)))
    }

    fn table(&mut self, tensor: &Tensor<'_>) -> Result<BufferId, ModelError> {
        let table = Table::new(tensor, self.dtype)?;
        Ok(self.push(Buffer::Table(table)))
    }

    fn matrices(&mut self, stack: MatrixStack, fill: &FillMatrices<'_>) -> Result<BufferId, ModelError> {
        let MatrixStack { count, n, k } = stack;
        let fault = Mutex::new(None);
        let packed = (0..count).map(|i| {
            let fill = |row: usize, out: &mut [f32]| {
                if let Err(e) = fill(i, row, out) {
                    *fault.lock() = Some(e);
                }
            };
            match self.quantization {
                Quantization::None | Quantization::Gguf(_) => {
                    PackedMatrix::pack(&self.team, self.dtype, n, k, &fill)
                }
                Quantization::Int8(activations) => {
                    let quantise = |row: usize, to: &mut QuantRow| {
                        to.quantise_with(k, |out| fill(row, out));
                        if to.scales().iter().any(|scale| scale.is_nan()) {
                            *fault.lock() = Some(beyond_8_bits("a matrix of an expert or of a head"));
                        }
                    };
                    PackedMatrix::pack_quantised(&self.team, (Format::Int8, activations), n, k, &quantise)
                }
            }
        });
        let packed = packed.collect::<Result<Vec<_>, _>>()?;
        match fault.into_inner() {
            Some(e) => Err(e),
            None => Ok(self.push(Buffer::Matrices(packed))),
        }
    }

    fn full_matrix(&mut self, tensor: &Tensor<'_>) -> Result<BufferId, ModelError> {
        let fault = Mutex::new(None);
        let fill = |row: usize, out: &mut [f32]| {
            if let Err(e) = tensor.read_row(row, out) {
                *fault.lock() = Some(e);
            }
        };
        let matrix = PackedMatrix::pack(&self.team, Dtype::F32, tensor.rows(), tensor.row_len(), &fill)?;
        match fault.into_inner() {
            Some(e) => Err(e),
            None => Ok(self.push(Buffer::Matrix(vec![matrix]))),
        }
    }

    fn choices(&mut self, rows: usize, per_row: usize, keep: KeepScores) -> Result<BufferId, ModelError> {
        let choices = Choices::new(rows, per_row, keep)?;
        Ok(self.push(Buffer::Choices(choices)))
    }

    fn read_choices(&mut self, buffer: BufferId, row: usize) -> Result<&[u32], ModelError> {
        match self.buffers.get(buffer.index()) {
            Some(Buffer::Choices(choices)) => choices.row(row),
            _ => Err(ModelError::BadInputs { what: "the buffer holds no choices".to_owned() }),
        }
    }

    fn read_scores(&mut self, buffer: BufferId, row: usize) -> Result<Option<ChosenScores<'_>>, ModelError> {
        match self.buffers.get(buffer.index()) {
            Some(Buffer::Choices(choices)) => Ok(choices.scores(row)),
            _ => Err(ModelError::BadInputs { what: "the buffer holds no choices".to_owned() }),
        }
    }

    fn bind(&mut self, inputs: &StepInputs, key: Option<GraphKey>) -> Result<(), ModelError> {
        let bad = |what| Err(ModelError::BadInputs { what });
        let (rows, positions) = (inputs.tokens.len(), inputs.positions.len());
        if positions != rows {
            return bad(format!("{rows} tokens, {positions} positions"));
        }
        let (given, kept) = (inputs.groups.len(), self.kv.num_groups());
        if given > kept {
            return bad(format!("metadata of {given} KV groups, and the model keeps {kept}"));
        }
        for (group, metadata) in inputs.groups.iter().enumerate() {
            let slots = metadata.slot_mapping.len();
            // The metadata of a group that this segment does not use may be empty.
            if slots != rows && (slots > 0 || metadata.num_rows() > 0) {
                return bad(format!("{rows} tokens, {slots} slots in KV group {group}"));
            }
        }
        let sequences = inputs.num_sequences();
        if let Some(key) = key.filter(|k| rows > k.token_rows as usize || sequences > k.sequences as usize) {
            return bad(format!("{rows} token rows of {sequences} sequences do not fit {key:?}"));
        }
        for (group, work) in self.work.iter_mut().enumerate() {
            if let Some((heads, layer)) = self.kv.attended(group) {
                work.plan(inputs.group(group), heads, &layer)?;
            }
            if let Some((block_size, num_blocks)) = self.kv.vector_blocks(group) {
                self.sparse.plan(group, inputs.group(group), block_size, num_blocks)?;
            }
        }
        self.sparse.set_rows(rows);
        if let Some(tiers) = self.kv.tiers_mut() {
            tiers.begin_step();
        }
        self.inputs.tokens.clone_from(&inputs.tokens);
        self.inputs.positions.clone_from(&inputs.positions);
        for (group, metadata) in self.inputs.groups.iter_mut().enumerate() {
            metadata.clone_from(inputs.group(group));
        }
        self.bound = key;
        if let Some(key) = key {
            // Sequences are not padded: the work lists hold only the real ones.
            let rows = key.token_rows as usize;
            self.inputs.tokens.resize(rows, 0);
            self.inputs.positions.resize(rows, 0);
            for metadata in &mut self.inputs.groups {
                metadata.slot_mapping.resize(rows, PAD_SLOT);
            }
        }
        Ok(())
    }

    fn select(&mut self, rows: &[u32]) -> Result<(), ModelError> {
        self.selection.clear();
        self.selection.extend_from_slice(rows);
        Ok(())
    }

    fn run(&mut self, ops: &[Op<BufferId>]) -> Result<(), ModelError> {
        ops.iter().try_for_each(|op| {
            self.check_interrupt(op)?;
            self.run_op(op)
        })
    }

    fn capture(&mut self, ops: &[Op<BufferId>], key: GraphKey) -> Result<Tape, ModelError> {
        Ok(Tape { ops: ops.into(), key })
    }

    fn touch(&mut self) -> Result<(), ModelError> {
        // SAFETY: no operation is running, neither on this device nor on another one in the arena, because
        // they run in turns.
        unsafe { self.kv.arena().touch() };
        if let Some(tiers) = self.kv.tiers_mut() {
            tiers.touch();
        }
        let (mut rows, mut width) = (0, 0);
        for buffer in &mut self.buffers {
            if let Buffer::Rows(activations) = buffer {
                activations.touch();
                (rows, width) = (rows.max(activations.room()), width.max(activations.width()));
            }
        }
        let widest = self.buffers.iter().filter_map(|buffer| match buffer {
            Buffer::Matrix(parts) | Buffer::Matrices(parts) => parts.first().map(PackedMatrix::k),
            _ => None,
        });
        let widest = widest.max().unwrap_or(0).min(width);
        self.packed.reserve(self.isa, self.dtype, rows, widest)?;
        match self.quantization {
            Quantization::None => {}
            Quantization::Int8(ActivationType::Int8) | Quantization::Gguf(ActivationType::Int8) => {
                self.packed.reserve(self.isa, InputType::Int8, rows, widest)?;
            }
            Quantization::Int8(ActivationType::F32) | Quantization::Gguf(ActivationType::F32) => {
                self.packed.reserve(self.isa, Dtype::F32, rows, widest)?
            }
        }
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

    fn map_rows(
        &mut self,
        buffer: BufferId,
        rows: Range<usize>,
        each: &(dyn Fn(usize, &[f32]) -> f32 + Sync),
    ) -> Result<Vec<f32>, ModelError> {
        self.read(buffer, rows.end)?;
        let all = self.rows(buffer);
        let found: Vec<AtomicU32> = rows.clone().map(|_| AtomicU32::new(0)).collect();
        // What is asked of a row costs many times its length.
        self.for_rows(rows.len(), all.width() * 64, |i| {
            let r = rows.start + i;
            found[i].store(each(r, all.row(r)).to_bits(), Ordering::Relaxed);
        });
        Ok(found.into_iter().map(|bits| f32::from_bits(bits.into_inner())).collect())
    }

    fn attention_mass(&mut self, mass: &Mass<'_>) -> Result<Vec<f32>, ModelError> {
        let (layer, heads) = self.kv.heads(mass.kv)?;
        let call = MassCall::new(layer, mass.table, mass.keys, (mass.q, heads), mass.scale, mass.over)?;
        let mut items = vec![0.0; call.num_items() * call.item_len()];
        let parts: Vec<Mutex<&mut [f32]>> =
            items.chunks_mut(call.item_len().max(1)).map(Mutex::new).collect();
        self.team.run(&|share, shares| {
            for (item, out) in parts.iter().enumerate().skip(share).step_by(shares) {
                // SAFETY: no operation is running, so that nobody writes the cache.
                unsafe { call.run_item(self.isa, item, &mut out.lock()) };
            }
        });
        drop(parts);
        let mut all = vec![0.0; call.item_len()];
        call.combine(&items, &mut all);
        Ok(all)
    }

    fn index_mass(&mut self, mass: &IndexMass<'_>) -> Result<Vec<f32>, ModelError> {
        self.sum_index_scores(mass)
    }

    fn read_kv(&mut self, kv: KvRef, slots: &[i64], into: &mut KvRows) -> Result<(), ModelError> {
        self.kv.read(kv, slots, into)
    }

    fn interrupt_on(&mut self, flag: Arc<AtomicBool>) {
        self.interrupt = Some(flag);
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        for &copy in copies {
            // SAFETY: no operation is running, neither on this device nor on another one in the arena,
            // because they run in turns.
            unsafe { self.kv.arena().copy_block(copy)? };
            self.kv.copy_in_tiers(copy);
        }
        Ok(())
    }

    fn tiers(&mut self) -> Option<&mut Tiers> {
        self.kv.tiers_mut()
    }
}
