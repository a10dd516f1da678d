//! The KV group of a decoder with sparse attention.

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

/// The one KV group of the model: part 0 are the latents of all layers, part 1 the indexer keys of the layers that have an
/// indexer of their own. `token_bytes` says what a token takes in one layer of a part: see
/// [`Device::token_bytes`](crate::Device::token_bytes).
///
/// # Errors
///
/// Those of `token_bytes`.
pub fn kv_groups(
    dsa: &DsaConfig,
    token_bytes: impl Fn(PartShape) -> Result<usize, ModelError>,
) -> Result<Vec<KvGroup>, ModelError> {
    let [latents, keys] = shapes(dsa);
    let layers = u16::try_from(dsa.index_sources.len()).unwrap_or(u16::MAX);
    let part = |kind, layers, shape| -> Result<KvPart, ModelError> {
        Ok(KvPart { kind, layers, bytes_per_token: token_bytes(shape)?, tiered: false })
    };
    Ok(vec![KvGroup {
        id: GroupId(0),
        name: "kv".to_owned(),
        salt: Salt::NONE,
        parts: vec![
            part(PartKind::Latent, LayerSet::range(0..layers), latents)?,
            part(PartKind::IndexKeys, dsa.indexer_layers().collect(), keys)?,
        ],
        window: None,
        lags: false,
    }])
}
