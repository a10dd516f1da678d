//! Computes the salt of block hashes from everything besides the tokens that changes the contents of KV
//! blocks.

use pagedraft_block_manager::{KvGroup, Salt};
use pagedraft_model::checkpoint::Fingerprint;
use pagedraft_model::{Dtype, Quantization};

/// The properties of a model that its KV depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvModel {
    pub fingerprint: Fingerprint,
    /// The type of the weights in computations.
    pub dtype: Dtype,
    /// How the matrices are quantised.
    pub quantization: Quantization,
    /// The type of the stored keys and values.
    pub kv_dtype: Dtype,
}

impl KvModel {
    /// The salt of one group. It identifies the group's contents to other programs.
    pub fn group_salt(&self, group: &KvGroup) -> Salt {
        self.salt(std::slice::from_ref(group))
    }

    /// The salt of all sequences of an engine whose target has `groups`. A draft model's group does not
    /// count: the KV of the target is the same with and without a draft model, and blocks are only looked
    /// up within their own group.
    pub fn salt(&self, groups: &[KvGroup]) -> Salt {
        let Self { fingerprint, dtype, quantization, kv_dtype } = self;
        let (fingerprint, dtype, kv_dtype) =
            (fingerprint.to_string(), dtype.to_string(), kv_dtype.to_string());
        let (groups, quantization): (String, _) =
            (groups.iter().map(spec).collect(), quantization.to_string());
        let mut parts =
            vec![("model", &*fingerprint), ("dtype", &dtype), ("kv_dtype", &kv_dtype), ("groups", &groups)];
        if self.quantization != Quantization::None {
            parts.push(("quantization", &quantization));
        }
        Salt::of(&parts)
    }
}

/// The part of a group's description that its contents depend on.
fn spec(group: &KvGroup) -> String {
    let mut spec = format!("{:?} window {:?} lags {}", group.name, group.window, group.lags);
    for part in &group.parts {
        let layers: Vec<u16> = part.layers.iter().collect();
        spec.push_str(&format!("; {:?} of layers {layers:?}, {} bytes", part.kind, part.bytes_per_token));
    }
    spec.push('\n');
    spec
}

/// The salt of a tenant's sequences in an engine. Tenants do not find each other's blocks.
pub(super) fn of_tenant(engine: Salt, tenant: &str) -> Salt {
    Salt::of(&[("engine", &engine.to_string()), ("tenant", tenant)])
}

#[cfg(test)]
mod tests {
    use pagedraft_model::ActivationType;
    use pagedraft_model::checkpoint::Checkpoint;

    use super::*;
    use crate::session::builtin;

    fn model(name: &str) -> KvModel {
        let fingerprint = builtin::checkpoint(name).unwrap().fingerprint();
        KvModel { fingerprint, dtype: Dtype::F32, quantization: Quantization::None, kv_dtype: Dtype::F32 }
    }

    #[test]
    fn whatever_changes_the_contents_of_blocks_changes_the_salt() {
        let target = model("target");
        let group = KvGroup::dense(4, 1024);
        let windowed = KvGroup { window: Some(32), ..group.clone() };
        let salts = [
            target.salt(std::slice::from_ref(&group)),
            model("draft").salt(std::slice::from_ref(&group)),
            KvModel { dtype: Dtype::Bf16, ..target }.salt(std::slice::from_ref(&group)),
            KvModel { quantization: Quantization::Int8(ActivationType::Int8), ..target }
                .salt(std::slice::from_ref(&group)),
            KvModel { quantization: Quantization::Int8(ActivationType::F32), ..target }
                .salt(std::slice::from_ref(&group)),
            KvModel { kv_dtype: Dtype::Bf16, ..target }.salt(std::slice::from_ref(&group)),
            target.salt(std::slice::from_ref(&windowed)),
            target.salt(&[KvGroup::dense(5, 1024)]),
            target.salt(&[group.clone(), windowed.clone()]),
            of_tenant(target.group_salt(&group), "a"),
            of_tenant(target.group_salt(&group), "b"),
            of_tenant(target.group_salt(&windowed), "a"),
        ];
        let distinct: std::collections::BTreeSet<_> = salts.iter().collect();
        assert_eq!(distinct.len(), salts.len());
        assert_eq!(target.group_salt(&group), salts[0]);
    }

    #[test]
    fn dummy_weights_are_known_by_their_seed_and_their_shape() {
        let config = builtin::checkpoint("target").unwrap().config().clone();
        let of = |seed| Checkpoint::dummy(config.clone(), seed).fingerprint();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_ne!(of(1), model("target").fingerprint);
    }
}
