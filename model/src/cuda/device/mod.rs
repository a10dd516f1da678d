//! An NVIDIA GPU as a [`Device`].
//!
//! Every buffer has one address for as long as the device lives. A step's inputs are packed on the host and sent in one
//! copy. Operations are [lowered](super::lowering) to launches over fixed addresses and put on one stream. Nothing waits
//! for the GPU until a result is read.

mod interface;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use pagedraft_block_manager::{Arena, GroupArena, GroupId};

use super::arena::CudaArena;
use super::attention_work::{AttentionLaunch, AttentionWork};
use super::backend::{Backend, Command, ReadyLaunch};
use super::choice_table::ChoiceTable;
use super::cubin_cache::CubinCache;
use super::driver::Gpu;
use super::error::CudaError;
use super::gpu_backend::GpuBackend;
use super::inputs::{InputLayout, Packer};
use super::launch::{Argument, Launch, Place};
use super::lowering::{Geometry, Lowering, Shape};
use super::modules;
use super::options::{self, CudaOptions};
use super::purpose::Purpose;
use super::workspace::Workspace;
use crate::checkpoint::{Dtype, ModelConfig};
use crate::device::{BufferId, Op};
use crate::error::ModelError;
use crate::graph::GraphKey;

/// The number of devices made so far. A device's number is the count before it.
static DEVICES: AtomicU64 = AtomicU64::new(0);

/// Operations that were captured, with the device and the shape that they are for.
#[derive(Debug)]
pub struct Captured<G> {
    graph: G,
    device: u64,
    key: GraphKey,
}

/// An NVIDIA GPU. With another `B`, the same device over a backend that runs the kernels elsewhere.
pub struct CudaDevice<B: Backend = GpuBackend> {
    backend: B,
    /// A number that no other device has. A captured graph names its device by it.
    number: u64,
    options: CudaOptions,
    geometry: Geometry,
    work: AttentionWork,
    shapes: Vec<Shape>,
    /// The address of each buffer, by its handle.
    addresses: Vec<u64>,
    /// How the KV arena is cut into blocks, which of its groups belongs to the model, and where the arena lies.
    arena: Arena,
    group: GroupArena,
    cache: u64,
    inputs: u64,
    selection: u64,
    choices: ChoiceTable,
    /// The addresses of the partial sums and counters of split kernels. Their memory is allocated once all weights are
    /// known.
    workspace: Option<(u64, u64)>,
    /// The address where activations in the weights' dtype are widened before they are read, and the number of values that
    /// fit there.
    widened: Option<(u64, usize)>,
    packer: Packer,
    /// The key that the inputs were padded to, their token rows, and how attention is launched for them.
    bound: Option<GraphKey>,
    bound_rows: usize,
    attention: AttentionLaunch,
    /// The rows that the device's selection buffer holds now.
    selected: Vec<u32>,
    launches: Vec<Launch>,
    commands: Vec<Command>,
    chosen: Vec<u32>,
    /// Kernels that have run before, so that their code is loaded.
    warm: HashSet<&'static str>,
}

impl CudaDevice {
    /// A device on a GPU that keeps its KV in group `group` of `arena` and has no weights yet. Kernels that are not in the
    /// user's cache are compiled. Several devices on one GPU run in turns.
    ///
    /// # Errors
    ///
    /// There are no kernels for the model or the dtype, the arena lacks the group, or there is not enough memory.
    pub fn open_on(
        gpu: &Gpu,
        options: &CudaOptions,
        config: &ModelConfig,
        arena: &CudaArena,
        group: GroupId,
    ) -> Result<Self, ModelError> {
        options::check(config, options.dtype, options.block_size, options.max_model_len)?;
        let kernels = modules::load(gpu, &CubinCache::of_user(), options, config)?;
        let blas = (!options.deterministic).then_some(options.dtype);
        Self::on(GpuBackend::new(gpu.clone(), kernels, blas)?, options, config, arena, group)
    }

    /// The GPU that the device runs on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        self.backend.gpu()
    }
}

impl<B: Backend> CudaDevice<B> {
    /// A device over a backend that has the kernels of this model.
    ///
    /// # Errors
    ///
    /// There are no kernels for the model or the dtype, the arena lacks the group, or there is not enough memory.
    pub fn on(
        mut backend: B,
        options: &CudaOptions,
        config: &ModelConfig,
        arena: &CudaArena<B>,
        group: GroupId,
    ) -> Result<Self, ModelError> {
        options::check(config, options.dtype, options.block_size, options.max_model_len)?;
        let Some(&planned) = arena.plan().group(group) else {
            let what = format!("the KV arena has no group {}, which this device was given", group.0);
            return Err(ModelError::BadInputs { what });
        };
        let multiprocessors = backend.multiprocessors();
        let work = AttentionWork::of(config, options, planned.num_blocks, multiprocessors)?;
        let inputs = InputLayout::of(options, &work);
        let geometry = Geometry {
            attention: *work.shape(),
            layers: config.num_layers,
            stride: planned.stride,
            multiprocessors,
            inputs,
        };
        let choices = ChoiceTable::new(options.logit_rows);
        let cache = backend.adopt(arena.memory());
        let mut words = |words: usize| backend.allocate(words * size_of::<u32>(), Purpose::Step);
        let packed = words(inputs.words())?;
        let selection = words(options.most_rows())?;
        let choices = choices.at(words(choices.words())?);
        Ok(Self {
            backend,
            number: DEVICES.fetch_add(1, Ordering::Relaxed),
            options: *options,
            attention: work.launch(1, 0),
            work,
            geometry,
            shapes: Vec::new(),
            addresses: Vec::new(),
            arena: arena.plan().clone(),
            group: planned,
            cache,
            inputs: packed,
            selection,
            choices,
            workspace: None,
            widened: None,
            packer: Packer::new(inputs),
            bound: None,
            bound_rows: 0,
            selected: Vec::new(),
            launches: Vec::new(),
            commands: Vec::new(),
            chosen: Vec::new(),
            warm: HashSet::new(),
        })
    }

    /// The backend, for inspection.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Waits until everything that was issued is done.
    ///
    /// # Errors
    ///
    /// The device, or anything that ran before, has a fault.
    pub fn wait(&mut self) -> Result<(), ModelError> {
        self.backend.fetch(self.inputs, 1)?;
        Ok(())
    }

    /// The address of the KV arena. Block 0 of every group begins there.
    #[must_use]
    pub fn cache(&self) -> u64 {
        self.cache
    }

    /// The shape of the KV cache and of the inputs.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn push(&mut self, shape: Shape) -> Result<BufferId, ModelError> {
        let (values, size, purpose) = match shape {
            Shape::Full { rows, width } => (rows * width, size_of::<f32>(), Purpose::Step),
            Shape::Working { rows, width } => (rows * width, self.options.dtype.size(), Purpose::Step),
            Shape::Vector { len } => (len, size_of::<f32>(), Purpose::Weights),
            Shape::Matrix { n, k } => (n * k, self.options.dtype.size(), Purpose::Weights),
        };
        let at = self.backend.allocate(values * size, purpose)?;
        if matches!(shape, Shape::Matrix { .. }) {
            // A new weight may need a larger workspace.
            self.workspace = None;
        }
        self.shapes.push(shape);
        self.addresses.push(at);
        Ok(BufferId::new(self.shapes.len() - 1))
    }

    fn address(&self, place: Place) -> u64 {
        let word = |word: usize| (word * size_of::<u32>()) as u64;
        let (partial, arrived) = self.workspace.unwrap_or_default();
        match place {
            Place::Null => 0,
            Place::Buffer(buffer) => self.addresses.get(buffer.index()).copied().unwrap_or(0),
            Place::Inputs(at) => self.inputs + word(at),
            Place::Selection => self.selection,
            Place::Cache(byte) => self.cache + byte as u64,
            Place::Partial => partial,
            Place::Arrived => arrived,
            Place::Choice(at) => self.choices.address() + word(at),
        }
    }

    /// Allocates the memory that split kernels share.
    fn take_workspace(&mut self) -> Result<(), CudaError> {
        if self.workspace.is_some() {
            return Ok(());
        }
        let weights = self.shapes.iter().filter_map(|shape| match *shape {
            Shape::Matrix { n, k } => Some((n, k)),
            _ => None,
        });
        let shared = Workspace::of(&self.work, &self.options, self.geometry.multiprocessors, weights);
        let mut words = |words: usize| self.backend.allocate(words * size_of::<u32>(), Purpose::Step);
        self.workspace = Some((words(shared.values)?, words(shared.counters)?));
        Ok(())
    }

    /// Lowers operations into `self.commands`.
    fn lower(&mut self, ops: &[Op<BufferId>]) -> Result<(), ModelError> {
        self.take_workspace()?;
        let (mut launches, mut commands) =
            (std::mem::take(&mut self.launches), std::mem::take(&mut self.commands));
        commands.clear();
        let lowered = self.lower_into(ops, &mut launches, &mut commands);
        (self.launches, self.commands) = (launches, commands);
        lowered
    }

    fn lower_into(
        &self,
        ops: &[Op<BufferId>],
        launches: &mut Vec<Launch>,
        commands: &mut Vec<Command>,
    ) -> Result<(), ModelError> {
        let lowering = Lowering {
            geometry: &self.geometry,
            shapes: &self.shapes,
            attention: self.attention,
            bound: self.bound_rows,
            most_rows: self.options.most_rows(),
        };
        for op in ops {
            if let Some(product) = self.product(op, &lowering)? {
                commands.push(product);
                continue;
            }
            launches.clear();
            lowering.lower(op, launches)?;
            commands.extend(launches.iter().map(|launch| Command::Launch(self.ready(launch))));
        }
        Ok(())
    }

    /// The operation as a product of the vendor's library, if those are allowed and the operation is a product.
    fn product(&self, op: &Op<BufferId>, lowering: &Lowering<'_>) -> Result<Option<Command>, ModelError> {
        let Op::MatMul { x, matrix, bias: None, out, into, rows } = *op else { return Ok(None) };
        if self.options.deterministic || rows == 0 {
            return Ok(None);
        }
        let shape = lowering.product(x, matrix, out, into, rows)?;
        let at = |buffer| self.address(Place::Buffer(buffer));
        Ok(Some(Command::Product { shape, x: at(x), weights: at(matrix), out: at(out) }))
    }

    fn ready(&self, launch: &Launch) -> ReadyLaunch {
        let word = |argument: &Argument| match *argument {
            Argument::At(place) => self.address(place),
            Argument::U32(value) => u64::from(value),
            Argument::U64(value) => value,
            Argument::F32(value) => u64::from(value.to_bits()),
        };
        ReadyLaunch {
            kernel: launch.kernel,
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            arguments: launch.arguments.iter().map(word).collect(),
        }
    }

    fn issue(&mut self, launches: &[Launch]) -> Result<(), CudaError> {
        let commands: Vec<_> = launches.iter().map(|launch| Command::Launch(self.ready(launch))).collect();
        // SAFETY: the launches are over this device's memory.
        unsafe { self.backend.run(&commands) }
    }

    /// The address of memory into which so many f32 can be widened. Callers ask for all rows of a buffer at once, because
    /// memory that turned out too small is not freed.
    fn take_widened(&mut self, values: usize) -> Result<u64, CudaError> {
        match self.widened {
            Some((at, has)) if has >= values => Ok(at),
            _ => {
                let at = self.backend.allocate(values * size_of::<f32>(), Purpose::Step)?;
                self.widened = Some((at, values));
                Ok(at)
            }
        }
    }
}

/// The dtype in which a model runs on a GPU if none is asked for: its own, or bfloat16 instead of float32.
#[must_use]
pub fn default_dtype(config: &ModelConfig) -> Dtype {
    match config.torch_dtype {
        Dtype::F32 => Dtype::Bf16,
        other => other,
    }
}
