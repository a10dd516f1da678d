//! Which layers of a dense decoder share a KV group, and what the parts of a decoder's groups hold.

use pagedraft_block_manager::{GroupId, KvGroup, KvPart, LayerSet, PartKind, Salt};

use crate::checkpoint::ModelConfig;
use crate::dsa;
use crate::error::ModelError;
use crate::kv::{KvRef, PartShape};

/// The KV groups of a dense decoder whose layers have these [windows](ModelConfig::windows), for sequences of up to
/// `max_model_len` positions. A token takes `token_bytes` bytes in each layer: see [`Device::token_bytes`](crate::Device::token_bytes).
///
/// Layers of equal windows form a group: first the layers that see everything, then each window in the order of the first
/// layer that has it. A window of at least `max_model_len` positions hides nothing, and counts as none.
#[must_use]
pub fn kv_groups(windows: &[Option<u32>], max_model_len: usize, token_bytes: usize) -> Vec<KvGroup> {
    let effective = |window: Option<u32>| window.filter(|&w| (w as usize) < max_model_len);
    let mut kinds: Vec<Option<u32>> = Vec::new();
    for &window in windows {
        let window = effective(window);
        if !kinds.contains(&window) {
            kinds.push(window);
        }
    }
    // The order is stable: the layers without a window go first, the others keep theirs.
    kinds.sort_by_key(Option::is_some);
    let num_windows = kinds.iter().flatten().count();
    let group = |(id, &window): (u8, &Option<u32>)| {
        let layers = (0u16..).zip(windows).filter(|&(_, &own)| effective(own) == window);
        let layers: LayerSet = layers.map(|(layer, _)| layer).collect();
        KvGroup {
            id: GroupId(id),
            name: match window {
                None if kinds.len() == 1 => "kv".to_owned(),
                None => "full".to_owned(),
                Some(_) if num_windows == 1 => "window".to_owned(),
                Some(width) => format!("window-{width}"),
            },
            salt: Salt::NONE,
            parts: vec![KvPart {
                kind: PartKind::Heads,
                layers,
                bytes_per_token: token_bytes,
                tiered: false,
            }],
            window,
            lags: false,
        }
    };
    (0u8..).zip(&kinds).map(group).collect()
}

/// The keys and values of the model's heads.
#[must_use]
pub fn heads_shape(config: &ModelConfig) -> PartShape {
    let (heads, kv_heads, head_dim) = (config.num_heads, config.num_kv_heads, config.head_dim);
    PartShape::Heads { heads, kv_heads, head_dim }
}

/// What each part of these groups holds for a decoder.
///
/// # Errors
///
/// A part of a kind that the decoder has no use for.
pub(crate) fn shapes(config: &ModelConfig, groups: &[KvGroup]) -> Result<Vec<Vec<PartShape>>, ModelError> {
    let shape = |group: &KvGroup, part: &KvPart| match (part.kind, &config.dsa) {
        (PartKind::Residual, _) => Ok(PartShape::Rows { width: config.hidden_size }),
        (PartKind::Heads, None) => Ok(heads_shape(config)),
        (PartKind::Latent, Some(dsa)) => Ok(dsa::shapes(dsa)[0]),
        (PartKind::IndexKeys, Some(dsa)) => Ok(dsa::shapes(dsa)[1]),
        (other, _) => {
            let what =
                format!("the KV group {:?} has a part of kind {other:?}, which this model lacks", group.name);
            Err(ModelError::BadInputs { what })
        }
    };
    groups.iter().map(|group| group.parts.iter().map(|part| shape(group, part)).collect()).collect()
}

/// Where a layer's part of this kind lies.
///
/// # Errors
///
/// A layer that no part holds.
pub(crate) fn place(groups: &[KvGroup], kind: PartKind, layer: usize) -> Result<KvRef, ModelError> {
    let layer = u16::try_from(layer).unwrap_or(u16::MAX);
    let held = groups.iter().flat_map(|group| {
        let parts = (0u8..).zip(&group.parts);
        parts.map(|(part, held)| (KvRef { group: group.id, part, layer }, held))
    });
    let mut held = held.filter(|(_, part)| part.kind == kind && part.layers.contains(layer));
    held.next().map(|(kv, _)| kv).ok_or_else(|| ModelError::BadInputs {
        what: format!("layer {layer} of the model has no place for {kind:?} in any KV group"),
    })
}

/// Where the parts of this kind of the first `layers` layers lie.
///
/// # Errors
///
/// A layer that no part holds.
pub(crate) fn places(groups: &[KvGroup], kind: PartKind, layers: usize) -> Result<Vec<KvRef>, ModelError> {
    (0..layers).map(|layer| place(groups, kind, layer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(windows: &[Option<u32>], max_model_len: usize) -> Vec<(String, Vec<u16>, Option<u32>)> {
        kv_groups(windows, max_model_len, 64)
            .iter()
            .enumerate()
            .map(|(id, group)| {
                assert_eq!(usize::from(group.id.0), id);
                (group.name.clone(), group.parts[0].layers.iter().collect(), group.window)
            })
            .collect()
    }

    #[test]
    fn layers_of_equal_windows_form_a_group_and_full_ones_come_first() {
        let of = |name: &str, layers: &[u16], window| (name.to_owned(), layers.to_vec(), window);
        assert_eq!(described(&[None; 3], 100), [of("kv", &[0, 1, 2], None)]);
        assert_eq!(described(&[Some(24); 2], 100), [of("window", &[0, 1], Some(24))]);
        assert_eq!(
            described(&[Some(24), None, Some(24), None], 100),
            [of("full", &[1, 3], None), of("window", &[0, 2], Some(24))]
        );
        assert_eq!(
            described(&[Some(50), Some(24), None, Some(50)], 100),
            [of("full", &[2], None), of("window-50", &[0, 3], Some(50)), of("window-24", &[1], Some(24))]
        );
    }

    #[test]
    fn a_window_that_hides_nothing_is_none() {
        assert_eq!(described(&[Some(24), None], 24), [("kv".to_owned(), vec![0, 1], None)]);
        assert_eq!(described(&[Some(24), None], 25).len(), 2);
    }
}
