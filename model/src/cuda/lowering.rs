//! Turns operations into kernel launches, as a function of shapes alone.
//!
//! The rows beside a row do not change a bit of its result. The number of rows decides which of the matrix kernels runs,
//! but all of them sum in the same order. `splits` is a function of the weight alone.

use pagedraft_attention::cuda::AttentionShape;

use super::attention_work::AttentionLaunch;
use super::backend::ProductShape;
use super::error::CudaError;
use super::inputs::InputLayout;
use super::kernels::{MatmulTile, splits};
use super::launch::{Argument, Launch, Place};
use crate::device::{BufferId, Op, WriteMode};
use crate::error::ModelError;
use crate::kv::KvRef;

use Argument::{At, F32, U32, U64};

/// The shape of a buffer, as kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Activations in f32.
    Full {
        /// The number of rows.
        rows: usize,
        /// The number of values per row.
        width: usize,
    },
    /// Activations in the dtype of the weights.
    Working {
        /// The number of rows.
        rows: usize,
        /// The number of values per row.
        width: usize,
    },
    /// Norm weights, biases or rotations, in f32.
    Vector {
        /// The number of values.
        len: usize,
    },
    /// A weight or an embedding, `[n, k]`, in the dtype of the weights.
    Matrix {
        /// The number of rows.
        n: usize,
        /// The number of values per row.
        k: usize,
    },
}

/// The shape of the KV cache, and what launches depend on of the GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// The heads, block size and types of the attention kernels.
    pub attention: AttentionShape,
    /// The number of layers.
    pub layers: usize,
    /// The number of bytes from one KV block to the next.
    pub stride: usize,
    /// The number of multiprocessors of the GPU.
    pub multiprocessors: u32,
    /// Where the step's inputs lie.
    pub inputs: InputLayout,
}

impl Geometry {
    /// The number of bytes from one KV block to the next.
    #[must_use]
    pub fn block_stride(&self) -> usize {
        self.stride
    }
}

/// The shapes of a device's buffers, and what else launches depend on.
#[derive(Clone, Copy, Debug)]
pub struct Lowering<'a> {
    /// The shape of the KV cache, and what launches depend on of the GPU.
    pub geometry: &'a Geometry,
    /// The shape of each buffer, by its handle.
    pub shapes: &'a [Shape],
    /// How attention is launched for the step that is bound, or for the graph's key.
    pub attention: AttentionLaunch,
    /// The number of token rows that attention writes: those of the step that is bound, or of the graph's key.
    pub bound: usize,
    /// The greatest number of rows that can be selected, and for which products have a workspace.
    pub most_rows: usize,
}

impl Lowering<'_> {
    /// Appends the launches of an operation. An operation without rows has none.
    ///
    /// # Errors
    ///
    /// The operation has more rows than one of its buffers, or a buffer is not of the kind that the operation needs in that
    /// place.
    pub fn lower(&self, op: &Op<BufferId>, launches: &mut Vec<Launch>) -> Result<(), ModelError> {
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
                within(rows, g.inputs.rows())?;
                same(self.full(out, rows)?, width)?;
                let arguments = [at(table), input(g.inputs.tokens()), at(out), U32(width as u32)];
                push("embed", [rows, 1, 1], 128, 0, &arguments);
            }
            Op::RmsNorm { x, weight, out, eps, rows } => {
                let width = self.full(x, rows)?;
                same(self.working(out, rows)?, width)?;
                same(self.vector(weight)?, width)?;
                let arguments = [at(x), at(weight), at(out), U32(width as u32), F32(eps)];
                push("rms_norm", [rows, 1, 1], 256, 0, &arguments);
            }
            Op::MatMul { x, matrix, bias, out, into, rows } => {
                let shape = self.product(x, matrix, out, into, rows)?;
                if let Some(bias) = bias {
                    same(self.vector(bias)?, shape.n)?;
                }
                let mode = match (shape.out_f32, shape.add) {
                    (true, false) => 0,
                    (true, true) => 1,
                    (false, _) => 2,
                };
                let (r, n, k) = (rows as u32, shape.n as u32, shape.k as u32);
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
            Op::RopeAndCache { qkv, qk_norm, rope, q, kv, rows } => {
                let cache = self.cache(kv)?;
                let (heads, d) = (g.attention.heads() as usize, g.attention.head_dim() as usize);
                let all = heads + 2 * g.attention.kv_heads() as usize;
                within(rows, g.inputs.rows())?;
                same(self.working(qkv, rows)?, all * d)?;
                same(self.working(q, rows)?, heads * d)?;
                self.vector(rope)?;
                let (q_weight, k_weight, eps) = match qk_norm {
                    Some((q, k, eps)) => {
                        same(self.vector(q)?, d)?;
                        same(self.vector(k)?, d)?;
                        (at(q), at(k), eps)
                    }
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
                    cache,
                    U64(g.block_stride() as u64),
                    F32(eps),
                ];
                push("rope_cache", [rows, all.div_ceil(4), 1], 128, 0, &arguments);
            }
            Op::Attention { q, out, kv, scale, rows } => {
                let cache = self.cache(kv)?;
                let width = (g.attention.heads() * g.attention.head_dim()) as usize;
                // The items of attention are those of the step that is bound, however many rows are asked for.
                let most = rows.max(self.bound);
                same(self.working(q, most)?, width)?;
                same(self.working(out, most)?, width)?;
                let arguments = [
                    at(q),
                    at(out),
                    cache,
                    // An item counts the position of its blocks from the start of the inputs.
                    input(0),
                    input(g.inputs.items()),
                    input(g.inputs.num_items()),
                    At(Place::Partial),
                    At(Place::Arrived),
                    U64(g.block_stride() as u64),
                    F32(scale),
                ];
                let launch = self.attention;
                let heads = g.attention.kv_heads() as usize;
                let grid = if rows > 0 { [launch.grid as usize, heads, 1] } else { [0; 3] };
                push(launch.kernel(), grid, 128, g.attention.shared_bytes(launch.rows), &arguments);
            }
            Op::SwiGlu { x, out, rows } => {
                let width = self.working(out, rows)?;
                same(self.working(x, rows)?, 2 * width)?;
                let arguments = [at(x), at(out), U32(width as u32)];
                push("swiglu", [rows, width.div_ceil(1024), 1], 128, 0, &arguments);
            }
            Op::Gather { x, out, rows } => {
                let width = self.full(out, rows)?;
                within(rows, self.most_rows)?;
                // Any token row may be selected.
                same(self.full(x, g.inputs.rows())?, width)?;
                let arguments = [at(x), At(Place::Selection), at(out), U32(width as u32)];
                push("gather_rows", [rows, 1, 1], 256, 0, &arguments);
            }
            Op::Copy { x, out, rows } => {
                let width = self.full(out, rows)?;
                same(self.full(x, rows)?, width)?;
                push("copy_rows", [rows, 1, 1], 256, 0, &[at(x), at(out), U32(width as u32)]);
            }
            Op::Hold { .. } | Op::Fetch { .. } | Op::Sparse(_) => {
                let what = "the model holds rows of its residual stream between steps, for which there are no CUDA kernels: use \
                            --device cpu";
                return Err(CudaError::Unsupported { what: what.to_owned() }.into());
            }
        }
        Ok(())
    }

    /// The shape of a product, after checking that its operands have it.
    ///
    /// # Errors
    ///
    /// Those of [`lower`](Self::lower).
    pub fn product(
        &self,
        x: BufferId,
        matrix: BufferId,
        out: BufferId,
        into: WriteMode,
        rows: usize,
    ) -> Result<ProductShape, ModelError> {
        let (n, k) = self.matrix(matrix)?;
        within(rows, self.most_rows)?;
        same(self.working(x, rows)?, k)?;
        let add = into == WriteMode::Add;
        let out_f32 = match (self.shape(out)?, add) {
            (Shape::Full { .. }, _) => true,
            (Shape::Working { .. }, false) => false,
            (shape, _) => return misplaced("the output of a product", shape),
        };
        same(if out_f32 { self.full(out, rows)? } else { self.working(out, rows)? }, n)?;
        Ok(ProductShape { rows, n, k, out_f32, add })
    }

    fn shape(&self, buffer: BufferId) -> Result<Shape, CudaError> {
        let none = || CudaError::Unsupported { what: format!("there is no {buffer:?} on this device") };
        self.shapes.get(buffer.index()).copied().ok_or_else(none)
    }

    /// Where the keys and values of a layer begin in block 0.
    fn cache(&self, kv: KvRef) -> Result<Argument, ModelError> {
        let (layer, layers) = (usize::from(kv.layer), self.geometry.layers);
        if layer >= layers || kv != KvRef::dense(kv.layer) {
            let what = format!("{kv:?}, and the KV cache has {layers} layers in part 0 of group 0");
            return Err(ModelError::BadInputs { what });
        }
        Ok(At(Place::Cache(layer * self.geometry.attention.part_bytes())))
    }

    /// The width of f32 activations, which must have at least `rows` rows.
    fn full(&self, buffer: BufferId, rows: usize) -> Result<usize, ModelError> {
        match self.shape(buffer)? {
            Shape::Full { rows: limit, width } => within(rows, limit).map(|()| width),
            other => misplaced("f32 activations", other),
        }
    }

    /// The width of activations in the dtype of the weights, which must have at least `rows` rows.
    fn working(&self, buffer: BufferId, rows: usize) -> Result<usize, ModelError> {
        match self.shape(buffer)? {
            Shape::Working { rows: limit, width } => within(rows, limit).map(|()| width),
            other => misplaced("activations in the weights' dtype", other),
        }
    }

    fn vector(&self, buffer: BufferId) -> Result<usize, ModelError> {
        match self.shape(buffer)? {
            Shape::Vector { len } => Ok(len),
            other => misplaced("a vector of f32", other),
        }
    }

    fn matrix(&self, buffer: BufferId) -> Result<(usize, usize), ModelError> {
        match self.shape(buffer)? {
            Shape::Matrix { n, k } => Ok((n, k)),
            other => misplaced("a weight", other),
        }
    }
}

fn within(rows: usize, limit: usize) -> Result<(), ModelError> {
    if rows <= limit { Ok(()) } else { Err(ModelError::StepTooLarge { rows, limit }) }
}

/// Refuses a buffer whose rows do not have the length that the operation needs.
fn same(found: usize, wanted: usize) -> Result<(), ModelError> {
    if found == wanted {
        return Ok(());
    }
    let what = format!("an operation of the model takes a buffer of {found} values a row where {wanted} go");
    Err(CudaError::Unsupported { what }.into())
}

fn misplaced<T>(wanted: &str, found: Shape) -> Result<T, ModelError> {
    Err(CudaError::Unsupported { what: format!("an operation of the model takes {found:?} for {wanted}") }
        .into())
}

#[cfg(test)]
mod tests;
