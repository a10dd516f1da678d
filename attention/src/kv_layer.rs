//! One layer's part of the KV cache: where the step's K and V are stored, and read from.

use crate::error::AttentionError;
use crate::isa::{Isa, Kernel};
use crate::kernel::element::{Bf16, Element, F16, F32};
use crate::kv_layout::{KvDtype, KvLayout};
use crate::lanes::{LANES, Lanes};
use crate::metadata::PAD_SLOT;
use crate::token_rows::TokenRows;
use pagedraft_block_manager::BlockId;

/// A view of one layer's part of every block: block b lies at `base + b * block_stride` bytes. If the
/// stride is greater than [`KvLayout::block_bytes`], the parts of other layers, or of other KV groups in
/// the same arena, lie in between.
///
/// It is a raw view that threads may copy freely. The block manager decides who may write which slot, and
/// each method says what it demands of its caller.
#[derive(Clone, Copy, Debug)]
pub struct KvLayer {
    base: *mut u8,
    block_stride: usize,
    num_blocks: u32,
    layout: KvLayout,
}

// SAFETY: the view owns nothing. The methods that dereference it are unsafe, and say what threads must
// observe.
unsafe impl Send for KvLayer {}
// SAFETY: as above.
unsafe impl Sync for KvLayer {}

impl KvLayer {
    /// A view of `num_blocks` blocks from `base` on.
    ///
    /// # Safety
    ///
    /// All of this holds for as long as the view or a copy of it is used: `base` is aligned to 4 bytes,
    /// initialised (zeroes will do) and valid for reads and writes of `layout.block_bytes()` at every
    /// multiple of `block_stride` (a multiple of 4) below `num_blocks * block_stride`, and it is accessed
    /// through such views only.
    #[must_use]
    pub unsafe fn new(base: *mut u8, block_stride: usize, num_blocks: u32, layout: KvLayout) -> KvLayer {
        KvLayer { base, block_stride, num_blocks, layout }
    }

    /// The layout of the elements in a block.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// How many blocks there are.
    #[must_use]
    pub fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    /// Where this layer's part of a block starts. The address is in bounds for ids below `num_blocks`.
    #[inline(always)]
    pub(crate) fn block(&self, id: BlockId) -> *mut u8 {
        self.base.wrapping_add(id.0 as usize * self.block_stride)
    }

    /// Stores `k` and `v` (already rotated by RoPE; `kv_heads * head_dim` values per token) at `slots`,
    /// rounded to nearest even in the element type. Slot -1 stores nothing. What is stored depends on the
    /// values alone, so threads may share the tokens of a step among them.
    ///
    /// # Errors
    ///
    /// [`AttentionError::NoSuchSlot`], [`AttentionError::SmallBuffer`], [`AttentionError::Isa`]; nothing is stored then.
    ///
    /// # Safety
    ///
    /// No other thread reads or writes these slots during the call.
    pub unsafe fn write(
        &self,
        isa: Isa,
        slots: &[i64],
        k: TokenRows<'_>,
        v: TokenRows<'_>,
    ) -> Result<(), AttentionError> {
        let width = self.layout.kv_heads() * self.layout.head_dim();
        k.check("k", slots.len(), width)?;
        v.check("v", slots.len(), width)?;
        let num_slots = u64::from(self.num_blocks) * u64::from(self.layout.block_size());
        let wrong = |&slot: &i64| slot != PAD_SLOT && u64::try_from(slot).map_or(true, |s| s >= num_slots);
        if let Some(token) = slots.iter().position(wrong) {
            return Err(AttentionError::NoSuchSlot { token, slot: slots[token], num_slots });
        }
        isa.require()?.run(Store { layer: self, slots, k, v });
        Ok(())
    }

    /// Copies one block onto another. This happens before the first write to a block that a forked sequence
    /// shares.
    ///
    /// # Errors
    ///
    /// [`AttentionError::NoSuchBlock`]; its `row` is 0.
    ///
    /// # Safety
    ///
    /// No other thread writes `source`, or accesses `target`, during the call.
    pub unsafe fn copy_block(&self, source: BlockId, target: BlockId) -> Result<(), AttentionError> {
        for BlockId(block) in [source, target] {
            if block >= self.num_blocks {
                return Err(AttentionError::NoSuchBlock { row: 0, block, num_blocks: self.num_blocks });
            }
        }
        // SAFETY: both blocks lie within the view, which is valid. If they are the same block they overlap
        // wholly, hence `copy`.
        unsafe {
            std::ptr::copy(self.block(source), self.block(target), self.layout.block_bytes());
        }
        Ok(())
    }

    /// Element `d` of a token's stored key, widened to f32. It is slow, and meant for references and tests.
    ///
    /// # Safety
    ///
    /// `slot`, `head` and `d` exist, and nobody writes the slot during the call.
    #[must_use]
    pub unsafe fn key(&self, slot: u64, head: usize, d: usize) -> f32 {
        let token = (slot % u64::from(self.layout.block_size())) as usize;
        // SAFETY: as the caller promises.
        unsafe { self.value_at(slot, self.layout.k_element(head, token, d)) }
    }

    /// Element `d` of a token's stored value vector, widened to f32. It is slow, and meant for references
    /// and tests.
    ///
    /// # Safety
    ///
    /// `slot`, `head` and `d` exist, and nobody writes the slot during the call.
    #[must_use]
    pub unsafe fn value(&self, slot: u64, head: usize, d: usize) -> f32 {
        let token = (slot % u64::from(self.layout.block_size())) as usize;
        // SAFETY: as the caller promises.
        unsafe { self.value_at(slot, self.layout.v_row(head, token) + d) }
    }

    /// A token's stored keys and values, `kv_heads * head_dim` of each, widened to f32.
    ///
    /// # Safety
    ///
    /// `slot` exists, both slices have so many elements, and nobody writes the slot during the call.
    pub unsafe fn read(&self, slot: u64, keys: &mut [f32], values: &mut [f32]) {
        // SAFETY: as the caller promises; the elements have the layout's type.
        unsafe {
            match self.layout.dtype() {
                KvDtype::F32 => self.read_as(slot, keys, values, |raw: f32| raw),
                KvDtype::F16 => {
                    self.read_as(slot, keys, values, |raw: u16| half::f16::from_bits(raw).to_f32());
                }
                KvDtype::Bf16 => {
                    self.read_as(slot, keys, values, |raw: u16| half::bf16::from_bits(raw).to_f32());
                }
            }
        }
    }

    /// # Safety
    ///
    /// That of [`read`](Self::read), and elements are of type `R`.
    unsafe fn read_as<R: Copy>(
        &self,
        slot: u64,
        keys: &mut [f32],
        values: &mut [f32],
        widen: impl Fn(R) -> f32,
    ) {
        let (dim, block_size) = (self.layout.head_dim(), u64::from(self.layout.block_size()));
        let (block, token) = (self.block(BlockId((slot / block_size) as u32)), (slot % block_size) as usize);
        let heads = keys.chunks_exact_mut(dim).zip(values.chunks_exact_mut(dim));
        for (head, (keys, values)) in heads.enumerate() {
            let (k, v) = (self.layout.k_element(head, token, 0), self.layout.v_row(head, token));
            for (d, (key, value)) in keys.iter_mut().zip(values).enumerate() {
                // SAFETY: both elements lie in the block, and blocks are aligned for their elements.
                unsafe {
                    *key = widen(*block.cast::<R>().add(k + d * LANES));
                    *value = widen(*block.cast::<R>().add(v + d));
                }
            }
        }
    }

    unsafe fn value_at(&self, slot: u64, element: usize) -> f32 {
        let block = self.block(BlockId((slot / u64::from(self.layout.block_size())) as u32));
        // SAFETY: the element lies in the block, and blocks are aligned for their elements.
        unsafe {
            match self.layout.dtype() {
                KvDtype::F32 => *block.cast::<f32>().add(element),
                KvDtype::F16 => half::f16::from_bits(*block.cast::<u16>().add(element)).to_f32(),
                KvDtype::Bf16 => half::bf16::from_bits(*block.cast::<u16>().add(element)).to_f32(),
            }
        }
    }
}

/// The arguments of [`KvLayer::write`].
struct Store<'a> {
    layer: &'a KvLayer,
    slots: &'a [i64],
    k: TokenRows<'a>,
    v: TokenRows<'a>,
}

impl Kernel for Store<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features; `write` has checked slots and rows.
        unsafe {
            match self.layer.layout.dtype() {
                KvDtype::F32 => self.store::<L, F32>(),
                KvDtype::F16 => self.store::<L, F16>(),
                KvDtype::Bf16 => self.store::<L, Bf16>(),
            }
        }
    }
}

impl Store<'_> {
    #[inline(always)]
    unsafe fn store<L: Lanes, E: Element>(&self) {
        let layout = &self.layer.layout;
        let (dim, block_size) = (layout.head_dim(), layout.block_size() as usize);
        for (token, &slot) in self.slots.iter().enumerate() {
            let Ok(slot) = usize::try_from(slot) else { continue };
            let block = self.layer.block(BlockId((slot / block_size) as u32)).cast::<E::Raw>();
            let index = slot % block_size;
            for head in 0..layout.kv_heads() {
                // SAFETY: rows hold `kv_heads * dim` values; the element offsets lie in the block.
                unsafe {
                    let k = self.k.row(token).add(head * dim);
                    let target = block.add(layout.k_element(head, index, 0));
                    for_sixteens::<L, E>(k, dim, |d, raw, n| {
                        for (i, &bits) in raw.iter().enumerate().take(n) {
                            *target.add((d + i) * LANES) = bits;
                        }
                    });
                    let v = self.v.row(token).add(head * dim);
                    let target = block.add(layout.v_row(head, index));
                    for_sixteens::<L, E>(v, dim, |d, raw, _| {
                        std::ptr::copy_nonoverlapping(raw.as_ptr(), target.add(d), LANES);
                    });
                }
            }
        }
    }
}

/// Rounds `len` values to the element type in groups of 16, the last one filled up with 0. Calls back with
/// each group, its start, and how many of its values are real.
#[inline(always)]
unsafe fn for_sixteens<L: Lanes, E: Element>(
    values: *const f32,
    len: usize,
    mut each: impl FnMut(usize, &[E::Raw; LANES], usize),
) {
    let mut start = 0;
    while start < len {
        let n = (len - start).min(LANES);
        let mut raw = [E::Raw::default(); LANES];
        // SAFETY: `n` values are there from `start` on; a partial group is read through a buffer.
        unsafe {
            if n == LANES {
                E::store(L::load(values.add(start)), raw.as_mut_ptr());
            } else {
                let mut rest = [0.0; LANES];
                std::ptr::copy_nonoverlapping(values.add(start), rest.as_mut_ptr(), n);
                E::store(L::load(rest.as_ptr()), raw.as_mut_ptr());
            }
        }
        each(start, &raw, n);
        start += LANES;
    }
}
