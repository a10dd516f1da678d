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
        windows: vec![None; 2],
        torch_dtype: Dtype::F32,
        int8_weights: false,
        eos_token_ids: vec![2],
        bos_token_id: Some(1),
        dsa: None,
        mask_token_id: None,
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
fn rope_scaling_wins_over_rope_parameters_and_their_theta_over_the_one_outside() {
    let both = json!({"rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 7e5}});
    let rope = parse(&tiny_config(both)).unwrap().rope;
    assert_eq!(rope, Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.0 } });
    let inner = json!({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 7e5}});
    assert_eq!(parse(&tiny_config(inner)).unwrap().rope.theta, 7e5);
}

#[test]
fn a_llama3_scaling_starts_from_the_length_that_the_file_names_somewhere() {
    let of = |inner: Value, outer: Value| {
        let changes = json!({"original_max_position_embeddings": outer, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": inner}});
        parse(&tiny_config(changes)).map(|config| config.rope.scaling)
    };
    let expected = |length: usize| RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: length,
    };
    assert_eq!(of(json!(128), json!(null)).unwrap(), expected(128));
    assert_eq!(of(json!(null), json!(32)).unwrap(), expected(32));
    assert_eq!(of(json!(null), json!(null)).unwrap(), expected(64));
    let message = complaint(of(json!(128), json!(32)));
    assert!(message.contains("original_max_position_embeddings") && message.contains("32"), "{message}");
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
        json!({"rope_scaling": {"rope_type": "llama3", "type": "linear", "factor": 8.0}}),
        &["rope_scaling.type", "linear", "llama3"],
    );
    refused(
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 128}}),
        &["high_freq_factor"],
    );
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
    for field in
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"]
    {
        refused(json!({field: null}), &[field, "null"]);
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
    for (field, value) in [
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("clip_qkv", json!(8)),
        ("attention_chunk_size", json!(8192)),
        ("attention_multiplier", json!(0.0078)),
        ("embedding_multiplier", json!(12)),
        ("residual_multiplier", json!(0.22)),
        ("logits_scaling", json!(8)),
        ("logit_scale", json!("x")),
        ("is_causal", json!(false)),
    ] {
        refused(json!({field: value}), &[field, &value.to_string()]);
    }
}

#[test]
fn fields_that_change_nothing_are_not_looked_at() {
    let plain = parse(&tiny_config(json!({}))).unwrap();
    for changes in [
        json!({"attn_logit_softcapping": null, "logits_scaling": 1, "residual_multiplier": 1.0, "is_causal": true}),
        json!({"attention_dropout": 0.5, "pretraining_tp": 4, "use_cache": false, "initializer_range": 9}),
        json!({"sliding_window": "x", "use_sliding_window": 7, "max_window_layers": -1}),
        json!({"rope_scaling": {}, "rope_parameters": {"rope_theta": 1e4}}),
        json!({"rope_scaling": {"rope_type": "default", "type": "default"}, "original_max_position_embeddings": 7}),
    ] {
        assert_eq!(parse(&tiny_config(changes.clone())).unwrap(), plain, "{changes}");
    }
}

#[test]
fn what_a_file_leaves_out_is_what_transformers_classes_have() {
    let of = |class: &str| {
        let config = json!({"architectures": [class]});
        let c = parse(&config).unwrap();
        let ends = (c.bos_token_id, c.eos_token_ids.clone());
        assert_eq!((c.hidden_size, c.num_layers, c.num_heads, c.head_dim), (4096, 32, 32, 128), "{class}");
        assert_eq!((c.rms_norm_eps, c.rope.theta, c.tie_word_embeddings), (1e-6, 10_000.0, false), "{class}");
        assert_eq!((c.qkv_bias, c.o_bias, c.mlp_bias), (class.starts_with("Qwen2"), false, false), "{class}");
        assert_eq!(c.rope.scaling, RopeScaling::None, "{class}");
        (c.vocab_size, c.intermediate_size, c.num_kv_heads, c.max_position_embeddings, ends)
    };
    let llama = (Some(1), vec![2]);
    assert_eq!(of("LlamaForCausalLM"), (32_000, 11_008, 32, 2048, llama.clone()));
    assert_eq!(of("MistralForCausalLM"), (32_000, 14_336, 8, 131_072, llama));
    assert_eq!(of("Qwen2ForCausalLM"), (151_936, 22_016, 32, 32_768, (None, vec![])));
    assert_eq!(of("Qwen3ForCausalLM"), (151_936, 22_016, 32, 32_768, (None, vec![])));
    let endless = json!({"architectures": ["LlamaForCausalLM"], "eos_token_id": null, "bos_token_id": null});
    let endless = parse(&endless).unwrap();
    assert_eq!((endless.eos_token_ids, endless.bos_token_id), (vec![], None));
}

#[test]
fn kv_heads_that_are_null_are_as_many_as_heads_and_absent_ones_the_class_default() {
    let of = |class: &str, config: &Value| {
        let mut config = config.clone();
        config["architectures"] = json!([class]);
        parse(&config)
    };
    let null = tiny_config(json!({"num_key_value_heads": null, "num_attention_heads": 4}));
    let mut absent = tiny_config(json!({"num_attention_heads": 64, "head_dim": 8}));
    absent.as_object_mut().unwrap().remove("num_key_value_heads");
    for (class, default) in [("Llama", 64), ("Mistral", 8), ("Qwen2", 32), ("Qwen3", 32)] {
        let class = format!("{class}ForCausalLM");
        assert_eq!(of(&class, &null).unwrap().num_kv_heads, 4, "{class}");
        assert_eq!(of(&class, &absent).unwrap().num_kv_heads, default, "{class}");
    }
    absent["num_attention_heads"] = json!(4);
    let message = complaint(of("MistralForCausalLM", &absent));
    assert!(message.contains("num_key_value_heads") && message.contains("default"), "{message}");
}

#[test]
fn quantised_checkpoints_are_named_by_their_tool() {
    for (field, value, words) in [
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128}),
            ["GPTQ", "4 bits"],
        ),
        ("quantization_config", json!({"quant_method": "awq", "bits": 4}), ["AWQ", "4 bits"]),
        ("quantization_config", json!({"quant_method": "fp8", "fmt": "e4m3"}), ["FP8", "bfloat16"]),
        ("quantization_config", json!({"load_in_4bit": true}), ["bitsandbytes", "bfloat16"]),
        ("quantization_config", json!({"quant_method": "bitsandbytes"}), ["bitsandbytes", "bfloat16"]),
        ("quantization_config", json!({"quant_method": "quark"}), ["quark", "bfloat16"]),
        ("quantization_config", json!("?"), ["quantised", "bfloat16"]),
        (
            "compression_config",
            json!({"quant_method": "compressed-tensors"}),
            ["compressed-tensors", "bfloat16"],
        ),
        ("quantization", json!({"group_size": 64, "bits": 4}), ["MLX", "4 bits"]),
        ("quantization_config", json!({"group_size": 64, "bits": 8}), ["MLX", "8 bits"]),
    ] {
        refused(json!({field: value}), &[field, words[0], words[1]]);
    }
    parse(&tiny_config(json!({"quantization_config": null, "quantization": null}))).unwrap();
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
