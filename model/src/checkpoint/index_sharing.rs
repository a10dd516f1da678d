//! Which layers share an indexer (GLM-5.2's IndexShare).

use serde_json::Value;

use super::architecture::Architecture;
use super::fields::Fields;
use crate::error::ModelError;

/// For each layer the layer whose indexer chooses its keys. In order of precedence: `indexer_types`, `index_topk_pattern`, and
/// `index_topk_freq` with `index_skip_topk_offset` (as transformers' `GlmMoeDsaConfig` has it).
pub(super) fn index_sources(
    fields: Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<u16>, ModelError> {
    let (name, full) = match (fields.get("indexer_types"), fields.get("index_topk_pattern")) {
        (Some(kinds), _) => ("indexer_types", list(fields, "indexer_types", kinds)?),
        (None, Some(Value::String(pattern))) => ("index_topk_pattern", letters(fields, pattern)?),
        (None, Some(kinds)) => ("index_topk_pattern", list(fields, "index_topk_pattern", kinds)?),
        (None, None) => {
            let freq = fields.count_or("index_topk_freq", 1)?.max(1);
            let offset = fields.count_or("index_skip_topk_offset", 2)?;
            let full = |layer: u64| (layer + 1).saturating_sub(offset).is_multiple_of(freq);
            ("index_topk_freq", (0..layers as u64).map(full).collect())
        }
    };
    if full.len() != layers {
        let expected = format!("an entry for each of {layers} layers");
        return Err(fields.bad(name, format!("{} entries", full.len()), expected));
    }
    if architecture == Architecture::DeepseekV32 && full.contains(&false) {
        let hint = "the indexers of deepseek_v32 are not shared";
        return Err(fields.unsupported(format!("{name} with shared indexers"), hint));
    }
    let mut source = None;
    let sources = (0u16..).zip(&full).map(|(layer, &full)| {
        if full {
            source = Some(layer);
        }
        source.ok_or_else(|| {
            let expected = "a first layer with an indexer of its own: there is none before it to share";
            fields.bad(name, "a first layer that shares", expected)
        })
    });
    sources.collect()
}

fn list(fields: Fields<'_>, name: &str, kinds: &Value) -> Result<Vec<bool>, ModelError> {
    let bad = |found: &Value| fields.bad(name, found, "a list of \"full\" or \"shared\"");
    let kinds = kinds.as_array().ok_or_else(|| bad(kinds))?;
    let full = |kind: &Value| match kind.as_str() {
        Some("full") => Ok(true),
        Some("shared") => Ok(false),
        _ => Err(bad(kind)),
    };
    kinds.iter().map(full).collect()
}

fn letters(fields: Fields<'_>, pattern: &str) -> Result<Vec<bool>, ModelError> {
    let full = |letter| match letter {
        'F' => Ok(true),
        'S' => Ok(false),
        _ => {
            Err(fields.bad("index_topk_pattern", format!("\"{pattern}\""), "letters F (full) and S (shared)"))
        }
    };
    pattern.chars().map(full).collect()
}
