//! One weight of a checkpoint, read row by row as f32.

use half::{bf16, f16};

use super::dtype::Dtype;
use super::dummy::Generator;
use super::fp8::{Blocks, power_of_two};
use super::gguf::{GgmlType, Rows};
use super::int8::Int8Matrix;
use crate::cpu::int8::Int8Row;
use crate::error::ModelError;

/// A weight: a view of a file's bytes, or values drawn from a seed. Cheap to make and to clone;
/// any number of threads may read different rows at once.
///
/// A matrix `[rows, columns]` has that many rows; a vector `[n]` is one row of n.
#[derive(Clone)]
pub struct Tensor<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    rows: usize,
    row_len: usize,
    values: Values<'a>,
}

#[derive(Clone)]
enum Values<'a> {
    /// Little-endian, row by row, `rows * row_len * dtype.size()` bytes.
    Stored(&'a [u8]),
    Drawn(Generator),
    /// Powers of two, a byte each (E8M0), row by row.
    Powers(&'a [u8]),
    /// In fp8 with a scale for each block; the tensor's dtype is what it is widened to.
    Blocks(Blocks<'a>),
    /// Of a GGUF file; the tensor's dtype is float32 where they are quantised.
    Ggml(Rows<'a>),
    /// In 8-bit integers with a scale for each block of a row; the tensor's dtype is what it is widened to.
    Int8(Int8Matrix<'a>),
}

impl<'a> Tensor<'a> {
    /// The caller has checked that `bytes` has the length of the shape.
    pub(super) fn stored(name: &str, dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Self {
        Tensor::new(name, dtype, shape, Values::Stored(bytes))
    }

    pub(super) fn drawn(name: &str, dtype: Dtype, shape: &[usize], seed: u64) -> Self {
        let generator = Generator::new(seed, name);
        Tensor::new(name, dtype, shape, Values::Drawn(generator))
    }

    /// Powers of two in E8M0. The caller has checked that `bytes` has the length of the shape.
    pub(super) fn powers(name: &str, shape: &[usize], bytes: &'a [u8]) -> Self {
        Tensor::new(name, Dtype::F32, shape, Values::Powers(bytes))
    }

    /// The caller has checked that bytes and scales have the shapes that go with the tensor's.
    pub(super) fn blocks(name: &str, shape: &[usize], blocks: Blocks<'a>) -> Self {
        Tensor::new(name, Dtype::F32, shape, Values::Blocks(blocks))
    }

    /// The caller has checked that the rows are those of the shape.
    pub(super) fn ggml(name: &str, shape: &[usize], rows: Rows<'a>) -> Self {
        let dtype = rows.kind().dtype().unwrap_or(Dtype::F32);
        Tensor::new(name, dtype, shape, Values::Ggml(rows))
    }

    /// The caller has checked that integers and scales have the shapes that go with the tensor's.
    pub(super) fn int8(name: &str, shape: &[usize], matrix: Int8Matrix<'a>) -> Self {
        Tensor::new(name, Dtype::F32, shape, Values::Int8(matrix))
    }

    fn new(name: &str, dtype: Dtype, shape: &[usize], values: Values<'a>) -> Self {
        let row_len = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), rows, row_len, values }
    }

    /// Its name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type it is stored in; for dummy weights, the configuration's; float32 for weights in fp8, in 8 bits and in
    /// quantised blocks of a GGUF file, which are widened.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of rows; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements a row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Reads row `row` into `out`, which must have [`Tensor::row_len`] elements. Every value of
    /// every type is exact in f32.
    ///
    /// # Errors
    /// [`ModelError::NoSuchRow`] where the row or the length of `out` is wrong.
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), ModelError> {
        if row >= self.rows || out.len() != self.row_len {
            return Err(self.no_such_row(row, out.len()));
        }
        match &self.values {
            Values::Drawn(generator) => generator.fill_row(row, out),
            Values::Blocks(blocks) => blocks.read_row(row, out)?,
            Values::Ggml(rows) => rows.read_row(row, out),
            Values::Int8(matrix) => matrix.read_row(row, out),
            Values::Powers(bytes) => {
                let bytes = bytes.get(row * out.len()..(row + 1) * out.len()).unwrap_or(&[]);
                out.iter_mut().zip(bytes).for_each(|(out, &byte)| *out = power_of_two(byte));
            }
            Values::Stored(_) => {
                let bytes = self.raw_row(row).ok_or_else(|| self.no_such_row(row, out.len()))?;
                widen(self.dtype, bytes, out);
            }
        }
        Ok(())
    }

    /// Makes `to` the row `row` of a matrix that is stored in 8 bits. Returns whether it is, and has the row.
    pub fn take_int8(&self, row: usize, to: &mut Int8Row) -> bool {
        let Values::Int8(matrix) = &self.values else { return false };
        let has = row < self.rows;
        if has {
            matrix.take_row(row, self.row_len, to);
        }
        has
    }

    /// The little-endian bytes of a row as stored; `None` for dummy weights, for fp8, for 8 bits, for quantised blocks and past the end.
    pub fn raw_row(&self, row: usize) -> Option<&'a [u8]> {
        let bytes = match &self.values {
            Values::Stored(bytes) => bytes,
            Values::Ggml(rows) if row < self.rows && rows.kind().dtype().is_some() => {
                return rows.blocks(row).map(|(_, bytes)| bytes);
            }
            _ => return None,
        };
        let length = self.row_len * self.dtype.size();
        let start = row.checked_mul(length)?;
        bytes.get(start..start.checked_add(length)?)
    }

    /// The blocks of a row of a GGUF file and their type. The rows of q and k are in the order in which this engine computes with them,
    /// whatever their order in the file. `None` for every other kind of weights, past the end, and for a vector whose elements are in
    /// another order in the file (the biases of q and k of the architecture `llama`).
    pub fn ggml_row(&self, row: usize) -> Option<(GgmlType, &'a [u8])> {
        match &self.values {
            Values::Ggml(rows) if row < self.rows => rows.blocks(row),
            _ => None,
        }
    }

    /// All the bytes as stored, row by row, little-endian; `None` for dummy weights, fp8, 8 bits, quantised blocks, and rows that are in another
    /// order in their file.
    pub fn raw(&self) -> Option<&'a [u8]> {
        match &self.values {
            Values::Stored(bytes) => Some(bytes),
            Values::Ggml(rows) => rows.plain(),
            Values::Drawn(_) | Values::Blocks(_) | Values::Powers(_) | Values::Int8(_) => None,
        }
    }

    /// Every value, row by row. Meant for norms, biases and tests.
    ///
    /// # Errors
    /// None that a tensor out of a checkpoint can run into.
    pub fn to_vec_f32(&self) -> Result<Vec<f32>, ModelError> {
        let mut values = vec![0.0; self.rows * self.row_len];
        if self.row_len > 0 {
            for (row, out) in values.chunks_exact_mut(self.row_len).enumerate() {
                self.read_row(row, out)?;
            }
        }
        Ok(values)
    }

    fn no_such_row(&self, row: usize, length: usize) -> ModelError {
        ModelError::NoSuchRow { tensor: self.name.clone(), shape: self.shape.clone(), row, length }
    }
}

fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let two = |pair: &[u8; 2]| u16::from_le_bytes(*pair);
    match dtype {
        Dtype::F32 => {
            for (value, four) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*four);
            }
        }
        Dtype::Bf16 => {
            for (value, pair) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_bits(two(pair)).to_f32();
            }
        }
        Dtype::F16 => {
            for (value, pair) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_bits(two(pair)).to_f32();
            }
        }
    }
}
