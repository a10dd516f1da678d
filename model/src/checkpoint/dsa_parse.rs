//! `config.json` of DeepSeek-V3.2 and GLM-5 into a [`ModelConfig`].
//!
//! Defaults are those of transformers' `DeepseekV32Config` and `GlmMoeDsaConfig`, but for the indexer's three sizes, which
//! have to be written: a configuration without them is more likely that of another model.

use serde_json::Value;

use super::architecture::Architecture;
use super::config::MOST_POSITIONS;
use super::config::ModelConfig;
use super::dsa::{DsaConfig, ExpertsConfig, IndexKeys};
use super::dtype::Dtype;
use super::fields::Fields;
use super::fp8;
use super::index_sharing::index_sources;
use super::int8;
use super::parse::{MOST_LAYERS, MOST_VOCAB, MOST_WIDTH, refuse_numbers};
use super::rope_yarn::{Yarn, rope_and_yarn};
use crate::error::ModelError;

/// Most experts of a layer: their ids are kept in 16 bits.
const MOST_EXPERTS: u64 = 1 << 16;

/// What differs between the defaults of the two configuration classes.
struct Defaults {
    vocab: usize,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    q_lora: usize,
    nope: usize,
    value: usize,
    groups: (usize, usize),
    positions: usize,
    eps: f64,
}

const DEEPSEEK: Defaults = Defaults {
    vocab: 129_280,
    hidden: 7168,
    inner: 18_432,
    layers: 61,
    heads: 128,
    q_lora: 1536,
    nope: 128,
    value: 128,
    groups: (8, 4),
    positions: 163_840,
    eps: 1e-6,
};

const GLM: Defaults = Defaults {
    vocab: 154_880,
    hidden: 6144,
    inner: 12_288,
    layers: 78,
    heads: 64,
    q_lora: 2048,
    nope: 192,
    value: 256,
    groups: (1, 1),
    positions: 202_752,
    eps: 1e-5,
};

/// Reads the configuration of a model with sparse attention.
pub(super) fn parse(
    fields: Fields<'_>,
    architecture: Architecture,
    dtype: Dtype,
) -> Result<ModelConfig, ModelError> {
    refuse(fields)?;
    let glm = architecture == Architecture::GlmMoeDsa;
    let d = if glm { GLM } else { DEEPSEEK };
    let width = |name, default| fields.size_or(name, MOST_WIDTH, default);
    let num_heads = width("num_attention_heads", d.heads)?;
    let kv_heads = fields.optional_size("num_key_value_heads", MOST_WIDTH)?;
    if let Some(found) = kv_heads.filter(|&found| found != num_heads) {
        let expected = format!("the {num_heads} of num_attention_heads: latents are expanded for each head");
        return Err(fields.bad("num_key_value_heads", found, expected));
    }
    let num_layers = fields.size_or("num_hidden_layers", MOST_LAYERS, d.layers)?;
    let positions = fields.size_or("max_position_embeddings", MOST_POSITIONS, d.positions)?;
    let eps = fields.optional_positive("rms_norm_eps")?.unwrap_or(d.eps);
    if !(1e-30..0.1).contains(&eps) {
        return Err(fields.bad("rms_norm_eps", eps, "a small number, such as 1e-6"));
    }
    let (nope, rope_dim) = (width("qk_nope_head_dim", d.nope)?, width("qk_rope_head_dim", 64)?);
    if !rope_dim.is_multiple_of(2) {
        let expected = "an even number, for rotary positions turn pairs";
        return Err(fields.bad("qk_rope_head_dim", rope_dim, expected));
    }
    if let Some(found) = fields.optional_size("qk_head_dim", MOST_WIDTH)?.filter(|&f| f != nope + rope_dim) {
        let expected = format!("{}, the sum of qk_nope_head_dim and qk_rope_head_dim", nope + rope_dim);
        return Err(fields.bad("qk_head_dim", found, expected));
    }
    if fields.has("q_lora_rank") && fields.get("q_lora_rank").is_none() {
        let hint = "the indexer takes the compressed queries";
        return Err(fields.unsupported("q_lora_rank null", hint));
    }
    let (rope, yarn) = rope_and_yarn(fields)?;
    if glm && yarn.is_some_and(|yarn| yarn.softmax_factor() != 1.0) {
        let hint =
            "engines disagree whether the softmax scale of this family follows it; leave mscale_all_dim out";
        return Err(fields.unsupported("yarn with mscale_all_dim in a glm_moe_dsa model", hint));
    }
    let mut softmax_scale = 1.0 / ((nope + rope_dim) as f64).sqrt();
    softmax_scale *= yarn.map_or(1.0, Yarn::softmax_factor);
    let index_topk = indexer_size(fields, "index_topk", MOST_POSITIONS)?;
    if index_topk > positions {
        let expected = format!("at most max_position_embeddings ({positions}): no query sees more keys");
        return Err(fields.bad("index_topk", index_topk, expected));
    }
    let index_head_dim = indexer_size(fields, "index_head_dim", MOST_WIDTH)?;
    if index_head_dim < rope_dim {
        let expected = format!("at least qk_rope_head_dim ({rope_dim}), for its first values are rotated");
        return Err(fields.bad("index_head_dim", index_head_dim, expected));
    }
    let attention_bias = fields.boolean("attention_bias", false)?;
    let dsa = DsaConfig {
        q_lora_rank: width("q_lora_rank", d.q_lora)?,
        kv_lora_rank: width("kv_lora_rank", 512)?,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: rope_dim,
        v_head_dim: width("v_head_dim", d.value)?,
        softmax_scale: softmax_scale as f32,
        rotation_scale: yarn.map_or(1.0, Yarn::rotation_factor) as f32,
        index_heads: indexer_size(fields, "index_n_heads", MOST_WIDTH)?,
        index_head_dim,
        index_topk,
        // transformers always interleaves for GLM; other engines read the field, and take half-split where it is missing.
        index_rope_interleaved: fields.boolean("indexer_rope_interleave", glm)?,
        index_sources: index_sources(fields, architecture, num_layers)?,
        expert_layers: expert_layers(fields, num_layers)?,
        experts: experts(fields, d.groups)?,
        index_keys: IndexKeys::default(),
        power_of_two_scales: fp8::power_of_two_scales(fields)?,
        fp8_block: fp8::block_of(fields)?,
    };
    Ok(ModelConfig {
        architecture,
        vocab_size: fields.size_or("vocab_size", MOST_VOCAB, d.vocab)?,
        hidden_size: width("hidden_size", d.hidden)?,
        intermediate_size: width("intermediate_size", d.inner)?,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: dsa.qk_head_dim(),
        max_position_embeddings: positions,
        rms_norm_eps: eps as f32,
        rope,
        tie_word_embeddings: fields.boolean("tie_word_embeddings", false)?,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: false,
        qk_norm: false,
        windows: vec![None; num_layers],
        torch_dtype: dtype,
        int8_weights: int8::is_in(fields)?,
        eos_token_ids: match fields.has("eos_token_id") {
            true => fields.token_ids("eos_token_id")?,
            false => vec![1],
        },
        bos_token_id: match fields.has("bos_token_id") {
            true => fields.token_ids("bos_token_id")?.first().copied(),
            false => Some(0),
        },
        dsa: Some(Box::new(dsa)),
        mask_token_id: None,
    })
}

/// A size of the indexer, which has to be there.
fn indexer_size(fields: Fields<'_>, name: &'static str, most: u64) -> Result<usize, ModelError> {
    let missing =
        || fields.missing(name, "a whole number of at least 1 (a size of the sparse attention's indexer)");
    fields.optional_size(name, most)?.ok_or_else(missing)
}

/// Which layers have experts: `mlp_layer_types`, or all but the first `first_k_dense_replace`.
fn expert_layers(fields: Fields<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    let dense = fields.count_or("first_k_dense_replace", 3)?;
    let name = "mlp_layer_types";
    let expected = || format!("a list of \"dense\" or \"sparse\" for each of {layers} layers");
    match fields.get(name) {
        None => Ok((0..layers as u64).map(|layer| layer >= dense).collect()),
        Some(Value::Array(kinds)) if kinds.len() == layers => kinds
            .iter()
            .map(|kind| match kind.as_str() {
                Some("dense") => Ok(false),
                Some("sparse") => Ok(true),
                _ => Err(fields.bad(name, kind, expected())),
            })
            .collect(),
        Some(Value::Array(kinds)) => Err(fields.bad(name, format!("a list of {}", kinds.len()), expected())),
        Some(other) => Err(fields.bad(name, other, expected())),
    }
}

fn experts(fields: Fields<'_>, (groups, kept): (usize, usize)) -> Result<ExpertsConfig, ModelError> {
    let count = fields.size_or("n_routed_experts", MOST_EXPERTS, 256)?;
    for other in ["num_experts", "num_local_experts"] {
        if let Some(found) = fields.optional_size(other, MOST_EXPERTS)?.filter(|&found| found != count) {
            return Err(fields.bad(
                other,
                found,
                format!("the {count} of n_routed_experts, or no such field"),
            ));
        }
    }
    let groups = fields.size_or("n_group", MOST_EXPERTS, groups)?;
    let groups_kept = fields.size_or("topk_group", MOST_EXPERTS, kept)?;
    if !count.is_multiple_of(groups) || (groups > 1 && count / groups < 2) {
        let expected = format!("a divisor of n_routed_experts ({count}) that leaves groups of two or more");
        return Err(fields.bad("n_group", groups, expected));
    }
    if groups_kept > groups {
        return Err(fields.bad("topk_group", groups_kept, format!("at most n_group ({groups})")));
    }
    let per_token = fields.size_or("num_experts_per_tok", MOST_EXPERTS, 8)?;
    let reachable = count / groups * groups_kept;
    if per_token > reachable {
        let expected = format!("at most the {reachable} experts of the groups that are kept");
        return Err(fields.bad("num_experts_per_tok", per_token, expected));
    }
    Ok(ExpertsConfig {
        count,
        per_token,
        groups,
        groups_kept,
        intermediate_size: fields.size_or("moe_intermediate_size", MOST_WIDTH, 2048)?,
        shared: match fields.count_or("n_shared_experts", 1)? {
            shared if shared <= 64 => shared as usize,
            shared => return Err(fields.bad("n_shared_experts", shared, "a whole number from 0 to 64")),
        },
        normalised: fields.boolean("norm_topk_prob", true)?,
        scale: fields.optional_positive("routed_scaling_factor")?.unwrap_or(2.5) as f32,
    })
}

/// Refuses what would change the result and is not done here.
fn refuse(fields: Fields<'_>) -> Result<(), ModelError> {
    let text = |name: &'static str, known: &str, hint: &str| match fields.text(name)? {
        Some(found) if found != known => Err(fields.unsupported(format!("{name} \"{found}\""), hint)),
        _ => Ok(()),
    };
    if fields.text("hidden_act")? != Some("swish") {
        text("hidden_act", "silu", "the models of this family use silu")?;
    }
    text("scoring_func", "sigmoid", "experts are scored with a sigmoid here")?;
    text("topk_method", "noaux_tc", "experts are chosen by noaux_tc here")?;
    if fields.count_or("moe_layer_freq", 1)? != 1 {
        return Err(
            fields.unsupported("moe_layer_freq", "every layer behind the dense ones has experts here")
        );
    }
    for (name, neutral) in
        [("mlp_bias", false), ("rope_interleave", true), ("use_qk_norm", false), ("is_causal", true)]
    {
        if fields.boolean(name, neutral)? != neutral {
            let hint = format!("the models of this family have {neutral}");
            return Err(fields.unsupported(format!("{name} {}", !neutral), hint));
        }
    }
    for name in ["index_kpool", "sliding_window", "swiglu_limit", "compress_ratios", "hc_mult"] {
        if let Some(value) = fields.get(name) {
            let hint = "it belongs to a later model, and leaving it out would be wrong";
            return Err(fields.unsupported(format!("{name} {value}"), hint));
        }
    }
    if let Some(Value::Array(kinds)) = fields.get("layer_types") {
        let known = ["deepseek_sparse_attention", "indexed_attention"];
        if let Some(kind) = kinds.iter().find(|kind| !known.iter().any(|known| kind.as_str() == Some(known)))
        {
            let hint = "every layer has sparse attention over latents here";
            return Err(fields.unsupported(format!("layer_types {kind}"), hint));
        }
    }
    refuse_numbers(fields)
}
