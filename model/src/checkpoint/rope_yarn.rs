//! YaRN (Peng et al. 2023), as DeepSeek's models use it.

use super::config::MOST_POSITIONS;
use super::fields::Fields;
use super::rope::{Rope, RopeScaling};
use super::rope_parameters::{rope, theta};
use crate::error::ModelError;

/// What YaRN does beside the frequencies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Yarn {
    factor: f64,
    mscale: f64,
    mscale_all_dim: f64,
    attention_factor: Option<f64>,
}

fn magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl Yarn {
    /// What the softmax scale is multiplied with: the square of `0.1 mscale_all_dim ln(factor) + 1`, or 1 without the field.
    pub fn softmax_factor(self) -> f64 {
        match self.mscale_all_dim {
            0.0 => 1.0,
            mscale => magnitude(self.factor, mscale).powi(2),
        }
    }

    /// What cosines and sines are multiplied with.
    pub fn rotation_factor(self) -> f64 {
        if let Some(factor) = self.attention_factor {
            return factor;
        }
        match self.mscale != 0.0 && self.mscale_all_dim != 0.0 {
            true => magnitude(self.factor, self.mscale) / magnitude(self.factor, self.mscale_all_dim),
            false => magnitude(self.factor, 1.0),
        }
    }
}

/// The rotary positions of a `config.json` that may ask for YaRN.
pub(super) fn rope_and_yarn(fields: Fields<'_>) -> Result<(Rope, Option<Yarn>), ModelError> {
    let old = fields.nested("rope_scaling", "rope_scaling.")?.filter(|nested| !nested.is_empty());
    let nested = match old {
        Some(nested) => Some(nested),
        None => fields.nested("rope_parameters", "rope_parameters.")?,
    };
    let Some(nested) = nested else { return Ok((rope(fields)?, None)) };
    let kind = nested.text("rope_type")?.or(nested.text("type")?);
    if kind != Some("yarn") {
        return Ok((rope(fields)?, None));
    }
    for name in ["rope_type", "type"] {
        if let Some(other) = nested.text(name)?.filter(|&other| other != "yarn") {
            return Err(nested.bad(
                name,
                format!("\"{other}\""),
                "no such field, or \"yarn\" like the other",
            ));
        }
    }
    let factor = match nested.positive("factor")? {
        factor if (1.0..=1e6).contains(&factor) => factor,
        factor => return Err(nested.bad("factor", factor, "a number of at least 1")),
    };
    if !nested.boolean("truncate", true)? {
        return Err(nested.unsupported("yarn with truncate false", "its corrections are whole numbers here"));
    }
    let name = "original_max_position_embeddings";
    let original = nested.optional_size(name, MOST_POSITIONS)?;
    let original = original.ok_or_else(|| nested.missing(name, "a whole number of at least 1"))?;
    let number = |name| match nested.get(name) {
        None => Ok(0.0),
        Some(_) => match nested.get(name).and_then(serde_json::Value::as_f64) {
            Some(number) if number.is_finite() && number >= 0.0 => Ok(number),
            _ => Err(nested.bad(
                name,
                nested.get(name).map(ToString::to_string).unwrap_or_default(),
                "a number",
            )),
        },
    };
    let yarn = Yarn {
        factor,
        mscale: number("mscale")?,
        mscale_all_dim: number("mscale_all_dim")?,
        attention_factor: nested.optional_positive("attention_factor")?,
    };
    let scaling = RopeScaling::Yarn {
        factor,
        beta_fast: nested.optional_positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: nested.optional_positive("beta_slow")?.unwrap_or(1.0),
        original_max_position_embeddings: original,
    };
    Ok((Rope { theta: theta(fields, Some(nested))?, scaling }, Some(yarn)))
}
