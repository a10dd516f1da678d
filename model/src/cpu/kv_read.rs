//! Reads back what the KV cache holds, for those who look at a step.

use pagedraft_attention::KvDtype;
use pagedraft_attention::sparse::VectorDtype;

use super::kv::CpuKv;
use crate::error::ModelError;
use crate::kv::{KvRef, KvRows};

impl CpuKv {
    /// What the slots of a layer hold; a row of zeros for slot -1. A part without keys and values gives its vectors as keys.
    ///
    /// # Errors
    ///
    /// A group, part or layer that the model does not have; a slot outside the group; latents that lie in tiers.
    pub fn read(&self, kv: KvRef, slots: &[i64], into: &mut KvRows) -> Result<(), ModelError> {
        let bad = |what: String| Err(ModelError::BadInputs { what });
        if self.tiered(kv)?.is_some() {
            let what =
                "latents that lie in tiers cannot be looked at: leave out --kv-hbm-blocks and the pools";
            return bad(what.to_owned());
        }
        let in_range = |slots: &[i64], blocks: u32, size: u32| {
            let most = i64::from(blocks) * i64::from(size);
            slots.iter().find(|&&slot| slot >= most).copied()
        };
        into.keys.clear();
        into.values.clear();
        if let Ok((layer, _)) = self.heads(kv) {
            let layout = *layer.layout();
            let width = layout.kv_heads() * layout.head_dim();
            if let Some(slot) = in_range(slots, layer.num_blocks(), layout.block_size()) {
                return bad(format!("slot {slot} of {kv:?} is looked at, and it has fewer"));
            }
            into.keys.resize(slots.len() * width, 0.0);
            into.values.resize(slots.len() * width, 0.0);
            (into.key_width, into.value_width, into.heads) = (width, width, layout.kv_heads());
            into.dtype = name(layout.dtype());
            let rows = into.keys.chunks_exact_mut(width).zip(into.values.chunks_exact_mut(width));
            for (&slot, (keys, values)) in slots.iter().zip(rows) {
                let Ok(slot) = u64::try_from(slot) else { continue };
                // SAFETY: the slot exists, and no operation is running, so nobody writes it.
                unsafe { layer.read(slot, keys, values) };
            }
            return Ok(());
        }
        let layer = self.vectors(kv)?;
        let layout = *layer.layout();
        let width = layout.width();
        if let Some(slot) = in_range(slots, layer.num_blocks(), layout.block_size()) {
            return bad(format!("slot {slot} of {kv:?} is looked at, and it has fewer"));
        }
        into.keys.resize(slots.len() * width, 0.0);
        (into.key_width, into.value_width, into.heads) = (width, 0, 1);
        into.dtype = match layout.dtype() {
            VectorDtype::Plain(dtype) => name(dtype),
            VectorDtype::Fp8 { .. } => "f8_e4m3",
        };
        for (&slot, keys) in slots.iter().zip(into.keys.chunks_exact_mut(width)) {
            let Ok(slot) = u64::try_from(slot) else { continue };
            // SAFETY: the slot and its values exist, and no operation is running, so nobody writes it.
            let scale = unsafe { layer.scale(slot) };
            for (d, key) in keys.iter_mut().enumerate() {
                // SAFETY: as above.
                *key = unsafe { layer.value(slot, d) } * scale;
            }
        }
        Ok(())
    }
}

fn name(dtype: KvDtype) -> &'static str {
    match dtype {
        KvDtype::F32 => "f32",
        KvDtype::F16 => "f16",
        KvDtype::Bf16 => "bf16",
    }
}
