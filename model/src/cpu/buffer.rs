//! The buffers that a CPU device keeps: activations, vectors, weight matrices and embedding tables.

use half::{bf16, f16};

use crate::checkpoint::{Dtype, Tensor};
use crate::cpu::memory::{Memory, OutOfMemory};
use crate::cpu::panel::PackedMatrix;
use crate::cpu::sparse::Choices;
use crate::error::ModelError;

/// One buffer of a device.
#[derive(Debug)]
pub(super) enum Buffer {
    /// Activations.
    Rows(Activations),
    /// Weights of a norm, biases, or the cosines and sines of RoPE.
    Vector(Memory<f32>),
    /// The weights of a matrix product, in parts along the outputs: one, unless some are kept in other ways than others.
    Matrix(Vec<PackedMatrix>),
    /// An embedding table.
    Table(Table),
    /// Several matrices of one shape.
    Matrices(Vec<PackedMatrix>),
    /// Keys or experts that were chosen for each token row.
    Choices(Choices),
}

/// Activations, `[rows, width]` in row-major order. Threads of one operation write different rows through
/// [`RowsMut`], hence the raw pointer.
#[derive(Debug)]
pub(super) struct Activations {
    data: Memory<f32>,
    width: usize,
}

impl Activations {
    pub fn zeroed(rows: usize, width: usize) -> Result<Self, OutOfMemory> {
        let values = rows.checked_mul(width).ok_or(OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { data: Memory::zeroed(values)?, width })
    }

    /// How many rows there is room for.
    pub fn room(&self) -> usize {
        self.data.len() / self.width.max(1)
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn touch(&mut self) {
        self.data.touch();
    }

    pub fn rows(&self) -> Rows<'_> {
        // This borrow is sound because operations run one after the other, and none reads a buffer that it
        // writes.
        Rows { data: &self.data, width: self.width }
    }

    pub fn rows_mut(&self) -> RowsMut {
        RowsMut { data: self.data.as_ptr(), len: self.data.len(), width: self.width }
    }
}

/// Rows that are read.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    data: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    pub fn data(self) -> &'a [f32] {
        self.data
    }

    pub fn width(self) -> usize {
        self.width
    }

    pub fn row(self, r: usize) -> &'a [f32] {
        &self.data[r * self.width..(r + 1) * self.width]
    }
}

/// Rows that several threads may write at the same time, each thread its own.
#[derive(Clone, Copy)]
pub(super) struct RowsMut {
    data: *mut f32,
    len: usize,
    width: usize,
}

// SAFETY: rows are disjoint, and `row` demands that each has only one writer.
unsafe impl Send for RowsMut {}
// SAFETY: as above.
unsafe impl Sync for RowsMut {}

impl RowsMut {
    pub fn width(self) -> usize {
        self.width
    }

    /// Values of all rows.
    pub fn len(self) -> usize {
        self.len
    }

    pub fn as_ptr(self) -> *mut f32 {
        self.data
    }

    /// One row.
    ///
    /// # Safety
    ///
    /// Nobody else uses the row while the slice lives, and the buffer outlives it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row<'a>(self, r: usize) -> &'a mut [f32] {
        assert!((r + 1) * self.width <= self.len, "row {r} of a buffer of {} values", self.len);
        // SAFETY: the row lies within the buffer, and the caller promises to be its only user.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(r * self.width), self.width) }
    }

    /// The whole buffer.
    ///
    /// # Safety
    ///
    /// Nobody else uses the buffer while the slice lives, and it outlives it.
    pub unsafe fn all<'a>(self) -> &'a mut [f32] {
        // SAFETY: the slice is the buffer itself, and the caller promises to be its only user.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

/// An embedding table. Its rows are stored in the device's dtype and widened when they are looked up.
#[derive(Debug)]
pub(super) struct Table {
    width: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    F32(Memory<f32>),
    F16(Memory<u16>),
    Bf16(Memory<u16>),
}

impl Table {
    pub fn new(tensor: &Tensor<'_>, dtype: Dtype) -> Result<Self, ModelError> {
        let width = tensor.row_len();
        let len = tensor.rows().checked_mul(width).ok_or(OutOfMemory { bytes: usize::MAX })?;
        let mut row = vec![0.0; width];
        let mut values = match dtype {
            Dtype::F32 => Values::F32(Memory::zeroed(len)?),
            Dtype::F16 => Values::F16(Memory::zeroed(len)?),
            Dtype::Bf16 => Values::Bf16(Memory::zeroed(len)?),
        };
        for r in 0..tensor.rows() {
            tensor.read_row(r, &mut row)?;
            let at = r * width..(r + 1) * width;
            match &mut values {
                Values::F32(v) => v[at].copy_from_slice(&row),
                Values::F16(v) => {
                    v[at].iter_mut().zip(&row).for_each(|(to, &x)| *to = f16::from_f32(x).to_bits());
                }
                Values::Bf16(v) => {
                    v[at].iter_mut().zip(&row).for_each(|(to, &x)| *to = bf16::from_f32(x).to_bits());
                }
            }
        }
        Ok(Self { width, values })
    }

    pub fn read(&self, row: usize, out: &mut [f32]) {
        let range = row * self.width..(row + 1) * self.width;
        match &self.values {
            Values::F32(v) => out.copy_from_slice(&v[range]),
            Values::F16(v) => {
                out.iter_mut().zip(&v[range]).for_each(|(o, &x)| *o = f16::from_bits(x).to_f32())
            }
            Values::Bf16(v) => {
                out.iter_mut().zip(&v[range]).for_each(|(o, &x)| *o = bf16::from_bits(x).to_f32());
            }
        }
    }
}

/// Returns the buffer as the kind that an operation needs in this place. Operations are written by the
/// architectures and not by input, so another kind is a fault of this program.
macro_rules! accessor {
    ($name:ident, $kind:ident, $type:ty) => {
        pub(super) fn $name(&self) -> $type {
            match self {
                Buffer::$kind(buffer) => buffer,
                other => unreachable!("an operation takes {other:?} for a {}", stringify!($kind)),
            }
        }
    };
}

impl Buffer {
    accessor!(activations, Rows, &Activations);
    accessor!(vector, Vector, &[f32]);
    accessor!(parts, Matrix, &[PackedMatrix]);
    accessor!(table, Table, &Table);
    accessor!(matrices, Matrices, &[PackedMatrix]);
    accessor!(choices, Choices, &Choices);
}
