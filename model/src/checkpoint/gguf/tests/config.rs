//! Metadata into a configuration.

use super::*;
use crate::checkpoint::{Architecture, RopeScaling};

fn config(writer: &Writer) -> ModelConfig {
    read(writer).unwrap().config().unwrap()
}

#[test]
fn other_architectures_are_named() {
    for found in ["gemma3", "phi3", "qwen3moe", "llama4", ""] {
        let mut writer = tiny();
        writer.set("general.architecture", found);
        refused(&writer, &[&format!("architecture {found}"), "llama, qwen2, qwen3"]);
    }
    let mut writer = tiny();
    writer.set("general.architecture", 3);
    refused(&writer, &["general.architecture"]);
    writer.remove("general.architecture");
    refused(&writer, &["no field `general.architecture`"]);
}

#[test]
fn keys_that_a_model_cannot_do_without_are_named() {
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ] {
        let mut writer = tiny();
        writer.remove(&format!("llama.{key}"));
        refused(&writer, &[&format!("no field `llama.{key}`")]);
    }
}

#[test]
fn keys_that_make_no_sense_are_named_with_what_was_expected() {
    for (key, value, word) in [
        ("block_count", Value::U32(0), "whole number"),
        ("block_count", Value::U32(u32::MAX), "whole number"),
        ("block_count", "two".into(), "whole number"),
        ("attention.head_count", Value::I32(-2), "whole number"),
        ("attention.head_count_kv", Value::I32s(vec![1, 1]), "a list of 2 values"),
        ("attention.head_count_kv", Value::U32(3), "divisor"),
        ("attention.key_length", Value::U32(3), "even number"),
        ("attention.value_length", Value::U32(8), "not supported"),
        ("rope.dimension_count", Value::U32(2), "not supported"),
        ("attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "finite number"),
        ("attention.layer_norm_rms_epsilon", Value::F32(0.5), "small number"),
        ("rope.freq_base", Value::F32(0.5), "above 1"),
        ("rope.freq_base", Value::F32(f32::INFINITY), "finite number"),
        ("vocab_size", Value::U32(13), "12 rows"),
        ("expert_count", Value::U32(8), "not supported"),
        ("attention.causal", Value::Bool(false), "not supported"),
        ("attention.sliding_window", Value::U32(32), "not supported"),
        ("logit_scale", Value::F32(0.5), "not supported"),
        ("rope.scaling.type", "yarn".into(), "\"yarn\""),
        ("rope.scaling.type", "linear".into(), "no field `llama.rope.scaling.factor`"),
    ] {
        let mut writer = tiny();
        writer.set(&format!("llama.{key}"), value);
        refused(&writer, &[word]);
        if !word.starts_with("no field") {
            refused(&writer, &[key]);
        }
    }
}

#[test]
fn keys_that_change_nothing_are_accepted() {
    let plain = config(&tiny());
    for (key, value) in [
        ("vocab_size", Value::U32(12)),
        ("expert_count", Value::U32(0)),
        ("attention.causal", Value::Bool(true)),
        ("attention.sliding_window", Value::U32(64)),
        ("attention.value_length", Value::U32(4)),
        ("rope.scaling.type", "none".into()),
        ("rope.scale_linear", Value::F32(1.0)),
    ] {
        let mut writer = tiny();
        writer.set(&format!("llama.{key}"), value);
        assert_eq!(config(&writer), plain, "{key}");
    }
}

#[test]
fn what_a_file_leaves_out_has_llama_cpps_defaults() {
    let mut writer = tiny_of(json!({"num_key_value_heads": 2}));
    let plain = config(&writer);
    for key in ["attention.head_count_kv", "attention.key_length", "rope.dimension_count", "rope.freq_base"] {
        writer.remove(&format!("llama.{key}"));
        assert_eq!(config(&writer), plain, "{key}");
    }
    assert_eq!(plain.architecture, Architecture::Llama);
}

#[test]
fn linear_scaling_is_read_in_both_spellings() {
    for keys in [
        vec![("rope.scaling.type", Value::from("linear")), ("rope.scaling.factor", Value::F32(4.0))],
        vec![("rope.scale_linear", Value::F32(4.0))],
    ] {
        let mut writer = tiny();
        for (key, value) in keys {
            writer.set(&format!("llama.{key}"), value);
        }
        assert_eq!(config(&writer).rope.scaling, RopeScaling::Linear { factor: 4.0 });
    }
}

/// What llama.cpp's converter writes for Llama 3.1: the divisor of each frequency.
fn divisors(theta: f32, dim: usize, factor: f32, low: f32, high: f32, original: f32) -> Vec<f32> {
    let of = |i: usize| {
        let frequency = 1.0 / theta.powf((2 * i) as f32 / dim as f32);
        let wave = 2.0 * std::f32::consts::PI / frequency;
        if wave < original / high {
            1.0
        } else if wave > original / low {
            factor
        } else {
            let smooth = (original / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..dim / 2).map(of).collect()
}

#[test]
fn divisors_of_frequencies_are_llama_3s_scaling() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let json = tiny_config(json!({"rope_theta": 500000.0, "rope_scaling": scaling, "head_dim": 64}));
    let parsed = parse(&json).unwrap();
    let mut writer = of_model(&json, &tiny_tensors(&parsed));
    let bytes = divisors(500_000.0, 64, 8.0, 1.0, 4.0, 8192.0).iter().flat_map(|d| d.to_le_bytes()).collect();
    writer.tensor("rope_freqs.weight", &[32], writer::F32, bytes);
    checkpoint(&writer).unwrap();
    let ours = config(&writer);
    assert!(matches!(ours.rope.scaling, RopeScaling::Divided { .. }));
    let (ours, theirs) = (ours.rope.inv_freq(64), parsed.rope.inv_freq(64));
    let plain =
        Gguf::config(&read(&of_model(&json, &tiny_tensors(&parsed))).unwrap()).unwrap().rope.inv_freq(64);
    for ((ours, theirs), plain) in ours.iter().zip(&theirs).zip(&plain) {
        assert!((ours / theirs - 1.0).abs() < 1e-6, "{ours} {theirs}");
        assert!(ours <= plain);
    }
    assert!(ours[31] < plain[31] / 7.9);
    writer.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 2.0);
    refused(&writer, &["rope.scaling.type", "rope_freqs.weight"]);
}

#[test]
fn divisors_that_make_no_sense_are_refused_and_those_of_1_are_none() {
    let with = |values: &[f32]| {
        let mut writer = tiny();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.tensor("rope_freqs.weight", &[values.len()], writer::F32, bytes);
        writer
    };
    assert_eq!(config(&with(&[1.0, 1.0])), config(&tiny()));
    refused(&with(&[1.0]), &["rope_freqs.weight", "[2]"]);
    refused(&with(&[1.0, 0.0]), &["rope_freqs.weight", "by 0"]);
    refused(&with(&[1.0, f32::NAN]), &["rope_freqs.weight", "NaN"]);
}
