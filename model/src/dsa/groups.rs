//! The KV group of a decoder with sparse attention.

use std::ops::Range;

use pagedraft_block_manager::{GroupId, KvGroup, KvPart, LayerSet, PartKind, Salt};

use crate::checkpoint::{DsaConfig, IndexKeys};
use crate::error::ModelError;
use crate::kv::PartShape;

/// The shapes of the parts of [`kv_groups`]: latents with their rotated keys, and indexer keys.
#[must_use]
pub fn shapes(dsa: &DsaConfig) -> [PartShape; 2] {
    let width = dsa.index_head_dim;
    let keys = match dsa.index_keys {
        IndexKeys::Plain => PartShape::Vectors { width },
        IndexKeys::Fp8 { .. } => PartShape::Fp8Vectors { width, power_of_two: dsa.power_of_two_scales },
    };
    [PartShape::Vectors { width: dsa.latent_width() }, keys]
}

/// The parts of the KV group of some layers: part 0 are the latents of all of them, part 1 the indexer keys of those that have an
/// indexer of their own. `token_bytes` says what a token takes in one layer of a part: see
/// [`Device::token_bytes`](crate::Device::token_bytes).
///
/// # Errors
///
/// Those of `token_bytes`.
pub fn parts(
    dsa: &DsaConfig,
    layers: Range<u16>,
    token_bytes: impl Fn(PartShape) -> Result<usize, ModelError>,
) -> Result<Vec<KvPart>, ModelError> {
    let [latents, keys] = shapes(dsa);
    let part = |kind, layers, shape| -> Result<KvPart, ModelError> {
        Ok(KvPart { kind, layers, bytes_per_token: token_bytes(shape)?, tiered: false })
    };
    let indexers = dsa.indexer_layers().filter(|layer| layers.contains(layer)).collect();
    Ok(vec![
        part(PartKind::Latent, LayerSet::range(layers), latents)?,
        part(PartKind::IndexKeys, indexers, keys)?,
    ])
}

/// The one KV group of the model, of the [parts](parts()) of all its layers.
///
/// # Errors
///
/// Those of `token_bytes`.
pub fn kv_groups(
    dsa: &DsaConfig,
    token_bytes: impl Fn(PartShape) -> Result<usize, ModelError>,
) -> Result<Vec<KvGroup>, ModelError> {
    let layers = u16::try_from(dsa.index_sources.len()).unwrap_or(u16::MAX);
    Ok(vec![KvGroup {
        id: GroupId(0),
        name: "kv".to_owned(),
        salt: Salt::NONE,
        parts: parts(dsa, 0..layers, token_bytes)?,
        window: None,
        lags: false,
    }])
}
