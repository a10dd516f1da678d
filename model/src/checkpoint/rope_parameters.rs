//! The rotary positions of a `config.json`, in either of its spellings.

use super::class_defaults::ClassDefaults;
use super::config::MOST_POSITIONS;
use super::fields::Fields;
use super::rope::{Rope, RopeScaling};
use crate::error::ModelError;

/// Reads `rope_theta` with `rope_scaling` (published checkpoints), or `rope_parameters` (transformers 5).
/// Where a file has both objects, `rope_scaling` counts, as it does for transformers.
pub(super) fn rope(fields: Fields<'_>) -> Result<Rope, ModelError> {
    let old = fields.nested("rope_scaling", "rope_scaling.")?.filter(|nested| !nested.is_empty());
    let parameters = match old {
        Some(parameters) => Some(parameters),
        None => fields.nested("rope_parameters", "rope_parameters.")?,
    };
    if let Some(nested) = parameters
        && let Some(kind) = nested.names().find(|name| name.ends_with("_attention"))
    {
        let feature = format!("a set of rope parameters for each kind of layer (rope_parameters.{kind})");
        let hint = "the models of this family have one for all layers, with rope_parameters.rope_type";
        return Err(fields.unsupported(feature, hint));
    }
    refuse_partial(fields)?;
    let theta = theta(fields, parameters)?;
    let scaling = match parameters {
        Some(nested) => scaling(fields, nested)?,
        None => RopeScaling::None,
    };
    Ok(Rope { theta, scaling })
}

/// The base of the frequencies: of the object, or of the file around it.
pub(super) fn theta(fields: Fields<'_>, parameters: Option<Fields<'_>>) -> Result<f64, ModelError> {
    let nested_theta = match parameters {
        Some(nested) => nested.optional_positive("rope_theta")?,
        None => None,
    };
    let theta = match nested_theta {
        Some(theta) => theta,
        None => fields.optional_positive("rope_theta")?.unwrap_or(ClassDefaults::ROPE_THETA),
    };
    if theta as f32 <= 1.0 || !(theta as f32).is_finite() {
        return Err(fields.bad("rope_theta", theta, "a number above 1, such as 10000"));
    }
    Ok(theta)
}

fn refuse_partial(fields: Fields<'_>) -> Result<(), ModelError> {
    match fields.optional_positive("partial_rotary_factor")? {
        Some(part) if part != 1.0 => {
            let feature = format!("partial_rotary_factor {part}");
            Err(fields.unsupported(feature, "whole heads are rotated here"))
        }
        _ => Ok(()),
    }
}

/// What is done to the frequencies. `nested` is the object, `top` the file around it.
fn scaling(top: Fields<'_>, nested: Fields<'_>) -> Result<RopeScaling, ModelError> {
    refuse_partial(nested)?;
    let Some(kind) = kind(nested)? else {
        return Ok(RopeScaling::None);
    };
    // A factor of a million already turns every pair by next to nothing.
    let factor = || match nested.positive("factor")? {
        factor if (1.0..=1e6).contains(&factor) => Ok(factor),
        factor => Err(nested.bad("factor", factor, "a number of at least 1")),
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "llama3" => {
            let low = nested.positive("low_freq_factor")?;
            let high = nested.positive("high_freq_factor")?;
            if high as f32 <= low as f32 || !(high as f32).is_finite() {
                let expected = format!("a number above low_freq_factor ({low})");
                return Err(nested.bad("high_freq_factor", high, expected));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original_length(top, nested)?,
            })
        }
        other => {
            let hint = "supported are default, linear and llama3";
            Err(nested.unsupported(format!("rope scaling \"{other}\""), hint))
        }
    }
}

/// The kind of scaling; `None` where the object holds a `rope_theta` and nothing that scales.
fn kind(nested: Fields<'_>) -> Result<Option<&str>, ModelError> {
    match (nested.text("rope_type")?, nested.text("type")?) {
        // Versions of transformers disagree about which of the two counts.
        (Some(kind), Some(old)) if kind != old => {
            let expected = format!("no such field, or the \"{kind}\" that rope_type is");
            Err(nested.bad("type", format!("\"{old}\""), expected))
        }
        (Some(kind), _) | (None, Some(kind)) => Ok(Some(kind)),
        (None, None) => {
            let plain = ["rope_theta", "partial_rotary_factor"];
            match nested.names().all(|name| plain.contains(&name)) {
                true => Ok(None),
                false => Err(nested.missing("rope_type", "default, linear or llama3")),
            }
        }
    }
}

/// The length that a llama3 scaling starts from: it may also stand outside of the object, and is
/// `max_position_embeddings` where nothing says another.
fn original_length(top: Fields<'_>, nested: Fields<'_>) -> Result<usize, ModelError> {
    let name = "original_max_position_embeddings";
    match (nested.optional_size(name, MOST_POSITIONS)?, top.optional_size(name, MOST_POSITIONS)?) {
        (Some(inner), Some(outer)) if inner != outer => {
            let expected = format!("the {outer} that the field of this name at the top is");
            Err(nested.bad(name, inner, expected))
        }
        (Some(length), _) | (None, Some(length)) => Ok(length),
        (None, None) => top
            .optional_size("max_position_embeddings", MOST_POSITIONS)?
            .ok_or_else(|| nested.missing(name, "a whole number of at least 1")),
    }
}
