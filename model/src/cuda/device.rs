//! An NVIDIA GPU as a [`Device`].
//!
//! Every buffer has one address for as long as the device lives. A step's inputs are packed on the host and go over in one
//! copy; operations are [lowered](super::lowering) to launches over fixed addresses, and put on one stream. Nothing waits
//! before something is read.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use pagedraft_block_manager::BlockCopy;

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
use super::weights::send_rows;
use super::workspace::Workspace;
use crate::checkpoint::{Dtype, ModelConfig, Tensor};
use crate::device::{BufferId, Choice, Device, NO_CHOICE, Op, Precision, StepInputs};
use crate::device_times::{DeviceTimes, Stage};
use crate::error::ModelError;
use crate::graph::GraphKey;

/// Devices made so far: their numbers.
static DEVICES: AtomicU64 = AtomicU64::new(0);

/// Operations that were captured, and the device and the shape they are for.
#[derive(Debug)]
pub struct Captured<G> {
    graph: G,
    device: u64,
    key: GraphKey,
}

/// An NVIDIA GPU; with another `B`, the same over something that runs the kernels elsewhere.
pub struct CudaDevice<B: Backend = GpuBackend> {
    backend: B,
    /// No other device's.
    number: u64,
    options: CudaOptions,
    geometry: Geometry,
    work: AttentionWork,
    shapes: Vec<Shape>,
    /// Of each buffer.
    addresses: Vec<u64>,
    cache: u64,
    inputs: u64,
    selection: u64,
    choices: ChoiceTable,
    /// Partial sums and counters of split kernels; taken once all weights are known.
    workspace: Option<(u64, u64)>,
    /// Activations of the weights' dtype, widened to be read.
    widened: Option<(u64, usize)>,
    packer: Packer,
    /// What was bound, and what attention is launched for.
    bound: Option<GraphKey>,
    bound_rows: usize,
    attention: AttentionLaunch,
    /// What the device's selection holds.
    selected: Vec<u32>,
    launches: Vec<Launch>,
    commands: Vec<Command>,
    chosen: Vec<u32>,
    /// Kernels that have run, so that their code is loaded.
    warm: HashSet<&'static str>,
}

impl CudaDevice {
    /// A device on the first GPU, with a KV cache for this model and no weights yet; compiles the kernels where they are not
    /// in the user's cache.
    ///
    /// # Errors
    ///
    /// No usable GPU, a model or dtype without kernels, not enough memory.
    pub fn open(options: &CudaOptions, config: &ModelConfig) -> Result<Self, ModelError> {
        options::check(config, options.dtype, options.block_size)?;
        Self::open_on(&Gpu::open()?, options, config)
    }

    /// The same on a GPU that is open; several devices on it run in turns.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_on(gpu: &Gpu, options: &CudaOptions, config: &ModelConfig) -> Result<Self, ModelError> {
        options::check(config, options.dtype, options.block_size)?;
        let kernels = modules::load(gpu, &CubinCache::of_user(), options, config)?;
        let blas = (!options.deterministic).then_some(options.dtype);
        Self::on(GpuBackend::new(gpu.clone(), kernels, blas)?, options, config)
    }

    /// The GPU.
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
    /// A model or dtype without kernels; not enough memory.
    pub fn on(mut backend: B, options: &CudaOptions, config: &ModelConfig) -> Result<Self, ModelError> {
        options::check(config, options.dtype, options.block_size)?;
        let multiprocessors = backend.multiprocessors();
        let work = AttentionWork::of(config, options, multiprocessors)?;
        let inputs = InputLayout::of(options, &work);
        let geometry =
            Geometry { attention: *work.shape(), layers: config.num_layers, multiprocessors, inputs };
        let choices = ChoiceTable::new(options.logit_rows);
        let blocks = geometry.block_stride() * options.num_blocks as usize;
        let cache = backend.allocate(blocks, Purpose::KvCache)?;
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

    /// What it stands on.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Waits until everything that was issued is done.
    ///
    /// # Errors
    ///
    /// A fault of the device, or of anything that ran before.
    pub fn wait(&mut self) -> Result<(), ModelError> {
        self.backend.fetch(self.inputs, 1)?;
        Ok(())
    }

    /// Address of the KV cache.
    #[must_use]
    pub fn cache(&self) -> u64 {
        self.cache
    }

    /// The shape of its KV cache and of its inputs.
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
            // It may need more.
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

    /// Takes the memory that split kernels share.
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

    /// The operation as a product of the vendor's library, where those are allowed and it is one.
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

    /// The address of so many f32 to widen into: of all rows of a buffer, as what was too small is not given back.
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

impl<B: Backend> Device for CudaDevice<B> {
    type Buf = BufferId;
    type Graph = Captured<B::Graph>;

    fn activations(
        &mut self,
        rows: usize,
        width: usize,
        precision: Precision,
    ) -> Result<BufferId, ModelError> {
        self.push(match precision {
            Precision::Full => Shape::Full { rows, width },
            Precision::Working => Shape::Working { rows, width },
        })
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<BufferId, ModelError> {
        let buffer = self.push(Shape::Vector { len: values.len() })?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.backend.write(self.addresses[buffer.index()], &bytes)?;
        Ok(buffer)
    }

    fn matrix(&mut self, stacked: &[Tensor<'_>]) -> Result<BufferId, ModelError> {
        let n = stacked.iter().map(Tensor::rows).sum();
        let k = stacked.first().map_or(0, Tensor::row_len);
        let buffer = self.push(Shape::Matrix { n, k })?;
        let (at, backend) = (self.addresses[buffer.index()], &mut self.backend);
        send_rows(
            stacked,
            self.options.dtype,
            |offset, bytes| Ok(backend.write(at + offset as u64, bytes)?),
        )?;
        Ok(buffer)
    }

    fn table(&mut self, tensor: &Tensor<'_>) -> Result<BufferId, ModelError> {
        self.matrix(std::slice::from_ref(tensor))
    }

    fn table_and_matrix(&mut self, tensor: &Tensor<'_>) -> Result<(BufferId, BufferId), ModelError> {
        let both = self.table(tensor)?;
        Ok((both, both))
    }

    fn bind(&mut self, inputs: &StepInputs, key: Option<GraphKey>) -> Result<(), ModelError> {
        let longest = key.map_or(inputs.metadata.max_query_len, |key| key.max_query_len);
        let words = self.backend.staging(self.geometry.inputs.words())?;
        let pool = (self.options.num_blocks, self.options.block_size);
        let packed = self.packer.pack(inputs, key, pool, (&self.work, longest), words)?;
        let items = match key {
            // What the graph was captured for.
            Some(key) => self.work.most_items(key.token_rows, longest),
            None => packed.items,
        };
        self.attention = self.work.launch(longest, items);
        self.bound = key;
        self.bound_rows = key.map_or(inputs.tokens.len(), |key| key.token_rows as usize);
        self.backend.enter(Stage::Inputs);
        self.backend.send(self.inputs, packed.words)?;
        Ok(())
    }

    fn select(&mut self, rows: &[u32]) -> Result<(), ModelError> {
        // Replays select the same rows every time.
        if self.selected.get(..rows.len()) == Some(rows) {
            return Ok(());
        }
        let limit = self.options.most_rows();
        if rows.len() > limit {
            return Err(ModelError::StepTooLarge { rows: rows.len(), limit });
        }
        let token_rows = self.options.token_rows;
        if let Some(&row) = rows.iter().find(|&&row| row as usize >= token_rows) {
            return Err(ModelError::NoSuchTokenRow { row: row as usize, rows: token_rows });
        }
        self.backend.staging(rows.len())?[..rows.len()].copy_from_slice(rows);
        self.selected.clear();
        self.backend.enter(Stage::Inputs);
        self.backend.send(self.selection, rows.len())?;
        self.selected.extend_from_slice(rows);
        Ok(())
    }

    fn run(&mut self, ops: &[Op<BufferId>]) -> Result<(), ModelError> {
        self.lower(ops)?;
        self.backend.enter(Stage::Forward);
        // SAFETY: `lower` gives kernels their lists, over buffers of this device that have the rows.
        unsafe { self.backend.run(&self.commands) }?;
        Ok(())
    }

    /// Where a kernel has not run yet, the operations are run on padding first, which loads its code: a capture must not.
    fn capture(&mut self, ops: &[Op<BufferId>], key: GraphKey) -> Result<Captured<B::Graph>, ModelError> {
        self.bind(&StepInputs::default(), Some(key))?;
        self.select(&(0..key.token_rows).collect::<Vec<_>>())?;
        self.lower(ops)?;
        let cold = |command: &Command| match command {
            Command::Launch(launch) => !self.warm.contains(launch.kernel),
            Command::Product { .. } => true,
        };
        if self.commands.iter().any(cold) {
            self.backend.enter(Stage::Forward);
            // SAFETY: `lower` gives kernels their lists, over buffers of this device that have the rows.
            unsafe { self.backend.run(&self.commands) }?;
            self.backend.fetch(self.selection, 1)?;
            self.warm.extend(self.commands.iter().filter_map(|command| match command {
                Command::Launch(launch) => Some(launch.kernel),
                Command::Product { .. } => None,
            }));
        }
        // SAFETY: likewise.
        let graph = unsafe { self.backend.capture(&self.commands, key) }?;
        Ok(Captured { graph, device: self.number, key })
    }

    fn graph_bytes(&self, graph: &Captured<B::Graph>) -> usize {
        self.backend.graph_bytes(&graph.graph)
    }

    fn replay(&mut self, graph: &Captured<B::Graph>) -> Result<(), ModelError> {
        if self.number != graph.device {
            return Err(ModelError::BadInputs {
                what: "the graph was captured on another device".to_owned(),
            });
        }
        if self.bound != Some(graph.key) {
            let (bound, key) = (self.bound, graph.key);
            let what = format!("the inputs were bound for {bound:?}, the graph was captured for {key:?}");
            return Err(ModelError::BadInputs { what });
        }
        self.backend.enter(Stage::Forward);
        // SAFETY: this device captured it, on this backend.
        unsafe { self.backend.replay(&graph.graph) }?;
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, rows: usize) -> Result<&[f32], ModelError> {
        let (limit, width, widen) = match self.shapes.get(buffer.index()) {
            Some(&Shape::Full { rows, width }) => (rows, width, false),
            Some(&Shape::Working { rows, width }) => (rows, width, true),
            other => return Err(ModelError::BadInputs { what: format!("{other:?} is read") }),
        };
        if rows > limit {
            return Err(ModelError::StepTooLarge { rows, limit });
        }
        self.backend.enter(Stage::Choice);
        let mut from = self.addresses[buffer.index()];
        if widen && rows > 0 {
            let to = self.take_widened(limit * width)?;
            let arguments = vec![from, to, width as u64];
            let grid = [rows as u32, 1, 1];
            let launch = ReadyLaunch { kernel: "widen_rows", grid, block: 256, shared: 0, arguments };
            // SAFETY: the kernel's list; `rows` rows are within the buffer and within what they are widened into.
            unsafe { self.backend.run(&[Command::Launch(launch)]) }?;
            from = to;
        }
        Ok(as_floats(self.backend.fetch(from, rows * width)?))
    }

    fn chooses(&self) -> bool {
        true
    }

    fn choose(&mut self, logits: BufferId, rows: &[u32], choices: &[Choice]) -> Result<&[u32], ModelError> {
        let (has, vocab) = match self.shapes.get(logits.index()) {
            Some(&Shape::Full { rows, width }) => (rows, width),
            other => return Err(ModelError::BadInputs { what: format!("{other:?} is chosen from") }),
        };
        let last = rows.iter().map(|&row| row as usize + 1).max().unwrap_or(0);
        let limit = self.options.logit_rows.min(has);
        if last > limit {
            return Err(ModelError::StepTooLarge { rows: last, limit });
        }
        if rows.len() != choices.len() {
            let what = format!("{} rows to choose from, and {} choices", rows.len(), choices.len());
            return Err(ModelError::BadInputs { what });
        }
        self.take_workspace()?;
        self.backend.enter(Stage::Choice);
        let greedy = choices.iter().all(|choice| choice.temperature == 0.0);
        if !greedy {
            let words = self.choices.parameter_words();
            self.choices.pack(rows, choices, self.backend.staging(words)?);
            self.backend.send(self.choices.address(), words)?;
        }
        let launch = self.choices.launch(logits, last, vocab, greedy);
        self.issue(&[launch])?;
        self.chosen.clear();
        if last > 0 {
            let all = self.backend.fetch(self.choices.chosen_address(), last)?;
            self.chosen.extend(rows.iter().map(|&row| all.get(row as usize).copied().unwrap_or(NO_CHOICE)));
        }
        Ok(&self.chosen)
    }

    fn has_clock(&self) -> bool {
        true
    }

    fn busy(&mut self) -> Option<DeviceTimes> {
        Some(self.backend.busy())
    }

    fn is_deterministic(&self) -> bool {
        self.options.deterministic
    }

    fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        if !yes {
            self.backend.open_products(self.options.dtype)?;
        }
        self.options.deterministic = yes;
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        let num_blocks = self.options.num_blocks;
        let stride = self.geometry.block_stride();
        self.backend.enter(Stage::Forward);
        for copy in copies {
            if let Some(block) = [copy.src.0, copy.dst.0].into_iter().find(|&block| block >= num_blocks) {
                let what = format!("block {block} is copied, and there are {num_blocks}");
                return Err(ModelError::BadInputs { what });
            }
            let at = |block: u32| self.cache + block as u64 * stride as u64;
            self.backend.copy(at(copy.src.0), at(copy.dst.0), stride)?;
        }
        Ok(())
    }
}

fn as_floats(words: &[u32]) -> &[f32] {
    // SAFETY: every pattern of 32 bits is an f32, of the same size and alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}

/// The dtype that a model runs in on a GPU where nothing is said: its own, or bfloat16 for float32.
#[must_use]
pub fn default_dtype(config: &ModelConfig) -> Dtype {
    match config.torch_dtype {
        Dtype::F32 => Dtype::Bf16,
        other => other,
    }
}
