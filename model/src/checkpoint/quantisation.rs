//! Quantised checkpoints, named by the tool that made them.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::int8;
use crate::error::ModelError;

const HINT: &str = "use the float32, float16 or bfloat16 checkpoint that it was made from";

/// Refuses a configuration that speaks of quantised weights, but for those that [are read](int8).
pub(super) fn refuse(fields: Fields<'_>) -> Result<(), ModelError> {
    if int8::is_in(fields)? {
        return Ok(());
    }
    for name in ["quantization_config", "compression_config", "quantization"] {
        let Some(value) = fields.get(name) else { continue };
        let nothing = Map::new();
        let object = value.as_object().unwrap_or(&nothing);
        let bits = ["bits", "w_bit"].into_iter().find_map(|name| object.get(name)?.as_u64());
        let bits = bits.map_or(String::new(), |bits| format!(" to {bits} bits"));
        let feature = match method(object) {
            Some(tool) => format!("a checkpoint quantised by {tool}{bits} ({name})"),
            None => format!("a quantised checkpoint ({name})"),
        };
        return Err(fields.unsupported(feature, HINT));
    }
    Ok(())
}

/// Which tool a configuration's words are those of.
fn method(object: &Map<String, Value>) -> Option<&str> {
    if let Some(method) = object.get("quant_method") {
        return Some(match method.as_str()? {
            "gptq" => "GPTQ",
            "awq" => "AWQ",
            "fp8" | "fbgemm_fp8" => "FP8",
            other => other,
        });
    }
    let has = |name: &str| object.contains_key(name);
    match () {
        () if has("load_in_4bit") || has("load_in_8bit") => Some("bitsandbytes"),
        () if has("group_size") && has("bits") => Some("MLX"),
        () => None,
    }
}

/// The tool that left tensors of these names, where one is known by them.
pub(super) fn by_tensors<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<&'static str> {
    // GPTQ and AWQ have scales as well, and compressed-tensors has FP8's.
    const MARKS: [(&str, &str); 10] = [
        (".weight_packed", "compressed-tensors"),
        (".g_idx", "GPTQ"),
        (".qweight", "GPTQ or AWQ"),
        (".weight_scale_inv", "FP8"),
        (".weight_scale", "FP8"),
        (".absmax", "bitsandbytes"),
        (".quant_map", "bitsandbytes"),
        (".SCB", "bitsandbytes"),
        (".scales", "MLX"),
        (".biases", "MLX"),
    ];
    // By the mark first, for the marks are in the order of what they prove.
    MARKS.into_iter().find(|(mark, _)| names.clone().any(|name| name.ends_with(mark))).map(|(_, tool)| tool)
}

/// What is said of weights of which [`by_tensors`] knows the tool.
pub(super) fn quantised_by(tool: &str) -> (String, &'static str) {
    (format!("a checkpoint quantised by {tool}, by the names of its tensors"), HINT)
}
