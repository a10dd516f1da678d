//! Which layers of a model attend within a sliding window.

use serde_json::Value;

use super::architecture::Architecture;
use super::fields::Fields;
use crate::error::ModelError;

/// The window of transformers' configuration classes where the field `sliding_window` is absent.
const DEFAULT_WINDOW: u32 = 4096;
/// The first windowed layer of Qwen's configuration classes where `max_window_layers` is absent.
const DEFAULT_MAX_WINDOW_LAYERS: u64 = 28;

/// The window of each layer; `None` where a layer sees every earlier token.
///
/// An explicit `layer_types` says which layers have one. Without it, every layer of Mistral has one, and
/// of Qwen, where `use_sliding_window` is on, the layers from `max_window_layers` on. The width is
/// `sliding_window`. A field that decides nothing is not looked at.
///
/// Where the width is null, or a Qwen's `use_sliding_window` is off, there is no width. Then a model without
/// `layer_types` has no windows, and one whose list names sliding layers is refused: transformers has no mask
/// for such a layer either ("Could not find a `sliding_window` argument in the config").
pub(super) fn windows(
    fields: Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<Option<u32>>, ModelError> {
    let listed = layer_types(fields, layers)?;
    let by_list = listed.is_some();
    let sliding = match listed {
        Some(sliding) => sliding,
        None => sliding_by_class(fields, architecture, layers)?,
    };
    let Some(first) = sliding.iter().position(|&sliding| sliding) else {
        return Ok(vec![None; layers]);
    };
    let used = match architecture {
        Architecture::Llama | Architecture::DeepseekV32 | Architecture::GlmMoeDsa | Architecture::Llada => {
            let feature = format!("{architecture} with sliding_attention (layer_types[{first}])");
            let hint = "a Llama has no windows; if the layers are Mistral's, let architectures say so";
            return Err(fields.unsupported(feature, hint));
        }
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 => fields.boolean("use_sliding_window", false)?,
    };
    let width = if used { width(fields)? } else { None };
    if width.is_none() && by_list {
        let (cause, remedy) = match used {
            true => ("sliding_window is null", "give sliding_window the width"),
            false => ("use_sliding_window is off", "set use_sliding_window to true"),
        };
        let found = format!("sliding_attention, but {cause}, so it has no width");
        let expected = format!("full_attention if the layer sees every earlier token; else {remedy}");
        return Err(fields.bad(&format!("layer_types[{first}]"), found, expected));
    }
    Ok(sliding.into_iter().map(|sliding| width.filter(|_| sliding)).collect())
}

/// Which layers slide by `layer_types`, where there is such a list.
fn layer_types(fields: Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let types = match fields.get("layer_types") {
        None => return Ok(None),
        Some(Value::Array(types)) => types,
        Some(other) => {
            let expected = "a list of full_attention and sliding_attention, one for each layer";
            return Err(fields.bad("layer_types", other, expected));
        }
    };
    if types.len() != layers {
        let found = format!("a list of {} entries", types.len());
        let expected = format!("one for each of the {layers} layers (num_hidden_layers)");
        return Err(fields.bad("layer_types", found, expected));
    }
    let slides = |(i, kind): (usize, &Value)| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => {
            let expected = "full_attention or sliding_attention, the kinds that this engine knows";
            Err(fields.bad(&format!("layer_types[{i}]"), kind, expected))
        }
    };
    types.iter().enumerate().map(slides).collect::<Result<_, _>>().map(Some)
}

/// Which layers slide where no list says it.
fn sliding_by_class(
    fields: Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<bool>, ModelError> {
    Ok(match architecture {
        Architecture::Llama | Architecture::DeepseekV32 | Architecture::GlmMoeDsa | Architecture::Llada => {
            vec![false; layers]
        }
        Architecture::Mistral => vec![true; layers],
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if !fields.boolean("use_sliding_window", false)? {
                return Ok(vec![false; layers]);
            }
            let first = fields.count_or("max_window_layers", DEFAULT_MAX_WINDOW_LAYERS)?;
            (0..layers as u64).map(|layer| layer >= first).collect()
        }
    })
}

/// The width of the windows; `None` where the field is null, which means that there are none.
fn width(fields: Fields<'_>) -> Result<Option<u32>, ModelError> {
    if !fields.has("sliding_window") {
        return Ok(Some(DEFAULT_WINDOW));
    }
    // A window beyond every position is as good as any other that is.
    let width = fields.optional_size("sliding_window", 1 << 53)?;
    Ok(width.map(|width| u32::try_from(width).unwrap_or(u32::MAX)))
}
