//! The rotary positions of a GGUF file.

use super::file::Gguf;
use super::ggml_type::GgmlType;
use super::stored_name::ROPE_FREQS;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::rope::{Rope, RopeScaling};
use crate::error::ModelError;

/// The base of the frequencies where the file has none.
const BASE: f64 = 10_000.0;

/// Reads `rope.freq_base`, `rope.scaling.*` and the tensor `rope_freqs.weight`, which holds the divisor of each frequency (Llama 3).
pub(super) fn rope(gguf: &Gguf, fields: Fields<'_>, head_dim: usize) -> Result<Rope, ModelError> {
    let theta = fields.optional_positive("rope.freq_base")?.unwrap_or(BASE);
    if theta as f32 <= 1.0 || !(theta as f32).is_finite() {
        return Err(fields.bad("rope.freq_base", theta, "a number above 1, such as 10000"));
    }
    let scaling = match (scaling(fields)?, divisors(gguf, head_dim)?) {
        (scaling, None) => scaling,
        (RopeScaling::None, Some(divisors)) => RopeScaling::Divided { divisors },
        (_, Some(_)) => {
            let feature = format!("a rope.scaling.type beside the tensor `{ROPE_FREQS}`");
            return Err(fields.unsupported(feature, "one of the two is done here, and not both"));
        }
    };
    Ok(Rope { theta, scaling })
}

fn scaling(fields: Fields<'_>) -> Result<RopeScaling, ModelError> {
    // Old files have the factor alone.
    let old = fields.optional_positive("rope.scale_linear")?.filter(|&factor| factor != 1.0);
    let kind = match fields.text("rope.scaling.type")? {
        None if old.is_some() => "linear",
        kind => kind.unwrap_or("none"),
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" => {
            let factor = fields.optional_positive("rope.scaling.factor")?.or(old);
            let factor =
                factor.ok_or_else(|| fields.missing("rope.scaling.factor", "a number of at least 1"))?;
            match factor {
                1.0 => Ok(RopeScaling::None),
                1.0..=1e6 => Ok(RopeScaling::Linear { factor }),
                _ => Err(fields.bad("rope.scaling.factor", factor, "a number of at least 1")),
            }
        }
        other => {
            let hint = "supported are none, linear, and the tensor rope_freqs.weight";
            Err(fields.unsupported(format!("rope.scaling.type \"{other}\""), hint))
        }
    }
}

/// The divisors of the frequencies, one a pair; `None` where the file has none, or where all are 1.
fn divisors(gguf: &Gguf, head_dim: usize) -> Result<Option<Vec<f32>>, ModelError> {
    let Some((stored, bytes)) = gguf.stored(ROPE_FREQS) else { return Ok(None) };
    let pairs = head_dim / 2;
    if stored.kind != GgmlType::F32 || stored.shape != [pairs] {
        return Err(ModelError::BadGguf {
            path: gguf.path().to_owned(),
            reason: format!(
                "tensor `{ROPE_FREQS}` is {} of shape {:?}; expected F32 of shape {:?}, half a head",
                stored.kind,
                stored.shape,
                [pairs]
            ),
        });
    }
    let mut divisors = vec![0.0; pairs];
    stored.kind.dequantise(bytes, &mut divisors);
    if let Some(bad) = divisors.iter().find(|divisor| !(1e-6..=1e6).contains(*divisor)) {
        let reason = format!("tensor `{ROPE_FREQS}` divides a frequency by {bad}");
        return Err(ModelError::BadGguf { path: gguf.path().to_owned(), reason });
    }
    Ok(Some(divisors).filter(|divisors| divisors.iter().any(|&divisor| divisor != 1.0)))
}
