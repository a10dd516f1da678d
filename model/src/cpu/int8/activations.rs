//! Activations in 8 bits.

use super::quant_row::rounded;
use super::{BLOCK, IntegerUnit, STEP, STEPS};
use crate::cpu::memory::{Memory, OutOfMemory};

/// The least magnitude of a block's greatest value that is told from 0.
const LEAST: f32 = f32::from_bits((127 - 100) << 23);

/// Rows of activations in 8 bits, in the order in which a product reads them. They are cut into *row blocks*. For each block of 64 inputs, a
/// row block has the integers, 16 steps x its rows x 4 inputs, for each row a scale, and the sums of its integers over each half of the
/// block, 2 x its rows.
#[derive(Debug)]
pub(crate) struct Int8Rows {
    unit: IntegerUnit,
    quants: Memory<u32>,
    scales: Memory<f32>,
    sums: Memory<u32>,
}

/// Where the parts of a row block begin.
#[derive(Clone, Copy)]
pub(super) struct RowBlock {
    pub quants: *mut u32,
    pub scales: *mut f32,
    pub sums: *mut u32,
    /// How many rows it has.
    pub rows: usize,
}

impl RowBlock {
    /// The same, from block `block` of the inputs on.
    #[inline(always)]
    pub fn past_blocks(self, block: usize) -> RowBlock {
        let at = block * self.rows;
        RowBlock {
            quants: self.quants.wrapping_add(at * STEPS),
            scales: self.scales.wrapping_add(at),
            sums: self.sums.wrapping_add(2 * at),
            rows: self.rows,
        }
    }
}

impl Int8Rows {
    pub fn empty() -> Result<Int8Rows, OutOfMemory> {
        Ok(Int8Rows {
            unit: IntegerUnit::Portable,
            quants: Memory::zeroed(0)?,
            scales: Memory::zeroed(0)?,
            sums: Memory::zeroed(0)?,
        })
    }

    /// Makes room for `m` rows of `k` values.
    pub fn grow(&mut self, m: usize, k: usize) -> Result<(), OutOfMemory> {
        let parts = m * k.div_ceil(BLOCK);
        if self.scales.len() < parts {
            self.quants = Memory::zeroed(parts * STEPS)?;
            self.scales = Memory::zeroed(parts)?;
            self.sums = Memory::zeroed(2 * parts)?;
        }
        Ok(())
    }

    /// Has the system back the memory now.
    pub fn touch(&mut self) {
        self.quants.touch();
        self.scales.touch();
        self.sums.touch();
    }

    /// The instructions that the rows are packed for.
    pub fn unit(&self) -> IntegerUnit {
        self.unit
    }

    pub fn set_unit(&mut self, unit: IntegerUnit) {
        self.unit = unit;
    }

    /// The row block that begins at row `first` and has `rows` rows of `k` values.
    pub(super) fn row_block(&self, first: usize, rows: usize, k: usize) -> RowBlock {
        let blocks = k.div_ceil(BLOCK);
        assert!((first + rows) * blocks <= self.scales.len(), "rows beyond the buffer");
        let at = first * blocks;
        // SAFETY: the assertion has checked that it lies inside the buffers.
        unsafe {
            RowBlock {
                quants: self.quants.as_ptr().add(at * STEPS),
                scales: self.scales.as_ptr().add(at),
                sums: self.sums.as_ptr().add(2 * at),
                rows,
            }
        }
    }

    /// Packs a row: the `i`-th of the row block that begins at row `first` and has `rows` rows.
    ///
    /// # Safety
    ///
    /// Nobody else reads or writes that row of the row block.
    #[inline(always)]
    pub unsafe fn pack_row(&self, values: &[f32], (first, rows): (usize, usize), i: usize) {
        let to = self.row_block(first, rows, values.len());
        for (block, values) in values.chunks(BLOCK).enumerate() {
            let mut all = [0.0; BLOCK];
            all[..values.len()].copy_from_slice(values);
            let mut bytes = [0; BLOCK];
            let scale = quantise(&all, &mut bytes);
            let to = to.past_blocks(block);
            // SAFETY: `row_block` has checked that the row block lies inside the buffers; row `i` of it is the caller's.
            unsafe {
                to.scales.add(i).write(scale);
                for (half, bytes) in bytes.chunks_exact(BLOCK / 2).enumerate() {
                    let sum: i32 = bytes.iter().map(|&byte| i32::from(byte as i8)).sum();
                    to.sums.add(half * rows + i).write(sum as u32);
                }
                for (step, four) in bytes.as_chunks::<STEP>().0.iter().enumerate() {
                    to.quants.add(step * rows + i).write(u32::from_le_bytes(*four));
                }
            }
        }
    }
}

/// Rounds a block of activations by the [rule](super). Returns its scale.
#[inline(always)]
fn quantise(values: &[f32; BLOCK], bytes: &mut [u8; BLOCK]) -> f32 {
    // The bits of magnitudes are ordered as the magnitudes are, with infinity and NaN above all others.
    let most = values.iter().fold(0u32, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    let most = f32::from_bits(most);
    if !most.is_finite() {
        bytes.fill(0);
        return f32::NAN;
    }
    if most < LEAST {
        bytes.fill(0);
        return 0.0;
    }
    let inverse = 127.0 / most;
    for (byte, x) in bytes.iter_mut().zip(values) {
        *byte = rounded(x * inverse) as u8;
    }
    most / 127.0
}
