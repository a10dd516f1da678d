//! `config.json`, good and bad.

use super::*;

#[track_caller]
fn refused(changes: Value, words: &[&str]) {
    let message = complaint(parse(&tiny_config(changes.clone())));
    for word in words {
        assert!(message.contains(word), "{changes}: `{message}` lacks `{word}`");
    }
    assert!(message.contains("config.json"), "{message}");
}

#[test]
fn a_llama_config_gives_every_field() {
    let config = parse(&tiny_config(json!({}))).unwrap();
    let expected = ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: 12,
        hidden_size: 8,
        intermediate_size: 10,
        num_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 4,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        tie_word_embeddings: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        sliding_window: None,
        torch_dtype: Dtype::F32,
        eos_token_ids: vec![2],
        bos_token_id: Some(1),
    };
    assert_eq!(config, expected);
}

#[test]
fn each_architecture_has_its_biases_and_norms() {
    let of = |name: &str, more: Value| {
        let mut changes = json!({"architectures": [name]});
        for (field, value) in more.as_object().unwrap() {
            changes[field] = value.clone();
        }
        let c = parse(&tiny_config(changes)).unwrap();
        (c.qkv_bias, c.o_bias, c.mlp_bias, c.qk_norm)
    };
    let biased = json!({"attention_bias": true, "mlp_bias": true});
    let none = || json!({});
    assert_eq!(of("LlamaForCausalLM", none()), (false, false, false, false));
    assert_eq!(of("LlamaForCausalLM", biased.clone()), (true, true, true, false));
    assert_eq!(of("MistralForCausalLM", biased.clone()), (false, false, false, false));
    assert_eq!(of("Qwen2ForCausalLM", none()), (true, false, false, false));
    assert_eq!(of("Qwen3ForCausalLM", none()), (false, false, false, true));
    assert_eq!(of("Qwen3ForCausalLM", biased), (true, true, false, true));
}

#[test]
fn the_model_type_decides_where_architectures_is_missing() {
    let changes = json!({"architectures": null, "model_type": "qwen2"});
    let config = parse(&tiny_config(changes)).unwrap();
    assert_eq!(config.architecture, Architecture::Qwen2);
    refused(
        json!({"architectures": null, "model_type": "gpt2"}),
        &["gpt2", "LlamaForCausalLM", "Qwen3ForCausalLM"],
    );
    refused(json!({"architectures": [], "model_type": null}), &["architectures"]);
}

#[test]
fn an_unknown_architecture_is_named_with_the_known_ones() {
    refused(
        json!({"architectures": ["FalconForCausalLM"]}),
        &["FalconForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"],
    );
}

#[test]
fn the_spelling_of_transformers_5_means_the_same() {
    let old = json!({"rope_theta": 5e5, "torch_dtype": "bfloat16", "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 128}});
    let new = json!({"rope_theta": null, "torch_dtype": null, "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 5e5,
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 128}});
    let old = parse(&tiny_config(old)).unwrap();
    assert_eq!(old, parse(&tiny_config(new)).unwrap());
    assert_eq!(old.torch_dtype, Dtype::Bf16);
    assert_eq!(old.rope.theta, 5e5);
    let plain = json!({"rope_theta": null,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}});
    let plain = parse(&tiny_config(plain)).unwrap();
    assert_eq!(plain.rope.scaling, RopeScaling::None);
    assert_eq!(plain.rope.theta, 1e6);
}

#[test]
fn linear_scaling_is_read_under_its_old_name() {
    let changes = json!({"rope_scaling": {"type": "linear", "factor": 4.0}});
    let config = parse(&tiny_config(changes)).unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None };
    for (scaled, plain) in config.rope.inv_freq(8).iter().zip(plain.inv_freq(8)) {
        assert_eq!(*scaled, plain / 4.0);
    }
}

#[test]
fn rope_scalings_that_are_not_implemented_are_refused_by_name() {
    for kind in ["yarn", "dynamic", "longrope", "su"] {
        let scaling = json!({"rope_scaling": {"type": kind, "factor": 4.0}});
        refused(scaling, &[kind, "llama3"]);
    }
    refused(json!({"rope_scaling": {"factor": 4.0}}), &["rope_scaling.rope_type"]);
    refused(json!({"rope_scaling": {"type": "linear"}}), &["rope_scaling.factor"]);
    refused(json!({"rope_scaling": [1]}), &["rope_scaling"]);
    refused(
        json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
        &["rope_parameters.rope_type"],
    );
    refused(
        json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        &["partial_rotary_factor"],
    );
    refused(
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 128}}),
        &["high_freq_factor"],
    );
}

#[test]
fn a_sliding_window_limits_the_length() {
    let window = |name: &str, on: bool, width: Value| {
        let changes = json!({"architectures": [name], "use_sliding_window": on,
            "sliding_window": width});
        let config = parse(&tiny_config(changes)).unwrap();
        (config.max_position_embeddings, config.sliding_window)
    };
    assert_eq!(window("MistralForCausalLM", false, json!(16)), (16, Some(16)));
    assert_eq!(window("MistralForCausalLM", false, json!(4096)), (64, Some(4096)));
    assert_eq!(window("MistralForCausalLM", false, json!(null)), (64, None));
    assert_eq!(window("Qwen2ForCausalLM", false, json!(16)), (64, None));
    assert_eq!(window("Qwen3ForCausalLM", true, json!(16)), (16, Some(16)));
    refused(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 0}), &["sliding_window"]);
}

#[test]
fn the_head_width_comes_from_the_file_or_the_architecture() {
    let of = |changes: Value| parse(&tiny_config(changes)).unwrap().head_dim;
    assert_eq!(of(json!({})), 4);
    assert_eq!(of(json!({"head_dim": 6})), 6);
    assert_eq!(of(json!({"architectures": ["Qwen3ForCausalLM"]})), 128);
    refused(json!({"head_dim": 5}), &["head_dim", "even"]);
    refused(json!({"num_attention_heads": 3}), &["num_attention_heads"]);
}

#[test]
fn numbers_that_make_no_sense_are_refused_by_field() {
    for field in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ] {
        for value in [json!(0), json!(-1), json!(1.5), json!("8"), json!(1e18), json!([])] {
            refused(json!({field: value}), &[field]);
        }
    }
    for field in ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"] {
        refused(json!({field: null}), &[field]);
    }
    refused(json!({"num_attention_heads": 4, "num_key_value_heads": 3}), &["num_key_value_heads"]);
    for value in [json!(0), json!(-1), json!("NaN"), json!(1e300), json!(0.5)] {
        refused(json!({"rope_theta": value}), &["rope_theta"]);
    }
    for value in [json!(0), json!(-1e-6), json!(5), json!("x")] {
        refused(json!({"rms_norm_eps": value}), &["rms_norm_eps"]);
    }
    for field in ["eos_token_id", "bos_token_id"] {
        for value in [json!(-1), json!("x"), json!([1, -2]), json!(1u64 << 32)] {
            refused(json!({field: value}), &[field]);
        }
    }
    refused(json!({"tie_word_embeddings": "yes"}), &["tie_word_embeddings"]);
    refused(json!({"torch_dtype": "float8_e4m3fn"}), &["torch_dtype", "float8_e4m3fn"]);
}

#[test]
fn features_that_are_not_implemented_are_refused() {
    refused(json!({"hidden_act": "gelu"}), &["gelu", "silu"]);
    refused(json!({"quantization_config": {"bits": 4}}), &["quant"]);
    refused(json!({"partial_rotary_factor": 0.25}), &["partial_rotary_factor"]);
}

#[test]
fn text_that_is_no_json_object_is_refused_with_the_place() {
    let path = Path::new("some/config.json");
    for text in ["", "{", "[]", "7", "null", "{\"rope_theta\": NaN}", "\u{0}", "{} {}"] {
        let message = complaint(ModelConfig::parse(path, text.as_bytes()));
        assert!(message.contains("some/config.json"), "{message}");
    }
    let message = complaint(ModelConfig::parse(path, b"{\"rope_theta\": NaN}"));
    assert!(message.contains("line 1 column"), "{message}");
    complaint(ModelConfig::parse(path, &[0xff, 0xfe]));
}

#[test]
fn generation_config_names_the_end_tokens() {
    let mut config = parse(&tiny_config(json!({"bos_token_id": null}))).unwrap();
    let path = Path::new("generation_config.json");
    config.apply_generation_config(path, b"{}").unwrap();
    assert_eq!(config.eos_token_ids, [2]);
    let json = br#"{"eos_token_id": [3, 4], "bos_token_id": 0}"#;
    config.apply_generation_config(path, json).unwrap();
    assert_eq!(config.eos_token_ids, [3, 4]);
    assert_eq!(config.bos_token_id, Some(0));
    let message = complaint(config.apply_generation_config(path, br#"{"eos_token_id": "x"}"#));
    assert!(message.contains("generation_config.json"), "{message}");
}

#[test]
fn parameters_are_counted_as_published() {
    // TinyLlama 1.1B.
    let changes = json!({"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4});
    let config = parse(&tiny_config(changes)).unwrap();
    assert_eq!(config.num_parameters(), 1_100_048_384);
}

#[test]
fn dtype_names_are_read_in_both_lengths() {
    for (name, dtype) in [
        ("float32", Dtype::F32),
        ("F32", Dtype::F32),
        ("bf16", Dtype::Bf16),
        ("bfloat16", Dtype::Bf16),
        ("f16", Dtype::F16),
        ("float16", Dtype::F16),
    ] {
        assert_eq!(name.parse::<Dtype>().unwrap(), dtype);
    }
    assert!(complaint("int8".parse::<Dtype>()).contains("int8"));
}
