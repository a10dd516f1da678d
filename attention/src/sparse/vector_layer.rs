//! A part of the KV cache that holds one vector a token: a latent, or an indexer's key.

use super::fp8::scale_of;
use crate::error::AttentionError;
use crate::isa::{Isa, Kernel};
use crate::kernel::element::{Bf16, E4m3, Element, F16, F32};
use crate::kv_layout::KvDtype;
use crate::lanes::{LANES, Lanes};
use crate::metadata::PAD_SLOT;
use crate::token_rows::TokenRows;
use pagedraft_block_manager::BlockId;
use std::ops::Range;

/// How the values of a vector are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VectorDtype {
    /// Each by itself.
    Plain(KvDtype),
    /// In fp8 (e4m3), with one f32 scale behind the vector: see [`super::fp8::scale_of`].
    Fp8 {
        /// Whether the scale is a power of two.
        power_of_two: bool,
    },
}

/// The inside of one layer's part of a block: `[token][width, padded to 16]`, of fp8 with a scale behind each token's. Padding is
/// written as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorLayout {
    dtype: VectorDtype,
    block_size: u32,
    width: usize,
}

impl VectorLayout {
    /// Vectors of `width` values in blocks of 16, 32 or 64 tokens.
    ///
    /// # Errors
    ///
    /// [`AttentionError::BlockSize`], [`AttentionError::Shape`] (a width of 0).
    pub fn new(dtype: VectorDtype, block_size: u32, width: usize) -> Result<VectorLayout, AttentionError> {
        if !matches!(block_size, 16 | 32 | 64) {
            return Err(AttentionError::BlockSize { block_size });
        }
        if width == 0 {
            return Err(AttentionError::Shape { heads: 1, kv_heads: 1, head_dim: width });
        }
        Ok(VectorLayout { dtype, block_size, width })
    }

    /// How values are stored.
    #[must_use]
    pub fn dtype(&self) -> VectorDtype {
        self.dtype
    }

    /// How many tokens a block holds.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many values a vector has.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Elements from one token to the next: the width rounded up to 16.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.width.next_multiple_of(LANES)
    }

    /// How many bytes a token takes in one layer.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        match self.dtype {
            VectorDtype::Plain(dtype) => self.stride() * dtype.size(),
            VectorDtype::Fp8 { .. } => self.stride() + size_of::<f32>(),
        }
    }

    /// How many bytes a block takes in one layer.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.token_bytes() * self.block_size as usize
    }
}

/// A view of one layer's vectors in every block: block b lies at `base + b * block_stride` bytes, or, in
/// [frames](Self::in_frames), at `base + frames[b] * block_stride`.
///
/// It is a raw view, copied freely among threads; who may write which slot is the block manager's business.
#[derive(Clone, Copy, Debug)]
pub struct VectorLayer {
    base: *mut u8,
    block_stride: usize,
    num_blocks: u32,
    layout: VectorLayout,
    /// The frame of each block; null where block b lies in frame b.
    frames: *const u32,
}

// SAFETY: the view owns nothing; the methods that dereference it are unsafe, and demand what threads have to keep to.
unsafe impl Send for VectorLayer {}
// SAFETY: as above.
unsafe impl Sync for VectorLayer {}

impl VectorLayer {
    /// A view of `num_blocks` blocks from `base` on.
    ///
    /// # Safety
    ///
    /// For as long as the view or a copy is used: `base` is aligned to 4 bytes, initialised (zeroes will do) and valid for
    /// reads and writes of `layout.block_bytes()` at every multiple of `block_stride` (a multiple of 4) below `num_blocks *
    /// block_stride`, and is accessed through such views only.
    #[must_use]
    pub unsafe fn new(
        base: *mut u8,
        block_stride: usize,
        num_blocks: u32,
        layout: VectorLayout,
    ) -> VectorLayer {
        VectorLayer { base, block_stride, num_blocks, layout, frames: std::ptr::null() }
    }

    /// The same blocks in frames: block b lies in frame `frames[b]`. Blocks that are not there may share a frame, which is not to
    /// be read for its contents.
    ///
    /// # Safety
    ///
    /// For as long as the view or a copy is used: there are as many `frames` as blocks, which nobody changes meanwhile, and
    /// `base` is valid at the multiple of `block_stride` that each of them names, as [`new`](Self::new) has it for blocks.
    #[must_use]
    pub unsafe fn in_frames(self, frames: *const u32) -> VectorLayer {
        VectorLayer { frames, ..self }
    }

    /// The first byte of a block. The address is in bounds if the block exists.
    #[inline(always)]
    fn block(&self, block: usize) -> *mut u8 {
        let place = if self.frames.is_null() || block >= self.num_blocks as usize {
            block
        } else {
            // SAFETY: there is a frame for each block.
            unsafe { *self.frames.add(block) as usize }
        };
        self.base.wrapping_add(place * self.block_stride)
    }

    /// The inside of a block.
    #[must_use]
    pub fn layout(&self) -> &VectorLayout {
        &self.layout
    }

    /// How many blocks there are.
    #[must_use]
    pub fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    /// The first byte of the vector of index `index` in a sequence with this block table. The address is in bounds if the
    /// table names the block and the block exists.
    #[inline(always)]
    pub(crate) fn at(&self, table: &[BlockId], index: usize) -> *const u8 {
        // A shift, because a division takes longer than all the rest.
        let (size, shift) = (self.layout.block_size as usize, self.layout.block_size.trailing_zeros());
        let block = table.get(index >> shift).map_or(0, |block| block.0 as usize);
        let token = index & (size - 1);
        self.block(block).wrapping_add(token * self.layout.token_bytes()).cast_const()
    }

    /// Stores `rows` (`width` values a token) at `slots`, rounded to the element type, to nearest even, in fp8 divided by the
    /// scale before; slot -1 stores nothing.
    ///
    /// # Errors
    ///
    /// [`AttentionError::NoSuchSlot`], [`AttentionError::SmallBuffer`], [`AttentionError::Isa`]; nothing is stored then.
    ///
    /// # Safety
    ///
    /// No other thread reads these slots or writes them meanwhile.
    pub unsafe fn write(&self, isa: Isa, slots: &[i64], rows: TokenRows<'_>) -> Result<(), AttentionError> {
        rows.check("vectors", slots.len(), self.layout.width)?;
        let num_slots = u64::from(self.num_blocks) * u64::from(self.layout.block_size);
        let wrong = |&slot: &i64| slot != PAD_SLOT && u64::try_from(slot).map_or(true, |s| s >= num_slots);
        if let Some(token) = slots.iter().position(wrong) {
            return Err(AttentionError::NoSuchSlot { token, slot: slots[token], num_slots });
        }
        isa.require()?.run(Store { layer: self, slots, rows });
        Ok(())
    }

    /// One value of a token's vector as stored, widened, of fp8 without the scale; slow, for references and tests.
    ///
    /// # Safety
    ///
    /// `slot` and `d` exist; nobody writes the slot meanwhile.
    #[must_use]
    pub unsafe fn value(&self, slot: u64, d: usize) -> f32 {
        let size = u64::from(self.layout.block_size);
        let block = self.block((slot / size) as usize);
        let at = block.wrapping_add((slot % size) as usize * self.layout.token_bytes());
        // SAFETY: the element lies in the block, and blocks are aligned for their elements.
        unsafe {
            match self.layout.dtype {
                VectorDtype::Plain(KvDtype::F32) => *at.cast::<f32>().add(d),
                VectorDtype::Plain(KvDtype::F16) => half::f16::from_bits(*at.cast::<u16>().add(d)).to_f32(),
                VectorDtype::Plain(KvDtype::Bf16) => half::bf16::from_bits(*at.cast::<u16>().add(d)).to_f32(),
                VectorDtype::Fp8 { .. } => crate::lanes::e4m3(*at.add(d)),
            }
        }
    }

    /// The scale of a token's vector: 1 if it is not in fp8.
    ///
    /// # Safety
    ///
    /// `slot` exists; nobody writes it meanwhile.
    #[must_use]
    pub unsafe fn scale(&self, slot: u64) -> f32 {
        let size = u64::from(self.layout.block_size);
        let block = self.block((slot / size) as usize);
        let at = block.wrapping_add((slot % size) as usize * self.layout.token_bytes());
        // SAFETY: as the caller promises.
        unsafe { self.scale_at(at) }
    }

    /// The scale of the vector that is stored at `stored`: 1 if it is not in fp8.
    ///
    /// # Safety
    ///
    /// A vector of this layer is stored there.
    #[inline(always)]
    pub(crate) unsafe fn scale_at(&self, stored: *const u8) -> f32 {
        match self.layout.dtype {
            VectorDtype::Plain(_) => 1.0,
            // SAFETY: the scale lies behind the values.
            VectorDtype::Fp8 { .. } => unsafe {
                stored.add(self.layout.stride()).cast::<f32>().read_unaligned()
            },
        }
    }
}

/// The arguments of [`VectorLayer::write`].
struct Store<'a> {
    layer: &'a VectorLayer,
    slots: &'a [i64],
    rows: TokenRows<'a>,
}

impl Kernel for Store<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features; `write` has checked slots and rows.
        unsafe {
            match self.layer.layout.dtype {
                VectorDtype::Plain(KvDtype::F32) => self.store::<L, F32>(),
                VectorDtype::Plain(KvDtype::F16) => self.store::<L, F16>(),
                VectorDtype::Plain(KvDtype::Bf16) => self.store::<L, Bf16>(),
                VectorDtype::Fp8 { .. } => self.store::<L, E4m3>(),
            }
        }
    }
}

impl Store<'_> {
    #[inline(always)]
    unsafe fn store<L: Lanes, E: Element>(&self) {
        let layout = &self.layer.layout;
        let size = layout.block_size as usize;
        for (token, &slot) in self.slots.iter().enumerate() {
            let Ok(slot) = usize::try_from(slot) else { continue };
            let block = self.layer.block(slot / size);
            let to = block.wrapping_add(slot % size * layout.token_bytes()).cast::<E::Raw>();
            let from = self.rows.row(token);
            let scale = match layout.dtype {
                VectorDtype::Plain(_) => None,
                VectorDtype::Fp8 { power_of_two } => {
                    // SAFETY: the row has `width` values, and the slot has room for its scale.
                    let scale = unsafe {
                        let scale = scale_of(std::slice::from_raw_parts(from, layout.width), power_of_two);
                        to.cast::<u8>().add(layout.stride()).cast::<f32>().write_unaligned(scale);
                        scale
                    };
                    Some(scale)
                }
            };
            let mut d = 0;
            while d < layout.width {
                let n = (layout.width - d).min(LANES);
                // SAFETY: the row has `width` values; the slot has room for the width rounded up to 16.
                unsafe {
                    let mut values = if n == LANES {
                        L::load(from.add(d))
                    } else {
                        let mut rest = [0.0; LANES];
                        std::ptr::copy_nonoverlapping(from.add(d), rest.as_mut_ptr(), n);
                        L::load(rest.as_ptr())
                    };
                    if let Some(scale) = scale {
                        values = values.div(L::splat(scale));
                    }
                    E::store(values, to.add(d));
                }
                d += LANES;
            }
        }
    }
}

/// The f32 values of a stored vector: itself if it is stored as f32, otherwise some groups of 16 values are widened into
/// `room`, each to its place.
///
/// # Safety
///
/// `stored` has these groups, and `room` has room for them; the caller has the features of `L`.
#[inline(always)]
pub(crate) unsafe fn widened<L: Lanes, E: Element>(
    stored: *const u8,
    groups: Range<usize>,
    room: *mut f32,
) -> *const f32 {
    if size_of::<E::Raw>() == size_of::<f32>() {
        return stored.cast();
    }
    let stored = stored.cast::<E::Raw>();
    for group in groups {
        // SAFETY: as the caller promises.
        unsafe { E::load::<L>(stored.add(group * LANES)).store(room.add(group * LANES)) };
    }
    room.cast_const()
}
