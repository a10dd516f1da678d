//! A device whose kind is chosen when the program runs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pagedraft_attention::sparse::{ChosenScores, KeepScores};
use pagedraft_block_manager::{Arena, BlockCopy, KvGroup};

use crate::checkpoint::Tensor;
use crate::choice::Choice;
use crate::cpu::{CpuDevice, KvArena, Tape};
use crate::cuda::{Captured, CudaArena, CudaDevice, CudaGraph, Gpu};
use crate::device::{BufferId, Device, IndexMass, Mass, Op, Precision};
use crate::device_times::DeviceTimes;
use crate::dsa::{FillMatrices, MatrixStack};
use crate::error::ModelError;
use crate::graph::GraphKey;
use crate::kv::{KvRef, KvRows, PartShape};
use crate::step_inputs::StepInputs;
use crate::tiers::{TierOptions, Tiers};

/// A CPU or a GPU.
pub enum AnyDevice {
    /// The CPU.
    Cpu(Box<CpuDevice>),
    /// An NVIDIA GPU.
    Cuda(Box<CudaDevice>),
}

/// The memory of the KV arena of an engine, which the devices of its models share.
pub enum AnyArena {
    /// The CPU's.
    Cpu(Arc<KvArena>),
    /// An NVIDIA GPU's.
    Cuda(CudaArena),
}

impl AnyArena {
    /// Zeroed memory for this plan: on the GPU if there is one, otherwise on the CPU.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn new(plan: &Arena, gpu: Option<&Gpu>) -> Result<Self, ModelError> {
        Ok(match gpu {
            Some(gpu) => Self::Cuda(CudaArena::open(gpu, plan)?),
            None => Self::Cpu(KvArena::new(plan)?),
        })
    }

    /// How it is cut into blocks.
    #[must_use]
    pub fn plan(&self) -> &Arena {
        match self {
            Self::Cpu(arena) => arena.plan(),
            Self::Cuda(arena) => arena.plan(),
        }
    }
}

/// What the devices capture.
#[derive(Debug)]
pub enum AnyGraph {
    /// An operation tape.
    Cpu(Tape),
    /// A CUDA graph.
    Cuda(Captured<CudaGraph>),
}

/// Makes the same call on whichever device it is.
macro_rules! on {
    ($self:ident, $device:ident => $call:expr) => {
        match $self {
            AnyDevice::Cpu($device) => $call,
            AnyDevice::Cuda($device) => $call,
        }
    };
}

fn foreign<T>() -> Result<T, ModelError> {
    Err(ModelError::BadInputs { what: "the graph was captured on another device".to_owned() })
}

impl AnyDevice {
    /// Has the latents of a model with sparse attention kept in tiers. To be called before a model is loaded.
    ///
    /// # Errors
    ///
    /// A device without tiers.
    pub fn keep_in_tiers(&mut self, options: TierOptions) -> Result<(), ModelError> {
        match self {
            Self::Cpu(device) => {
                device.keep_in_tiers(options);
                Ok(())
            }
            Self::Cuda(_) => {
                let what = "this device has no KV tiers: use --device cpu".to_owned();
                Err(ModelError::BadInputs { what })
            }
        }
    }
}

impl Device for AnyDevice {
    type Buf = BufferId;
    type Graph = AnyGraph;

    fn token_bytes(&self, shape: PartShape) -> Result<usize, ModelError> {
        on!(self, device => device.token_bytes(shape))
    }

    fn attach(&mut self, groups: &[KvGroup], shapes: &[Vec<PartShape>]) -> Result<(), ModelError> {
        on!(self, device => device.attach(groups, shapes))
    }

    fn activations(
        &mut self,
        rows: usize,
        width: usize,
        precision: Precision,
    ) -> Result<BufferId, ModelError> {
        on!(self, device => device.activations(rows, width, precision))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<BufferId, ModelError> {
        on!(self, device => device.vector(values))
    }

    fn matrix(&mut self, stacked: &[Tensor<'_>]) -> Result<BufferId, ModelError> {
        on!(self, device => device.matrix(stacked))
    }

    fn table(&mut self, tensor: &Tensor<'_>) -> Result<BufferId, ModelError> {
        on!(self, device => device.table(tensor))
    }

    fn head(&mut self, tensor: &Tensor<'_>) -> Result<BufferId, ModelError> {
        on!(self, device => device.head(tensor))
    }

    fn table_and_matrix(&mut self, tensor: &Tensor<'_>) -> Result<(BufferId, BufferId), ModelError> {
        on!(self, device => device.table_and_matrix(tensor))
    }

    fn matrices(&mut self, stack: MatrixStack, fill: &FillMatrices<'_>) -> Result<BufferId, ModelError> {
        on!(self, device => device.matrices(stack, fill))
    }

    fn full_matrix(&mut self, tensor: &Tensor<'_>) -> Result<BufferId, ModelError> {
        on!(self, device => device.full_matrix(tensor))
    }

    fn choices(&mut self, rows: usize, per_row: usize, keep: KeepScores) -> Result<BufferId, ModelError> {
        on!(self, device => device.choices(rows, per_row, keep))
    }

    fn read_choices(&mut self, buffer: BufferId, row: usize) -> Result<&[u32], ModelError> {
        on!(self, device => device.read_choices(buffer, row))
    }

    fn read_scores(&mut self, buffer: BufferId, row: usize) -> Result<Option<ChosenScores<'_>>, ModelError> {
        on!(self, device => device.read_scores(buffer, row))
    }

    fn bind(&mut self, inputs: &StepInputs, key: Option<GraphKey>) -> Result<(), ModelError> {
        on!(self, device => device.bind(inputs, key))
    }

    fn select(&mut self, rows: &[u32]) -> Result<(), ModelError> {
        on!(self, device => device.select(rows))
    }

    fn run(&mut self, ops: &[Op<BufferId>]) -> Result<(), ModelError> {
        on!(self, device => device.run(ops))
    }

    fn capture(&mut self, ops: &[Op<BufferId>], key: GraphKey) -> Result<AnyGraph, ModelError> {
        Ok(match self {
            Self::Cpu(device) => AnyGraph::Cpu(device.capture(ops, key)?),
            Self::Cuda(device) => AnyGraph::Cuda(device.capture(ops, key)?),
        })
    }

    fn touch(&mut self) -> Result<(), ModelError> {
        on!(self, device => device.touch())
    }

    fn graph_bytes(&self, graph: &AnyGraph) -> usize {
        match (self, graph) {
            (Self::Cpu(device), AnyGraph::Cpu(graph)) => device.graph_bytes(graph),
            (Self::Cuda(device), AnyGraph::Cuda(graph)) => device.graph_bytes(graph),
            _ => 0,
        }
    }

    fn replay(&mut self, graph: &AnyGraph) -> Result<(), ModelError> {
        match (self, graph) {
            (Self::Cpu(device), AnyGraph::Cpu(graph)) => device.replay(graph),
            (Self::Cuda(device), AnyGraph::Cuda(graph)) => device.replay(graph),
            _ => foreign(),
        }
    }

    fn read(&mut self, buffer: BufferId, rows: usize) -> Result<&[f32], ModelError> {
        on!(self, device => device.read(buffer, rows))
    }

    fn map_rows(
        &mut self,
        buffer: BufferId,
        rows: Range<usize>,
        each: &(dyn Fn(usize, &[f32]) -> f32 + Sync),
    ) -> Result<Vec<f32>, ModelError> {
        on!(self, device => device.map_rows(buffer, rows, each))
    }

    fn attention_mass(&mut self, mass: &Mass<'_>) -> Result<Vec<f32>, ModelError> {
        on!(self, device => device.attention_mass(mass))
    }

    fn index_mass(&mut self, mass: &IndexMass<'_>) -> Result<Vec<f32>, ModelError> {
        on!(self, device => device.index_mass(mass))
    }

    fn read_kv(&mut self, kv: KvRef, slots: &[i64], into: &mut KvRows) -> Result<(), ModelError> {
        on!(self, device => device.read_kv(kv, slots, into))
    }

    fn chooses(&self) -> bool {
        on!(self, device => device.chooses())
    }

    fn choose(&mut self, logits: BufferId, rows: &[u32], choices: &[Choice]) -> Result<&[u32], ModelError> {
        on!(self, device => device.choose(logits, rows, choices))
    }

    fn has_clock(&self) -> bool {
        on!(self, device => device.has_clock())
    }

    fn busy(&mut self) -> Option<DeviceTimes> {
        on!(self, device => device.busy())
    }

    fn is_deterministic(&self) -> bool {
        on!(self, device => device.is_deterministic())
    }

    fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        on!(self, device => device.set_deterministic(yes))
    }

    fn interrupt_on(&mut self, flag: Arc<AtomicBool>) {
        on!(self, device => device.interrupt_on(flag));
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        on!(self, device => device.copy_blocks(copies))
    }

    fn tiers(&mut self) -> Option<&mut Tiers> {
        on!(self, device => device.tiers())
    }
}
