//! Activations in the form that the matrix product reads.
//!
//! Values are rounded to the type of the weights on every instruction set. For AMX they become bf16
//! tiles of 16 rows x 32 inputs, a row tile's tiles in the order of k. For the others they become f32
//! again, in blocks of a few rows, and within a block by input, then row.

use crate::checkpoint::Dtype;
use crate::cpu::memory::{Memory, OutOfMemory};
use crate::cpu::panel::TILE;
use crate::cpu::team::{Chunks, Team};
use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};

/// Rows of an AMX tile.
pub(crate) const TILE_ROWS: usize = 16;

/// Activations `[m, k]`, packed for products with weights of one type; its memory is reused.
#[derive(Debug)]
pub struct PackedRows {
    m: usize,
    k: usize,
    dtype: Dtype,
    form: Form,
    tiles: Memory<u16>,
    values: Memory<f32>,
}

/// How the rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// bf16 tiles of 16 rows x 32 inputs.
    Tiles,
    /// f32 in blocks of so many rows (the last may have fewer), `[k padded][rows of the block]`.
    Blocks {
        /// Rows of a full block.
        rows: usize,
    },
}

impl Form {
    /// How `m` rows lie for products on `isa` with weights of `dtype`.
    fn of(isa: Isa, dtype: Dtype, m: usize) -> Form {
        let most = match isa {
            Isa::Amx if dtype == Dtype::Bf16 => return Form::Tiles,
            Isa::Amx | Isa::Avx512 => 12,
            // Pairs are widened to two registers' worth more, and there are but 16.
            Isa::Avx2 if dtype == Dtype::Bf16 => 4,
            Isa::Avx2 | Isa::Neon | Isa::Portable => 6,
        };
        // Even blocks: 13 rows are 7 + 6, not 12 + 1.
        Form::Blocks { rows: m.div_ceil(m.div_ceil(most).max(1)).max(1) }
    }
}

impl PackedRows {
    /// Room for `m` rows of `k` values, packed for any type and instruction set.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn with_room_for(m: usize, k: usize) -> Result<PackedRows, OutOfMemory> {
        let mut rows = PackedRows {
            m: 0,
            k: 0,
            dtype: Dtype::F32,
            form: Form::Blocks { rows: 1 },
            tiles: Memory::zeroed(0)?,
            values: Memory::zeroed(0)?,
        };
        rows.tiles = Memory::zeroed(m.next_multiple_of(TILE_ROWS) * k.next_multiple_of(TILE))?;
        rows.values = Memory::zeroed(m * k.next_multiple_of(TILE))?;
        Ok(rows)
    }

    /// Makes room for `m` rows of `k` values, packed for products with weights of `dtype` on `isa`, and has the system back it
    /// now. What was packed is gone.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn reserve(&mut self, isa: Isa, dtype: Dtype, m: usize, k: usize) -> Result<(), OutOfMemory> {
        (self.m, self.k) = (0, 0);
        self.grow(Form::of(isa, dtype, m), m, k)?;
        self.tiles.touch();
        self.values.touch();
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
            _ => {}
        }
        Ok(())
    }

    /// Packs `m` rows of `k` values, of which row `r` begins at `x[r * stride]`, for products with
    /// weights of `dtype` on `isa`. Grows where it must.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] while growing.
    ///
    /// # Panics
    ///
    /// Where `x` is shorter than the rows, or `stride` than k.
    #[allow(clippy::too_many_arguments)]
    pub fn pack(
        &mut self,
        team: &Team,
        isa: Isa,
        dtype: Dtype,
        x: &[f32],
        m: usize,
        k: usize,
        stride: usize,
    ) -> Result<(), OutOfMemory> {
        let packing = self.begin(isa, dtype, x, m, k, stride)?;
        // A few rows are packed sooner than a thread is woken.
        if m * k < 16_384 {
            packing.work();
        } else {
            team.run(&|_, _| packing.work());
        }
        Ok(())
    }

    /// The same as a piece of work that the shares of a job join in: all of them call
    /// [`Packing::work`], and when all have returned the rows are packed.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] while growing.
    ///
    /// # Panics
    ///
    /// Where `x` is shorter than the rows, or `stride` than k.
    pub fn begin<'a>(
        &'a mut self,
        isa: Isa,
        dtype: Dtype,
        x: &'a [f32],
        m: usize,
        k: usize,
        stride: usize,
    ) -> Result<Packing<'a>, OutOfMemory> {
        assert!(m == 0 || (stride >= k && x.len() >= (m - 1) * stride + k), "rows out of bounds");
        let form = Form::of(isa, dtype, m);
        self.grow(form, m, k)?;
        (self.m, self.k, self.dtype, self.form) = (m, k, dtype, form);
        let chunks = Chunks::new(m.div_ceil(self.block_rows()), 8, 1);
        Ok(Packing { rows: self, isa, x, stride, chunks })
    }

    /// Rows.
    #[must_use]
    pub fn m(&self) -> usize {
        self.m
    }

    /// Values of a row.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The type of the weights they are packed for.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Rows of a full row tile or block.
    pub(crate) fn block_rows(&self) -> usize {
        match self.form {
            Form::Tiles => TILE_ROWS,
            Form::Blocks { rows } => rows,
        }
    }

    /// First element of row tile `i`; tiles of 512 elements follow each other in the order of k.
    pub(crate) fn row_tile(&self, i: usize) -> *mut u16 {
        let len = TILE_ROWS * self.k.next_multiple_of(TILE);
        assert!((i + 1) * len <= self.tiles.len());
        // SAFETY: inside the buffer, as just checked.
        unsafe { self.tiles.as_ptr().add(i * len) }
    }

    /// First element of row block `i`, `[k padded][rows of the block]`, and its number of rows.
    pub(crate) fn row_block(&self, i: usize) -> (*mut f32, usize) {
        let padded = self.k.next_multiple_of(TILE);
        let first = i * self.block_rows();
        let rows = self.block_rows().min(self.m - first);
        assert!((first + rows) * padded <= self.values.len());
        // SAFETY: inside the buffer, as just checked.
        (unsafe { self.values.as_ptr().add(first * padded) }, rows)
    }
}

/// Rows on the way to being packed.
#[derive(Debug)]
pub struct Packing<'a> {
    rows: &'a PackedRows,
    isa: Isa,
    x: &'a [f32],
    stride: usize,
    chunks: Chunks,
}

impl Packing<'_> {
    /// Does a share of it.
    pub fn work(&self) {
        while let Some(run) = self.chunks.draw() {
            for block in run {
                self.isa.run(PackBlock { packing: self, block });
            }
        }
    }
}

/// One row tile or row block.
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
            for at in (0..padded).step_by(LANES) {
                let left = k.saturating_sub(at).min(LANES);
                let mut padding = [0.0; LANES];
                let from = if left == LANES {
                    row[at..].as_ptr()
                } else {
                    padding[..left].copy_from_slice(&row[at.min(k)..][..left]);
                    padding.as_ptr()
                };
                // SAFETY: `from` has 16 values; `begin` made room for all blocks, each of which is
                // written by the one share that drew it; the caller has the features.
                unsafe {
                    let v = L::load(from);
                    match rows.form {
                        Form::Tiles => {
                            let tile = rows.row_tile(block).add(at / TILE * 512);
                            v.store_bf16(tile.add(i * TILE + at % TILE));
                        }
                        Form::Blocks { .. } => {
                            let mut bits = [0u16; LANES];
                            let v = match rows.dtype {
                                Dtype::F32 => v,
                                Dtype::F16 => {
                                    v.store_f16(bits.as_mut_ptr());
                                    L::load_f16(bits.as_ptr())
                                }
                                Dtype::Bf16 => {
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
            // The other rows of the last tile keep what they held; a product with a full tile
            // would compute with it, so they are cleared.
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
