//! Activations in the form that the matrix product reads.
//!
//! On every instruction set, values are rounded to the type of the weights. For weights in 8 bits they become
//! [integers](crate::cpu::int8). For AMX they become bf16 tiles of 16 rows x 32 inputs; the tiles of the same 16 rows follow each other in the order of k. For the other
//! instruction sets they are widened back to f32 and stored in blocks of a few rows. A block is ordered by
//! input first, and by row within an input.

use crate::checkpoint::Dtype;
use crate::cpu::int8::{Int8Rows, IntegerUnit};
use crate::cpu::memory::{Memory, OutOfMemory};
use crate::cpu::panel::TILE;
use crate::cpu::team::{Chunks, Team};
use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};

/// How many rows an AMX tile has.
pub(crate) const TILE_ROWS: usize = 16;

/// What the activations of a product are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    /// To a floating-point type.
    Float(Dtype),
    /// To 8-bit integers with a scale for each block of inputs; see [`int8`](crate::cpu::int8).
    Int8,
}

impl From<Dtype> for InputType {
    fn from(dtype: Dtype) -> InputType {
        InputType::Float(dtype)
    }
}

/// Activations `[m, k]`, packed for products with weights of one type. The memory is reused.
#[derive(Debug)]
pub struct PackedRows {
    m: usize,
    k: usize,
    inputs: InputType,
    form: Form,
    tiles: Memory<u16>,
    values: Memory<f32>,
    int8: Int8Rows,
}

/// How rows are arranged in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// bf16 tiles of 16 rows x 32 inputs.
    Tiles,
    /// f32 in blocks of this many rows (the last block may have fewer), as `[k padded][rows of the block]`.
    Blocks {
        /// How many rows a full block has.
        rows: usize,
    },
    /// 8-bit integers in blocks of this many rows.
    Int8 {
        /// How many rows a full block has.
        rows: usize,
    },
}

impl Form {
    /// How `m` rows are arranged for products on `isa` that round them to `inputs`.
    fn of(isa: Isa, inputs: InputType, m: usize) -> Form {
        let InputType::Float(dtype) = inputs else {
            return Form::of_unit(IntegerUnit::of(isa), m);
        };
        let most = match isa {
            Isa::Amx if dtype == Dtype::Bf16 => return Form::Tiles,
            Isa::Amx | Isa::Avx512 => 12,
            // Widening pairs takes twice as many registers for weights, and AVX2 has only 16.
            Isa::Avx2 if dtype == Dtype::Bf16 => 4,
            Isa::Avx2 | Isa::Neon | Isa::Portable => 6,
        };
        Form::Blocks { rows: block_of(m, most) }
    }

    /// How `m` rows are arranged for 8-bit products on `unit`.
    fn of_unit(unit: IntegerUnit, m: usize) -> Form {
        Form::Int8 { rows: block_of(m, unit.most_rows()) }
    }
}

/// How many rows a block has if `m` rows are cut into blocks of at most `most`. They are of equal size: with a limit of 12, 13 rows are
/// 7 + 6, not 12 + 1.
fn block_of(m: usize, most: usize) -> usize {
    m.div_ceil(m.div_ceil(most).max(1)).max(1)
}

impl PackedRows {
    /// Room for `m` rows of `k` values, packed for any type and instruction set.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the system does not grant the memory.
    pub fn with_room_for(m: usize, k: usize) -> Result<PackedRows, OutOfMemory> {
        let mut rows = PackedRows {
            m: 0,
            k: 0,
            inputs: InputType::Float(Dtype::F32),
            form: Form::Blocks { rows: 1 },
            tiles: Memory::zeroed(0)?,
            values: Memory::zeroed(0)?,
            int8: Int8Rows::empty()?,
        };
        rows.tiles = Memory::zeroed(m.next_multiple_of(TILE_ROWS) * k.next_multiple_of(TILE))?;
        rows.values = Memory::zeroed(m * k.next_multiple_of(TILE))?;
        rows.int8.grow(m, k)?;
        Ok(rows)
    }

    /// Makes room for `m` rows of `k` values, packed for products on `isa` that round them to `inputs`, and
    /// makes the system back it with physical memory now. What was packed before is lost.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the system does not grant the memory.
    pub fn reserve(
        &mut self,
        isa: Isa,
        inputs: impl Into<InputType>,
        m: usize,
        k: usize,
    ) -> Result<(), OutOfMemory> {
        (self.m, self.k) = (0, 0);
        self.grow(Form::of(isa, inputs.into(), m), m, k)?;
        self.tiles.touch();
        self.values.touch();
        self.int8.touch();
        Ok(())
    }

    fn grow(&mut self, form: Form, m: usize, k: usize) -> Result<(), OutOfMemory> {
        let padded = k.next_multiple_of(TILE);
        match form {
            Form::Tiles if self.tiles.len() < m.next_multiple_of(TILE_ROWS) * padded => {
                self.tiles = Memory::zeroed(m.next_multiple_of(TILE_ROWS) * padded)?;
            }
            Form::Blocks { .. } if self.values.len() < m * padded => {
                self.values = Memory::zeroed(m * padded)?;
            }
            Form::Int8 { .. } => self.int8.grow(m, k)?,
            _ => {}
        }
        Ok(())
    }

    /// Packs `m` rows of `k` values, of which row `r` begins at `x[r * stride]`, for products on `isa` that
    /// round them to `inputs`. The memory grows if it has to.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the memory cannot grow.
    ///
    /// # Panics
    ///
    /// Panics if `x` is shorter than the rows, or `stride` is less than k.
    #[allow(clippy::too_many_arguments)]
    pub fn pack(
        &mut self,
        team: &Team,
        isa: Isa,
        inputs: impl Into<InputType>,
        x: &[f32],
        m: usize,
        k: usize,
        stride: usize,
    ) -> Result<(), OutOfMemory> {
        let packing = self.begin(isa, inputs, x, m, k, stride)?;
        // Packing a few rows takes less time than waking a thread.
        if m * k < 16_384 {
            packing.work();
        } else {
            team.run(&|_, _| packing.work());
        }
        Ok(())
    }

    /// Does what [`pack`](Self::pack) does, as work that the shares of a job do together: each of them
    /// calls [`Packing::work`], and when all have returned the rows are packed.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the memory cannot grow.
    ///
    /// # Panics
    ///
    /// Panics if `x` is shorter than the rows, or `stride` is less than k.
    pub fn begin<'a>(
        &'a mut self,
        isa: Isa,
        inputs: impl Into<InputType>,
        x: &'a [f32],
        m: usize,
        k: usize,
        stride: usize,
    ) -> Result<Packing<'a>, OutOfMemory> {
        let inputs = inputs.into();
        self.int8.set_unit(IntegerUnit::of(isa));
        self.begin_as(isa, inputs, Form::of(isa, inputs, m), (x, m, k, stride))
    }

    /// [`begin`](Self::begin) for 8-bit products on a unit that need not be the instruction set's best.
    #[cfg(test)]
    pub(crate) fn begin_on<'a>(
        &'a mut self,
        unit: IntegerUnit,
        x: &'a [f32],
        m: usize,
        k: usize,
    ) -> Result<Packing<'a>, OutOfMemory> {
        assert!(unit.available(), "this machine lacks {unit:?}");
        self.int8.set_unit(unit);
        self.begin_as(Isa::detect(), InputType::Int8, Form::of_unit(unit, m), (x, m, k, k))
    }

    fn begin_as<'a>(
        &'a mut self,
        isa: Isa,
        inputs: InputType,
        form: Form,
        (x, m, k, stride): (&'a [f32], usize, usize, usize),
    ) -> Result<Packing<'a>, OutOfMemory> {
        assert!(m == 0 || (stride >= k && x.len() >= (m - 1) * stride + k), "rows out of bounds");
        self.grow(form, m, k)?;
        (self.m, self.k, self.inputs, self.form) = (m, k, inputs, form);
        let chunks = Chunks::new(m.div_ceil(self.block_rows()), 8, 1);
        Ok(Packing { rows: self, isa, x, stride, chunks })
    }

    /// The number of rows.
    #[must_use]
    pub fn m(&self) -> usize {
        self.m
    }

    /// The number of values in a row.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// What the rows are rounded to.
    #[must_use]
    pub fn inputs(&self) -> InputType {
        self.inputs
    }

    /// The rows as 8-bit integers, if they are packed so.
    pub(crate) fn int8(&self) -> &Int8Rows {
        &self.int8
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// How many rows a full row tile or row block has.
    pub(crate) fn block_rows(&self) -> usize {
        match self.form {
            Form::Tiles => TILE_ROWS,
            Form::Blocks { rows } | Form::Int8 { rows } => rows,
        }
    }

    /// The first element of row tile `i`. Its tiles of 512 elements follow each other in the order of k.
    pub(crate) fn row_tile(&self, i: usize) -> *mut u16 {
        let len = TILE_ROWS * self.k.next_multiple_of(TILE);
        assert!((i + 1) * len <= self.tiles.len());
        // SAFETY: the assertion has checked that it lies inside the buffer.
        unsafe { self.tiles.as_ptr().add(i * len) }
    }

    /// The first element of row block `i`, which is `[k padded][rows of the block]`, and the number of its
    /// rows.
    pub(crate) fn row_block(&self, i: usize) -> (*mut f32, usize) {
        let padded = self.k.next_multiple_of(TILE);
        let first = i * self.block_rows();
        let rows = self.block_rows().min(self.m - first);
        assert!((first + rows) * padded <= self.values.len());
        // SAFETY: the assertion has checked that it lies inside the buffer.
        (unsafe { self.values.as_ptr().add(first * padded) }, rows)
    }
}

/// Rows that the shares of a job are packing.
#[derive(Debug)]
pub struct Packing<'a> {
    rows: &'a PackedRows,
    isa: Isa,
    x: &'a [f32],
    stride: usize,
    chunks: Chunks,
}

impl Packing<'_> {
    /// Does one share of the packing.
    pub fn work(&self) {
        while let Some(run) = self.chunks.draw() {
            for block in run {
                self.isa.run(PackBlock { packing: self, block });
            }
        }
    }
}

/// The work of packing one row tile or row block.
struct PackBlock<'a> {
    packing: &'a Packing<'a>,
    block: usize,
}

impl Kernel for PackBlock<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let PackBlock { packing: Packing { rows, x, stride, .. }, block } = self;
        let (k, padded) = (rows.k, rows.k.next_multiple_of(TILE));
        let first = block * rows.block_rows();
        let count = rows.block_rows().min(rows.m - first);
        for i in 0..count {
            let row = &x[(first + i) * stride..][..k];
            if let Form::Int8 { .. } = rows.form {
                // SAFETY: only the share that drew the block packs it.
                unsafe { rows.int8.pack_row(row, (first, count), i) };
                continue;
            }
            for at in (0..padded).step_by(LANES) {
                let left = k.saturating_sub(at).min(LANES);
                let mut padding = [0.0; LANES];
                let from = if left == LANES {
                    row[at..].as_ptr()
                } else {
                    padding[..left].copy_from_slice(&row[at.min(k)..][..left]);
                    padding.as_ptr()
                };
                // SAFETY: `from` has 16 values. `begin` made room for all blocks, and only the share that
                // drew a block writes it. The caller has enabled the features.
                unsafe {
                    let v = L::load(from);
                    match rows.form {
                        Form::Tiles => {
                            let tile = rows.row_tile(block).add(at / TILE * 512);
                            v.store_bf16(tile.add(i * TILE + at % TILE));
                        }
                        Form::Blocks { .. } | Form::Int8 { .. } => {
                            let mut bits = [0u16; LANES];
                            let v = match rows.inputs {
                                InputType::Float(Dtype::F32) | InputType::Int8 => v,
                                InputType::Float(Dtype::F16) => {
                                    v.store_f16(bits.as_mut_ptr());
                                    L::load_f16(bits.as_ptr())
                                }
                                InputType::Float(Dtype::Bf16) => {
                                    v.store_bf16(bits.as_mut_ptr());
                                    L::load_bf16(bits.as_ptr())
                                }
                            };
                            let to = rows.row_block(block).0;
                            if count == 1 {
                                v.store(to.add(at));
                                continue;
                            }
                            for (j, value) in v.to_array().into_iter().enumerate() {
                                to.add((at + j) * count + i).write(value);
                            }
                        }
                    }
                }
            }
        }
        if rows.form == Form::Tiles {
            // A product with a full tile computes with the unused rows of the last tile too, so they are
            // cleared of what they held before.
            for i in count..TILE_ROWS {
                for tile in 0..padded / TILE {
                    // SAFETY: as above.
                    unsafe {
                        let to = rows.row_tile(block).add(tile * 512 + i * TILE);
                        to.write_bytes(0, TILE);
                    }
                }
            }
        }
    }
}
