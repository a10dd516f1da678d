//! The calls of [`Device`] on a GPU.

use pagedraft_attention::cuda::AttentionShape;
use pagedraft_block_manager::{BlockCopy, KvGroup, KvPart};

use super::super::backend::{Backend, Command, ReadyLaunch};
use super::super::error::CudaError;
use super::super::lowering::Shape;
use super::super::weights::send_rows;
use super::{Captured, CudaDevice};
use crate::checkpoint::Tensor;
use crate::choice::{Choice, NO_CHOICE};
use crate::device::{BufferId, Device, Op, Precision};
use crate::device_times::{DeviceTimes, Stage};
use crate::error::ModelError;
use crate::graph::GraphKey;
use crate::kv::{PartShape, copied};
use crate::step_inputs::StepInputs;

/// Every KV block has to begin at a multiple of this many bytes, because kernels copy 16 bytes at once.
const ALIGNMENT: usize = 16;

impl<B: Backend> Device for CudaDevice<B> {
    type Buf = BufferId;
    type Graph = Captured<B::Graph>;

    fn token_bytes(&self, shape: PartShape) -> Result<usize, ModelError> {
        let attention = &self.geometry.attention;
        if shape == heads(attention) {
            return Ok(attention.part_bytes() / attention.block_size() as usize);
        }
        unsupported(format!(
            "a part of the KV cache with {shape:?}; this device is made for {:?}",
            heads(attention)
        ))
    }

    fn attach(&mut self, groups: &[KvGroup], shapes: &[Vec<PartShape>]) -> Result<(), ModelError> {
        let ([group], [shapes]) = (groups, shapes) else {
            let names: Vec<_> = groups.iter().map(|group| group.name.as_str()).collect();
            return unsupported(format!(
                "the model keeps {} KV groups ({}); the CUDA kernels are made for one: use --device cpu",
                groups.len(),
                names.join(", ")
            ));
        };
        if let Some(window) = group.window {
            return unsupported(format!(
                "the KV group {:?} has a sliding window of {window} tokens; the CUDA kernels have no windows: use --device cpu",
                group.name
            ));
        }
        let layers = self.geometry.layers;
        let whole =
            |part: &KvPart| part.layers.len() == layers && part.layers.iter().zip(0..).all(|(l, i)| l == i);
        let dense = matches!(&group.parts[..], [part] if whole(part))
            && shapes[..] == [heads(&self.geometry.attention)];
        if !dense {
            return unsupported(format!(
                "the KV group {:?} has other parts than the keys and values of all layers; there are no CUDA kernels for them: \
                 use --device cpu",
                group.name
            ));
        }
        let (takes, given) = (self.geometry.attention.part_bytes() * layers, self.group.block_bytes);
        if takes != given || !self.group.stride.is_multiple_of(ALIGNMENT) {
            let what = format!(
                "a KV block takes {takes} bytes on this device, and the arena gives it {given} at multiples of {}",
                self.group.stride
            );
            return Err(ModelError::BadInputs { what });
        }
        Ok(())
    }

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
        if inputs.groups.len() > 1 {
            let what = format!("metadata of {} KV groups, and this device keeps one", inputs.groups.len());
            return Err(ModelError::BadInputs { what });
        }
        let longest = key.map_or(inputs.metadata().max_query_len, |key| key.max_query_len);
        let words = self.backend.staging(self.geometry.inputs.words())?;
        let pool = (self.group.num_blocks, self.options.block_size);
        let packed = self.packer.pack(inputs, key, pool, (&self.work, longest), words)?;
        let items = match key {
            // The graph was captured for the greatest number of items of its key.
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
        // Replays of a graph select the same rows every time.
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
        // SAFETY: `lower` gives kernels the arguments that they take, over buffers of this device that have the rows.
        unsafe { self.backend.run(&self.commands) }?;
        Ok(())
    }

    /// Runs the operations on padding first if one of the kernels has not run yet. This loads its code, which is not
    /// allowed during a capture.
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
            // SAFETY: `lower` gives kernels the arguments that they take, over buffers of this device that have the rows.
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
        // SAFETY: this device captured it, on this same backend.
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
            // SAFETY: these are the arguments that the kernel takes, and `rows` rows lie within the buffer and within the
            // memory that they are widened into.
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
        self.backend.enter(Stage::Forward);
        for &copy in copies {
            let (from, to, bytes) = copied(&self.arena, copy)?;
            self.backend.copy(self.cache + from as u64, self.cache + to as u64, bytes)?;
        }
        Ok(())
    }
}

/// The shape of the keys and values for which the kernels are compiled.
fn heads(shape: &AttentionShape) -> PartShape {
    PartShape::Heads {
        heads: shape.heads() as usize,
        kv_heads: shape.kv_heads() as usize,
        head_dim: shape.head_dim() as usize,
    }
}

fn unsupported<T>(what: String) -> Result<T, ModelError> {
    Err(CudaError::Unsupported { what }.into())
}

fn as_floats(words: &[u32]) -> &[f32] {
    // SAFETY: every pattern of 32 bits is an f32, which has the same size and alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}
