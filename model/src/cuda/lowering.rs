//! From operations to kernel launches, as a function of shapes alone.
//!
//! What is launched for a row does not depend on the rows beside it in a way that shows in a bit: which of the matrix
//! kernels runs is chosen by the number of rows, and they all sum in one order; `splits` is a function of the weight alone.

use pagedraft_attention::cuda::AttentionShape;

use super::attention_work::AttentionLaunch;
use super::error::CudaError;
use super::inputs::InputLayout;
use super::kernels::{MatmulTile, splits};
use super::launch::{Argument, Launch, Place};
use crate::device::{BufferId, Into, Op};

use Argument::{At, F32, U32, U64};

/// What a buffer is, as far as kernels care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Activations in f32.
    Full {
        /// Rows.
        rows: usize,
        /// Values a row.
        width: usize,
    },
    /// Activations in the dtype of the weights.
    Working {
        /// Rows.
        rows: usize,
        /// Values a row.
        width: usize,
    },
    /// Norm weights, biases, rotations, in f32.
    Vector {
        /// Values.
        len: usize,
    },
    /// A weight or an embedding, `[n, k]`, in the dtype of the weights.
    Matrix {
        /// Rows.
        n: usize,
        /// Values a row.
        k: usize,
    },
}

/// The KV cache's shape, and the GPU's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Heads, block size and types of the attention kernels.
    pub attention: AttentionShape,
    /// Layers.
    pub layers: usize,
    /// Multiprocessors of the GPU.
    pub multiprocessors: u32,
    /// Where the step's inputs lie.
    pub inputs: InputLayout,
}

impl Geometry {
    /// Bytes from one block to the next.
    #[must_use]
    pub fn block_stride(&self) -> usize {
        self.attention.part_bytes() * self.layers
    }
}

/// The shapes of a device's buffers, and what else launches depend on.
#[derive(Clone, Copy, Debug)]
pub struct Lowering<'a> {
    /// Of the model and the GPU.
    pub geometry: &'a Geometry,
    /// Of each buffer, by its handle.
    pub shapes: &'a [Shape],
    /// Of the step bound, or of the key.
    pub attention: AttentionLaunch,
}

impl Lowering<'_> {
    /// Appends the launches of an operation; none where it has no rows.
    ///
    /// # Errors
    ///
    /// A buffer that the operation cannot have in that place.
    pub fn lower(&self, op: &Op<BufferId>, launches: &mut Vec<Launch>) -> Result<(), CudaError> {
        let g = self.geometry;
        let mut push = |kernel, grid: [usize; 3], block, shared, arguments: &[Argument]| {
            if grid.iter().all(|&n| n > 0) {
                let grid = grid.map(|n| n as u32);
                launches.push(Launch { kernel, grid, block, shared, arguments: arguments.to_vec() });
            }
        };
        let at = |buffer| At(Place::Buffer(buffer));
        let input = |word| At(Place::Inputs(word));
        match *op {
            Op::Embed { table, out, rows } => {
                let (_, width) = self.matrix(table)?;
                let arguments = [at(table), input(g.inputs.tokens()), at(out), U32(width as u32)];
                self.full(out)?;
                push("embed", [rows, 1, 1], 128, 0, &arguments);
            }
            Op::RmsNorm { x, weight, out, eps, rows } => {
                let width = self.full(x)?;
                self.working(out)?;
                let arguments = [at(x), at(weight), at(out), U32(width as u32), F32(eps)];
                push("rms_norm", [rows, 1, 1], 256, 0, &arguments);
            }
            Op::MatMul { x, matrix, bias, out, into, rows } => {
                let (n, k) = self.matrix(matrix)?;
                self.working(x)?;
                let mode = self.mode(out, into)?;
                let (r, n, k) = (rows as u32, n as u32, k as u32);
                let tile = MatmulTile::choose(r, n, k, g.multiprocessors);
                let bias = At(bias.map_or(Place::Null, Place::Buffer));
                let (partial, arrived) = (At(Place::Partial), At(Place::Arrived));
                let arguments = [
                    at(x),
                    at(matrix),
                    bias,
                    at(out),
                    partial,
                    arrived,
                    U32(r),
                    U32(n),
                    U32(k),
                    U32(splits(n, k)),
                    U32(mode),
                ];
                let grid = tile.grid(r, n, k).map(|n| n as usize);
                push(tile.kernel, grid, tile.threads, tile.shared_bytes(), &arguments);
            }
            Op::RopeAndCache { qkv, qk_norm, rope, q, layer, rows } => {
                self.working(qkv)?;
                self.working(q)?;
                let (q_weight, k_weight, eps) = match qk_norm {
                    Some((q, k, eps)) => (at(q), at(k), eps),
                    None => (At(Place::Null), At(Place::Null), 0.0),
                };
                let arguments = [
                    at(qkv),
                    q_weight,
                    k_weight,
                    at(rope),
                    input(g.inputs.positions()),
                    input(g.inputs.slots()),
                    at(q),
                    At(Place::Cache(usize::from(layer) * g.attention.part_bytes())),
                    U64(g.block_stride() as u64),
                    F32(eps),
                ];
                let heads = (g.attention.heads() + 2 * g.attention.kv_heads()) as usize;
                push("rope_cache", [rows, heads.div_ceil(4), 1], 128, 0, &arguments);
            }
            Op::Attention { q, out, layer, rows } => {
                self.working(q)?;
                self.working(out)?;
                let arguments = [
                    at(q),
                    at(out),
                    At(Place::Cache(usize::from(layer) * g.attention.part_bytes())),
                    // Items say where their tables begin, counted from the start of the inputs.
                    input(0),
                    input(g.inputs.items()),
                    input(g.inputs.num_items()),
                    At(Place::Partial),
                    At(Place::Arrived),
                    U64(g.block_stride() as u64),
                    F32(1.0 / (g.attention.head_dim() as f32).sqrt()),
                ];
                let launch = self.attention;
                let heads = g.attention.kv_heads() as usize;
                let grid = if rows > 0 { [launch.grid as usize, heads, 1] } else { [0; 3] };
                push(launch.kernel(), grid, 128, g.attention.shared_bytes(launch.rows), &arguments);
            }
            Op::SwiGlu { x, out, rows } => {
                self.working(x)?;
                let width = self.working(out)?;
                let arguments = [at(x), at(out), U32(width as u32)];
                push("swiglu", [rows, width.div_ceil(1024), 1], 128, 0, &arguments);
            }
            Op::Gather { x, out, rows } => {
                self.full(x)?;
                let width = self.full(out)?;
                let arguments = [at(x), At(Place::Selection), at(out), U32(width as u32)];
                push("gather_rows", [rows, 1, 1], 256, 0, &arguments);
            }
            Op::Copy { x, out, rows } => {
                self.full(x)?;
                let width = self.full(out)?;
                push("copy_rows", [rows, 1, 1], 256, 0, &[at(x), at(out), U32(width as u32)]);
            }
        }
        Ok(())
    }

    /// What a product does with its output: 0 stores f32, 1 adds to f32, 2 stores in the dtype of the weights.
    fn mode(&self, out: BufferId, into: Into) -> Result<u32, CudaError> {
        match (self.shape(out)?, into) {
            (Shape::Full { .. }, Into::Store) => Ok(0),
            (Shape::Full { .. }, Into::Add) => Ok(1),
            (Shape::Working { .. }, Into::Store) => Ok(2),
            (shape, _) => misplaced("the output of a product", shape),
        }
    }

    fn shape(&self, buffer: BufferId) -> Result<Shape, CudaError> {
        let none = || CudaError::Unsupported { what: format!("there is no {buffer:?} on this device") };
        self.shapes.get(buffer.index()).copied().ok_or_else(none)
    }

    /// Width of f32 activations.
    fn full(&self, buffer: BufferId) -> Result<usize, CudaError> {
        match self.shape(buffer)? {
            Shape::Full { width, .. } => Ok(width),
            other => misplaced("f32 activations", other),
        }
    }

    /// Width of activations in the dtype of the weights.
    fn working(&self, buffer: BufferId) -> Result<usize, CudaError> {
        match self.shape(buffer)? {
            Shape::Working { width, .. } => Ok(width),
            other => misplaced("activations in the weights' dtype", other),
        }
    }

    fn matrix(&self, buffer: BufferId) -> Result<(usize, usize), CudaError> {
        match self.shape(buffer)? {
            Shape::Matrix { n, k } => Ok((n, k)),
            other => misplaced("a weight", other),
        }
    }
}

fn misplaced<T>(wanted: &str, found: Shape) -> Result<T, CudaError> {
    Err(CudaError::Unsupported { what: format!("an operation of the model takes {found:?} for {wanted}") })
}
