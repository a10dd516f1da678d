//! The KV groups of a model on the CPU: where their parts and layers lie in the arena.

use std::sync::Arc;

use pagedraft_attention::sparse::{VectorDtype, VectorLayer, VectorLayout};
use pagedraft_attention::{KvDtype, KvLayer, KvLayout};
use pagedraft_block_manager::{BlockCopy, GroupId, KvGroup, LayerSet, PartKind};
use parking_lot::Mutex;

use crate::checkpoint::Dtype;
use crate::cpu::arena::KvArena;
use crate::error::ModelError;
use crate::kv::{KvRef, PartShape};
use crate::tiers::{TierOptions, Tiers};

/// Every block begins at a multiple of this many bytes, the size of an f32.
const ALIGNMENT: usize = 4;

/// The KV groups that one device works on.
pub(super) struct CpuKv {
    arena: Arc<KvArena>,
    /// Which groups of the arena the model's groups 0, 1, .. are. A single one may stand for all of them, which then lie behind each other
    /// in its blocks and have one block table.
    ids: Vec<GroupId>,
    groups: Vec<Group>,
    /// What the latents are to be kept in, until the groups are known.
    tier_options: Option<Mutex<TierOptions>>,
    /// The latents, if they lie in tiers.
    tiers: Option<Mutex<Tiers>>,
}

/// A group of the model. Its block b begins at byte `b * stride` of the arena.
struct Group {
    stride: usize,
    num_blocks: u32,
    block_size: u32,
    parts: Vec<Part>,
}

/// A part of a group. Its layers follow each other in a block, from byte `offset` on.
struct Part {
    layers: LayerSet,
    offset: usize,
    layer_bytes: usize,
    content: Content,
    /// Whether it lies in tiers, and not in the arena.
    tiered: bool,
}

/// What one layer of a part holds in a block.
#[derive(Clone, Copy)]
enum Content {
    /// Keys and values, which `heads` query heads read.
    Heads { layout: KvLayout, heads: usize },
    /// One vector a token.
    Vectors { layout: VectorLayout },
    /// A row of `width` f32 values per token.
    Rows { width: usize },
}

impl Content {
    fn new(shape: PartShape, dtype: Dtype, block_size: u32) -> Result<Self, ModelError> {
        Ok(match shape {
            PartShape::Heads { heads, kv_heads, head_dim } => {
                Self::Heads { layout: layout(dtype, block_size, kv_heads, head_dim)?, heads }
            }
            PartShape::Vectors { width } => {
                let dtype = VectorDtype::Plain(kv_dtype(dtype));
                Self::Vectors { layout: VectorLayout::new(dtype, block_size, width)? }
            }
            PartShape::Fp8Vectors { width, power_of_two } => {
                let dtype = VectorDtype::Fp8 { power_of_two };
                Self::Vectors { layout: VectorLayout::new(dtype, block_size, width)? }
            }
            PartShape::Rows { width } => Self::Rows { width },
        })
    }

    /// How many bytes a token takes in one layer.
    fn token_bytes(self) -> usize {
        match self {
            Self::Heads { layout, .. } => layout.token_bytes(),
            Self::Vectors { layout } => layout.token_bytes(),
            Self::Rows { width } => width * size_of::<f32>(),
        }
    }
}

/// Where one layer's keys and values lie in a block.
pub(super) fn layout(
    dtype: Dtype,
    block_size: u32,
    kv_heads: usize,
    head_dim: usize,
) -> Result<KvLayout, ModelError> {
    Ok(KvLayout::new(kv_dtype(dtype), block_size, kv_heads, head_dim)?)
}

fn kv_dtype(dtype: Dtype) -> KvDtype {
    match dtype {
        Dtype::F32 => KvDtype::F32,
        Dtype::F16 => KvDtype::F16,
        Dtype::Bf16 => KvDtype::Bf16,
    }
}

/// How many bytes a token takes in one layer of a part of this shape.
pub(super) fn token_bytes(shape: PartShape, dtype: Dtype, block_size: u32) -> Result<usize, ModelError> {
    Ok(Content::new(shape, dtype, block_size)?.token_bytes())
}

impl CpuKv {
    /// The groups `ids` of the arena, whose parts are not known yet.
    pub fn new(arena: Arc<KvArena>, ids: &[GroupId]) -> Self {
        Self { arena, ids: ids.to_vec(), groups: Vec::new(), tier_options: None, tiers: None }
    }

    /// Has the latents of the groups that will be attached kept in tiers.
    pub fn keep_in_tiers(&mut self, options: TierOptions) {
        self.tier_options = Some(Mutex::new(options));
    }

    /// The latents, if they lie in tiers.
    pub fn tiers_mut(&mut self) -> Option<&mut Tiers> {
        self.tiers.as_mut().map(Mutex::get_mut)
    }

    /// The tiers that hold a part, and the place of a layer in it; `None` of a part that lies in the arena.
    ///
    /// # Errors
    ///
    /// A group, part or layer that the model does not have.
    pub fn tiered(&self, kv: KvRef) -> Result<Option<(&Mutex<Tiers>, usize)>, ModelError> {
        let (_, part, place) = self.find(kv)?;
        Ok(self.tiers.as_ref().filter(|_| part.tiered).map(|tiers| (tiers, place)))
    }

    /// The memory that holds the KV.
    pub fn arena(&self) -> &KvArena {
        &self.arena
    }

    /// Takes note of the parts that the groups consist of.
    ///
    /// # Errors
    ///
    /// The groups are not those that the device was made with, or their blocks have other sizes than in the
    /// arena.
    pub fn attach(
        &mut self,
        groups: &[KvGroup],
        shapes: &[Vec<PartShape>],
        (dtype, block_size): (Dtype, u32),
    ) -> Result<(), ModelError> {
        let (given, kept) = (self.ids.len(), groups.len());
        let shared = given == 1 && kept > 0;
        if (given != kept && !shared) || shapes.len() != kept {
            return refuse(format!("the model keeps {kept} KV groups, and the device was given {given}"));
        }
        let mut attached = Vec::with_capacity(kept);
        let mut offset = 0;
        for (index, (group, shapes)) in groups.iter().zip(shapes).enumerate() {
            let id = if shared { self.ids[0] } else { self.ids[index] };
            attached.push(self.group(id, group, shapes, (dtype, block_size), &mut offset)?);
            if !shared || index + 1 == kept {
                self.check_bytes(id, &group.name, std::mem::take(&mut offset))?;
            }
        }
        self.groups = attached;
        if let Some(options) = self.tier_options.take() {
            self.tiers = Some(Mutex::new(self.make_tiers(options.into_inner())?));
        }
        Ok(())
    }

    /// Copies what tiers hold of a block onto another one, where they hold anything of its group.
    pub fn copy_in_tiers(&mut self, copy: BlockCopy) {
        let tiered = |group: &Group| group.parts.iter().any(|part| part.tiered);
        let held = self.ids.iter().zip(&self.groups).any(|(&id, group)| id == copy.group && tiered(group));
        if let Some(tiers) = self.tiers_mut().filter(|_| held) {
            tiers.copy_block(copy.src.0, copy.dst.0);
        }
    }

    fn make_tiers(&self, options: TierOptions) -> Result<Tiers, ModelError> {
        let tiered = self.groups.iter().zip(&self.ids).find_map(|(group, &id)| {
            let part = group.parts.iter().find(|part| part.tiered)?;
            Some((id, group, part))
        });
        let Some((id, group, Part { content: Content::Vectors { layout }, layers, .. })) = tiered else {
            return refuse("tiers hold latents, and the model has none".to_owned());
        };
        let mut tiers = Tiers::new(*layout, layers.len(), group.num_blocks, options)?;
        tiers.set_indexer_keys(Arc::clone(&self.arena), id);
        Ok(tiers)
    }

    /// Refuses a group of the arena whose blocks have other bytes than the `filled` ones, of which the last are the group `name`'s.
    fn check_bytes(&self, id: GroupId, name: &str, filled: usize) -> Result<(), ModelError> {
        let planned = self.arena.plan().group(id).map(|planned| (planned.block_bytes, planned.stride));
        let (bytes, stride) = planned.unwrap_or((0, 0));
        if filled == bytes && stride.is_multiple_of(ALIGNMENT) {
            return Ok(());
        }
        refuse(format!(
            "a block of the KV group {name:?} takes {filled} bytes, and the arena gives it {bytes} at multiples of {stride}"
        ))
    }

    /// A group of the model in the blocks of group `id` of the arena, from byte `offset` of each on, which is moved behind it.
    fn group(
        &self,
        id: GroupId,
        group: &KvGroup,
        shapes: &[PartShape],
        (dtype, block_size): (Dtype, u32),
        offset: &mut usize,
    ) -> Result<Group, ModelError> {
        let name = &group.name;
        let Some(planned) = self.arena.plan().group(id) else {
            return refuse(format!("the KV arena has no group {}, which {name:?} was to be", id.0));
        };
        if shapes.len() != group.parts.len() {
            let (found, parts) = (shapes.len(), group.parts.len());
            return refuse(format!("the KV group {name:?} has {parts} parts and {found} shapes"));
        }
        let mut parts = Vec::with_capacity(shapes.len());
        for (part, &shape) in group.parts.iter().zip(shapes) {
            let content = Content::new(shape, dtype, block_size)?;
            let layer_bytes = content.token_bytes() * block_size as usize;
            let tiered = self.tier_options.is_some() && part.kind == PartKind::Latent;
            parts.push(Part { layers: part.layers.clone(), offset: *offset, layer_bytes, content, tiered });
            if !tiered {
                *offset += layer_bytes * part.layers.len();
            }
        }
        Ok(Group { stride: planned.stride, num_blocks: planned.num_blocks, block_size, parts })
    }

    /// How many groups the model has.
    pub fn num_groups(&self) -> usize {
        self.groups.len()
    }

    /// What attention over a group is planned for: the number of its query heads, and a view of one of its
    /// layers. `None` for a group without keys and values.
    pub fn attended(&self, group: usize) -> Option<(usize, KvLayer)> {
        let group = self.groups.get(group)?;
        let mut parts = group.parts.iter();
        parts.find_map(|part| match part.content {
            Content::Heads { layout, heads } => Some((heads, self.view(group, part, 0, layout))),
            Content::Vectors { .. } | Content::Rows { .. } => None,
        })
    }

    /// Block size and number of blocks of a group that holds [vectors](PartShape::Vectors); `None` of another.
    pub fn vector_blocks(&self, group: usize) -> Option<(u32, u32)> {
        let group = self.groups.get(group)?;
        let vectors = group.parts.iter().any(|part| matches!(part.content, Content::Vectors { .. }));
        vectors.then_some((group.block_size, group.num_blocks))
    }

    /// The vectors of a layer.
    ///
    /// # Errors
    ///
    /// A group, part or layer that the model does not have, or a part that holds something else.
    pub fn vectors(&self, kv: KvRef) -> Result<VectorLayer, ModelError> {
        let (group, part, place) = self.find(kv)?;
        let Content::Vectors { layout } = part.content else {
            return refuse(format!("{kv:?} holds no vectors, which are needed"));
        };
        if let Some(tiers) = self.tiers.as_ref().filter(|_| part.tiered) {
            return Ok(tiers.lock().vectors(place));
        }
        // SAFETY: each block of the group holds the part's layers at this offset, as `group` has found. The arena is aligned and
        // zeroed, stays for as long as this is, and is accessed through such views alone.
        Ok(unsafe {
            let base = self.arena.base().add(part.offset + place * part.layer_bytes);
            VectorLayer::new(base, group.stride, group.num_blocks, layout)
        })
    }

    /// The keys and values of a layer, and the number of query heads that read them.
    ///
    /// # Errors
    ///
    /// The model does not have the group, part or layer, or the part holds rows.
    pub fn heads(&self, kv: KvRef) -> Result<(KvLayer, usize), ModelError> {
        let (group, part, place) = self.find(kv)?;
        match part.content {
            Content::Heads { layout, heads } => Ok((self.view(group, part, place, layout), heads)),
            Content::Vectors { .. } | Content::Rows { .. } => {
                refuse(format!("{kv:?} holds rows where keys and values are needed"))
            }
        }
    }

    /// The rows that a layer of a part holds.
    ///
    /// # Errors
    ///
    /// The model does not have the group, part or layer, or the part holds keys and values.
    pub fn rows(&self, kv: KvRef) -> Result<HeldRows, ModelError> {
        let (group, part, place) = self.find(kv)?;
        let Content::Rows { width } = part.content else {
            return refuse(format!("{kv:?} holds keys and values where rows are needed"));
        };
        // SAFETY: the layer lies in the first block, which is in the arena.
        let base = unsafe { self.arena.base().add(part.offset + place * part.layer_bytes) };
        let (stride, num_blocks, block_size) = (group.stride, group.num_blocks, group.block_size);
        Ok(HeldRows { base, stride, num_blocks, block_size, width })
    }

    fn find(&self, kv: KvRef) -> Result<(&Group, &Part, usize), ModelError> {
        let group = self.groups.get(usize::from(kv.group.0));
        let part = group.and_then(|group| group.parts.get(usize::from(kv.part)));
        let place = part.and_then(|part| part.layers.place(kv.layer));
        match (group, part, place) {
            (Some(group), Some(part), Some(place)) => Ok((group, part, place)),
            _ => refuse(format!("an operation names {kv:?}, which the model's KV groups lack")),
        }
    }

    fn view(&self, group: &Group, part: &Part, place: usize, layout: KvLayout) -> KvLayer {
        // SAFETY: each block of the group holds the part's layers at this offset, as `attach` has found. The arena is aligned and
        // zeroed, stays for as long as this is, and is accessed through such views alone.
        unsafe {
            let base = self.arena.base().add(part.offset + place * part.layer_bytes);
            KvLayer::new(base, group.stride, group.num_blocks, layout)
        }
    }
}

/// The f32 rows in the slots of one layer of a part.
pub(super) struct HeldRows {
    base: *mut u8,
    stride: usize,
    num_blocks: u32,
    block_size: u32,
    width: usize,
}

impl HeldRows {
    /// How many values a row has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The row of a slot; `None` for slot -1.
    ///
    /// # Errors
    ///
    /// The group does not have the slot.
    pub fn row(&self, slot: i64) -> Result<Option<*mut f32>, ModelError> {
        let most = i64::from(self.num_blocks) * i64::from(self.block_size);
        match slot {
            -1 => Ok(None),
            slot if (0..most).contains(&slot) => {
                let (block, token) =
                    (slot as usize / self.block_size as usize, slot as usize % self.block_size as usize);
                let byte = block * self.stride + token * self.width * size_of::<f32>();
                Ok(Some(self.base.wrapping_add(byte).cast()))
            }
            slot => refuse(format!("slot {slot} of held rows, and their KV group has {most}")),
        }
    }
}

fn refuse<T>(what: String) -> Result<T, ModelError> {
    Err(ModelError::BadInputs { what })
}
