//! Weights, stored in the order in which the matrix product reads them.
//!
//! A matrix `[n, k]` (outputs x inputs) is cut into *groups* of 32 outputs (two panels of 16), and a group
//! into *tiles* of 32 inputs. A group is contiguous and its tiles are in the order of k, so that a thread
//! that computes some columns reads one stream. The 1,024 elements of a tile are arranged by type:
//!
//! - f32 and f16: 32 rows, one per input, of 32 outputs.
//! - bf16: 16 rows, one per pair of inputs, of two panels of 16 outputs x 2 inputs. A panel is the B operand of an AMX product, whose rows
//!   are 128 bytes apart, and a row of it is what [`Lanes::load_bf16_pairs`] widens. The panels alternate so that the whole tile is read in
//!   the order of its addresses: with one panel behind the other a Zen 4 read half as fast (24 GB/s in place of 58).
//!
//! Both n and k are padded to multiples of 32 with zeros.
//!
//! Weights in [8 bits](crate::cpu::int8) are cut into the same groups of 32 outputs, and along k into blocks of 64 inputs.

use crate::checkpoint::Dtype;
use crate::cpu::int8::{Int8Row, Int8Weights};
use crate::cpu::memory::{Memory, OutOfMemory};
use crate::cpu::rows::InputType;
use crate::cpu::team::{Chunks, Team};
use crate::quantization::ActivationType;
use half::{bf16, f16};
use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};

/// How many outputs a group has.
pub const GROUP: usize = 32;
/// How many inputs a tile has.
pub const TILE: usize = 32;
/// How many elements a tile has.
pub(crate) const TILE_LEN: usize = GROUP * TILE;

/// A packed weight matrix `[n, k]`. No other copy of it is needed.
#[derive(Debug)]
pub struct PackedMatrix {
    n: usize,
    k: usize,
    weights: Weights,
}

/// The packed elements.
#[derive(Debug)]
pub(crate) enum Weights {
    F32(Memory<f32>),
    F16(Memory<u16>),
    Bf16(Memory<u16>),
    Int8 { weights: Int8Weights, activations: ActivationType },
}

impl PackedMatrix {
    /// Packs a matrix of n rows and k columns. `fill(r, row)` must write all k values of row `r` (0..n)
    /// into `row`. Any member of the team may call it, once per row. Values are rounded to `dtype` (to
    /// nearest, ties to even).
    ///
    /// To concatenate several matrices along n, `fill` chooses the matrix by `r`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the system does not grant the memory.
    pub fn pack(
        team: &Team,
        dtype: Dtype,
        n: usize,
        k: usize,
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<PackedMatrix, OutOfMemory> {
        let (groups, tiles) = (n.div_ceil(GROUP), k.div_ceil(TILE));
        let too_big = OutOfMemory { bytes: usize::MAX };
        let len = groups.checked_mul(tiles).and_then(|t| t.checked_mul(TILE_LEN)).ok_or(too_big)?;
        let weights = match dtype {
            Dtype::F32 => Weights::F32(Memory::zeroed(len)?),
            Dtype::F16 => Weights::F16(Memory::zeroed(len)?),
            Dtype::Bf16 => Weights::Bf16(Memory::zeroed(len)?),
        };
        let matrix = PackedMatrix { n, k, weights };
        let chunks = Chunks::new(groups, team.members(), 1);
        let isa = Isa::detect();
        team.run(&|_, _| {
            // Rows are 16 elements further apart than needed, so that the elements of a column do not all
            // fall into one set of the cache.
            let stride = tiles * TILE + 16;
            let mut rows = vec![0.0; GROUP * stride];
            let mut narrow = vec![0; if dtype == Dtype::F32 { 0 } else { rows.len() }];
            while let Some(run) = chunks.draw() {
                for group in run {
                    for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
                        match group * GROUP + i {
                            r if r < n => fill(r, &mut row[..k]),
                            _ => row.fill(0.0),
                        }
                    }
                    isa.run(Narrow { from: &rows, to: &mut narrow, dtype });
                    matrix.store_group(group, &rows, &narrow, stride);
                }
            }
        });
        Ok(matrix)
    }

    /// Packs a matrix of n rows and k columns in [8 bits](crate::cpu::int8). `fill(r, row)` must make `row` the row `r` (0..n), of k
    /// weights. Any member of the team may call it, once per row.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the system does not grant the memory.
    pub fn pack_int8(
        team: &Team,
        activations: ActivationType,
        n: usize,
        k: usize,
        fill: &(dyn Fn(usize, &mut Int8Row) + Sync),
    ) -> Result<PackedMatrix, OutOfMemory> {
        let weights = Int8Weights::pack(team, n, k, fill)?;
        Ok(PackedMatrix { n, k, weights: Weights::Int8 { weights, activations } })
    }

    /// Writes one group. Its 32 rows are in `rows` or, rounded to 16 bits, in `narrow`, and start `stride`
    /// values apart.
    fn store_group(&self, group: usize, rows: &[f32], narrow: &[u16], stride: usize) {
        let len = self.group_len();
        match &self.weights {
            Weights::F32(m) => {
                // SAFETY: groups are disjoint, and each is written by the one share that drew it.
                let to = unsafe { std::slice::from_raw_parts_mut(m.as_ptr().add(group * len), len) };
                transpose(to, rows, stride);
            }
            Weights::F16(m) => {
                // SAFETY: as above.
                let to = unsafe { std::slice::from_raw_parts_mut(m.as_ptr().add(group * len), len) };
                transpose(to, narrow, stride);
            }
            Weights::Bf16(m) => {
                // SAFETY: as above.
                let to = unsafe { std::slice::from_raw_parts_mut(m.as_ptr().add(group * len), len) };
                transpose_pairs(to, narrow, stride);
            }
            Weights::Int8 { .. } => debug_assert!(false, "8-bit weights are packed by themselves"),
        }
    }

    /// The number of outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// The number of inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// What the activations of its products are rounded to.
    #[must_use]
    pub fn inputs(&self) -> InputType {
        match self.weights {
            Weights::F32(_) => InputType::Float(Dtype::F32),
            Weights::F16(_) => InputType::Float(Dtype::F16),
            Weights::Bf16(_) => InputType::Float(Dtype::Bf16),
            Weights::Int8 { activations: ActivationType::Int8, .. } => InputType::Int8,
            Weights::Int8 { activations: ActivationType::F32, .. } => InputType::Float(Dtype::F32),
        }
    }

    /// How many bytes a product reads, padding included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.as_bytes().len()
    }

    /// The packed elements, padding included, as bytes in this machine's order.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let (at, bytes): (*const u8, usize) = match &self.weights {
            Weights::F32(m) => (m.as_ptr().cast(), size_of_val(&**m)),
            Weights::F16(m) | Weights::Bf16(m) => (m.as_ptr().cast(), size_of_val(&**m)),
            Weights::Int8 { weights, .. } => return weights.bytes(),
        };
        // SAFETY: the elements are plain numbers without padding, borrowed for as long as `self`.
        unsafe { std::slice::from_raw_parts(at, bytes) }
    }

    /// The number of groups of 32 outputs. The last one may be padded.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.n.div_ceil(GROUP)
    }

    /// The number of tiles of 32 inputs. The last one may be padded.
    #[must_use]
    pub fn tiles(&self) -> usize {
        self.k.div_ceil(TILE)
    }

    /// How many elements a group has.
    pub(crate) fn group_len(&self) -> usize {
        self.tiles() * TILE_LEN
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Writes the k values of row `r` as f32, with the values that the products use. It serves the
    /// embedding look-up in a tied matrix.
    ///
    /// # Panics
    ///
    /// Panics if `r` is not below n, or `row` is shorter than k.
    pub fn read_row(&self, r: usize, row: &mut [f32]) {
        assert!(r < self.n, "row {r} of a matrix of {} rows", self.n);
        if let Weights::Int8 { weights, .. } = &self.weights {
            return weights.read_row(r, &mut row[..self.k]);
        }
        let base = r / GROUP * self.group_len();
        let column = r % GROUP;
        for (i, x) in row[..self.k].iter_mut().enumerate() {
            let tile = base + i / TILE * TILE_LEN;
            let plain = tile + i % TILE * GROUP + column;
            *x = match &self.weights {
                Weights::F32(m) => m[plain],
                Weights::F16(m) => f16::from_bits(m[plain]).to_f32(),
                Weights::Bf16(m) => bf16::from_bits(m[tile + pair_offset(i % TILE, column)]).to_f32(),
                Weights::Int8 { .. } => return,
            };
        }
    }
}

/// The offset of (input, output) in a tile of pairs.
#[inline(always)]
fn pair_offset(input: usize, column: usize) -> usize {
    input / 2 * 2 * GROUP + column * 2 + input % 2
}

/// Transposes 32 rows, which start `stride` values apart, into tiles: each row of a tile holds one input.
fn transpose<T: Copy>(to: &mut [T], rows: &[T], stride: usize) {
    for (input, outputs) in to.chunks_exact_mut(GROUP).enumerate() {
        for (w, row) in outputs.iter_mut().zip(rows[input..].iter().step_by(stride)) {
            *w = *row;
        }
    }
}

/// Transposes 32 rows of bf16, which start `stride` values apart, into tiles: each row of a tile holds a pair of inputs.
fn transpose_pairs(to: &mut [u16], rows: &[u16], stride: usize) {
    for (pair, to) in to.chunks_exact_mut(2 * GROUP).enumerate() {
        for (w, row) in to.chunks_exact_mut(2).zip(rows[pair * 2..].chunks(stride)) {
            w.copy_from_slice(&row[..2]);
        }
    }
}

/// Rounds `from` to bf16 or f16 in `to`, in whole groups of 16.
struct Narrow<'a> {
    from: &'a [f32],
    to: &'a mut [u16],
    dtype: Dtype,
}

impl Kernel for Narrow<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (from, to) in self.from.chunks_exact(LANES).zip(self.to.chunks_exact_mut(LANES)) {
            // SAFETY: both have 16 elements, and the caller has enabled the features.
            unsafe {
                let v = L::load(from.as_ptr());
                if self.dtype == Dtype::Bf16 {
                    v.store_bf16(to.as_mut_ptr());
                } else {
                    v.store_f16(to.as_mut_ptr());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_matrix_reads_back_row_by_row_rounded_to_its_type() {
        let team = Team::new(2).unwrap();
        for (n, k) in [(1, 1), (16, 32), (33, 31), (70, 100), (0, 5)] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let value = |r: usize, i: usize| (r as f32 * 0.37 - i as f32 * 1.13).sin();
                let fill = |r: usize, row: &mut [f32]| {
                    assert_eq!(row.len(), k);
                    row.iter_mut().enumerate().for_each(|(i, x)| *x = value(r, i));
                };
                let matrix = PackedMatrix::pack(&team, dtype, n, k, &fill).unwrap();
                let mut row = vec![0.0; k];
                for r in 0..n {
                    matrix.read_row(r, &mut row);
                    for (i, &x) in row.iter().enumerate() {
                        let want = match dtype {
                            Dtype::F32 => value(r, i),
                            Dtype::F16 => f16::from_f32(value(r, i)).to_f32(),
                            Dtype::Bf16 => bf16::from_f32(value(r, i)).to_f32(),
                        };
                        assert_eq!(x, want, "{dtype:?} {n} x {k}: row {r}, input {i}");
                    }
                }
            }
        }
    }
}
