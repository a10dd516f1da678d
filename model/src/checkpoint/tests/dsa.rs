//! Models with sparse attention over latents: every field is honoured or refused by name, and fp8 weights are read exactly.

use super::*;

/// A small model with every kind of layer, with fields replaced (or, by null, taken away).
fn tiny(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "vocab_size": 12, "hidden_size": 24,
        "intermediate_size": 20, "moe_intermediate_size": 10, "num_hidden_layers": 3, "num_attention_heads": 2,
        "q_lora_rank": 14, "kv_lora_rank": 18, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
        "index_n_heads": 3, "index_head_dim": 8, "index_topk": 16, "first_k_dense_replace": 1, "n_routed_experts": 4,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "torch_dtype": "float32",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::String(absent) if absent == "absent" => drop(config.as_object_mut().unwrap().remove(name)),
            value => config[name] = value.clone(),
        }
    }
    config
}

fn glm(changes: Value) -> Value {
    let mut config = tiny(json!({"architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa"}));
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn dsa(config: &Value) -> DsaConfig {
    *parse(config).unwrap().dsa.unwrap()
}

#[track_caller]
fn refused(config: Value, words: &[&str]) {
    let message = complaint(parse(&config));
    for word in words {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
    assert!(message.contains("config.json"), "{message}");
}

#[test]
fn fields_are_read_and_those_that_are_missing_have_the_defaults_of_their_class() {
    let config = parse(&tiny(json!({}))).unwrap();
    let dsa = config.dsa.as_ref().unwrap();
    assert_eq!((dsa.latent_width(), dsa.qk_head_dim(), config.head_dim), (22, 10, 10));
    assert_eq!((dsa.index_heads, dsa.index_head_dim, dsa.index_topk), (3, 8, 16));
    assert!((dsa.softmax_scale - 10f32.powf(-0.5)).abs() < 1e-7 && !dsa.index_rope_interleaved);
    assert_eq!(dsa.index_sources, [0, 1, 2]);
    assert_eq!(dsa.expert_layers, [false, true, true]);
    let bare = |model_type: &str| {
        parse(&json!({"model_type": model_type, "index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128})).unwrap()
    };
    let deepseek = bare("deepseek_v32");
    let own = deepseek.dsa.as_ref().unwrap();
    assert_eq!((deepseek.num_layers, deepseek.num_heads, deepseek.vocab_size), (61, 128, 129_280));
    assert_eq!((own.q_lora_rank, own.kv_lora_rank, own.v_head_dim), (1536, 512, 128));
    assert_eq!((own.experts.count, own.experts.groups, own.experts.groups_kept), (256, 8, 4));
    assert_eq!((own.experts.per_token, own.experts.scale, deepseek.rms_norm_eps), (8, 2.5, 1e-6));
    let glm = bare("glm_moe_dsa");
    let own = glm.dsa.as_ref().unwrap();
    assert_eq!((glm.num_layers, glm.num_heads, glm.vocab_size, glm.rms_norm_eps), (78, 64, 154_880, 1e-5));
    assert_eq!((own.q_lora_rank, own.qk_nope_head_dim, own.v_head_dim), (2048, 192, 256));
    assert_eq!((own.experts.groups, own.experts.groups_kept), (1, 1));
    // Of the published shape: 671 billion parameters, without the layer for multi-token prediction.
    assert!((671.0..673.0).contains(&(deepseek.num_parameters() as f64 / 1e9)));
}

#[test]
fn yarn_changes_frequencies_and_the_softmax_scale() {
    let yarn = json!({"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 16});
    let config = parse(&tiny(json!({"rope_scaling": yarn}))).unwrap();
    let own = config.dsa.as_ref().unwrap();
    let m = 0.1 * 40f64.ln() + 1.0;
    assert!((f64::from(own.softmax_scale) - m * m / 10f64.sqrt()).abs() < 1e-7);
    assert_eq!(own.rotation_scale, 1.0);
    assert_ne!(config.rope.inv_freq(4), parse(&tiny(json!({}))).unwrap().rope.inv_freq(4));
    let with = |name: &str, value: Value| {
        let mut yarn = yarn.clone();
        yarn[name] = value;
        tiny(json!({"rope_scaling": yarn}))
    };
    // Without mscale_all_dim the scale is plain, and cosines and sines are larger.
    let other = dsa(&with("mscale_all_dim", Value::Null));
    assert!((f64::from(other.rotation_scale) - m).abs() < 1e-6);
    assert!((f64::from(other.softmax_scale) - 1.0 / 10f64.sqrt()).abs() < 1e-7);
    refused(with("truncate", json!(false)), &["truncate"]);
    refused(with("factor", json!(0.5)), &["factor"]);
    refused(with("original_max_position_embeddings", Value::Null), &["original_max_position_embeddings"]);
    let mut config = with("factor", json!(40));
    config["architectures"] = json!(["GlmMoeDsaForCausalLM"]);
    refused(config, &["yarn", "glm_moe_dsa", "mscale_all_dim"]);
    // Without that field all agree: cosines and sines are larger.
    let mut config = with("mscale_all_dim", Value::Null);
    config["architectures"] = json!(["GlmMoeDsaForCausalLM"]);
    let glm = dsa(&config);
    assert_eq!((glm.rotation_scale, glm.softmax_scale), (other.rotation_scale, other.softmax_scale));
}

#[test]
fn a_missing_or_odd_field_of_the_indexer_is_named() {
    for name in ["index_topk", "index_n_heads", "index_head_dim"] {
        refused(tiny(json!({name: "absent"})), &[name, "indexer"]);
        for odd in [json!(0), json!(-1), json!(1.5), json!("x")] {
            refused(tiny(json!({name: odd})), &[name]);
        }
    }
    refused(tiny(json!({"index_topk": 65})), &["index_topk", "65", "max_position_embeddings"]);
    refused(tiny(json!({"index_head_dim": 2})), &["index_head_dim", "qk_rope_head_dim"]);
    refused(tiny(json!({"indexer_rope_interleave": "yes"})), &["indexer_rope_interleave"]);
}

#[test]
fn what_would_change_the_result_and_is_not_done_is_refused_by_name() {
    let none = Value::Null;
    for (changes, word) in [
        (json!({"hidden_act": "gelu"}), "hidden_act"),
        (json!({"scoring_func": "softmax"}), "scoring_func"),
        (json!({"topk_method": "greedy"}), "topk_method"),
        (json!({"moe_layer_freq": 2}), "moe_layer_freq"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"rope_interleave": false}), "rope_interleave"),
        (json!({"index_kpool": 4}), "index_kpool"),
        (
            json!({"layer_types": ["linear_attention", "indexed_attention", "indexed_attention"]}),
            "linear_attention",
        ),
        (json!({"q_lora_rank": none}), "q_lora_rank"),
        (json!({"num_key_value_heads": 1}), "num_key_value_heads"),
        (json!({"qk_head_dim": 12}), "qk_head_dim"),
        (json!({"n_group": 3}), "n_group"),
        (json!({"n_group": 4}), "n_group"),
        (json!({"topk_group": 2}), "topk_group"),
        (json!({"num_experts_per_tok": 5}), "num_experts_per_tok"),
        (json!({"num_experts": 8}), "num_experts"),
        (json!({"mlp_layer_types": ["dense"]}), "mlp_layer_types"),
        (json!({"indexer_types": ["full", "shared", "full"]}), "indexer_types"),
        (json!({"quantization_config": {"quant_method": "awq", "bits": 4}}), "AWQ"),
        (json!({"quantization_config": {"quant_method": "fp8"}}), "weight_block_size"),
        (
            json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}}),
            "weight_block_size",
        ),
    ] {
        refused(tiny(changes), &[word]);
    }
    for (name, class) in [("deepseek_v4", "DeepseekV4ForCausalLM"), ("glm5_next", "Glm5NextForCausalLM")] {
        refused(tiny(json!({"architectures": [class], "model_type": name})), &[name]);
        refused(tiny(json!({"architectures": "absent", "model_type": name})), &[name]);
    }
}

#[test]
fn layers_share_indexers_by_types_pattern_or_frequency() {
    let sources = |changes: Value| dsa(&glm(changes)).index_sources;
    assert_eq!(sources(json!({})), [0, 1, 2]);
    assert_eq!(sources(json!({"indexer_types": ["full", "shared", "full"]})), [0, 0, 2]);
    assert_eq!(sources(json!({"index_topk_pattern": "FSS"})), [0, 0, 0]);
    assert_eq!(sources(json!({"index_topk_pattern": ["full", "full", "shared"]})), [0, 1, 1]);
    assert_eq!(
        sources(json!({"index_topk_pattern": "FSS", "indexer_types": ["full", "full", "full"]})),
        [0, 1, 2]
    );
    // Full where max(layer - offset + 1, 0) is a multiple of the frequency; the offset is 2 where it is not said.
    let eight = |changes: Value| {
        let mut config = glm(json!({"num_hidden_layers": 8}));
        for (name, value) in changes.as_object().unwrap() {
            config[name] = value.clone();
        }
        dsa(&config).index_sources
    };
    assert_eq!(eight(json!({"index_topk_freq": 4})), [0, 1, 1, 1, 1, 5, 5, 5]);
    assert_eq!(eight(json!({"index_topk_freq": 3, "index_skip_topk_offset": 1})), [0, 0, 0, 3, 3, 3, 6, 6]);
    refused(glm(json!({"index_topk_pattern": "FS"})), &["index_topk_pattern", "2 entries", "3 layers"]);
    refused(glm(json!({"index_topk_pattern": "FSX"})), &["index_topk_pattern", "FSX"]);
    refused(glm(json!({"indexer_types": ["shared", "full", "full"]})), &["indexer_types", "first layer"]);
    assert!(dsa(&glm(json!({}))).index_rope_interleaved, "a GLM without the field interleaves");
    assert!(!dsa(&glm(json!({"indexer_rope_interleave": false}))).index_rope_interleaved);
    assert!(dsa(&tiny(json!({"indexer_rope_interleave": true}))).index_rope_interleaved);
}

#[test]
fn every_tensor_is_demanded_and_none_is_left_out_in_silence() {
    let config = glm(json!({"indexer_types": ["full", "shared", "full"], "attention_bias": true}));
    let tensors = tiny_tensors(&parse(&config).unwrap());
    open(&config, file_of(&tensors)).unwrap();
    for name in tensors.keys() {
        let mut fewer = tensors.clone();
        fewer.remove(name);
        let message = complaint(open(&config, file_of(&fewer)));
        assert!(message.contains(name), "{name}: {message}");
    }
    let one = (StoredDtype::F32, vec![1], vec![0; 4]);
    for extra in [
        "model.layers.1.self_attn.indexer.wk.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.3.input_layernorm.weight",
    ] {
        let mut more = tensors.clone();
        more.insert(extra.to_owned(), one.clone());
        let message = complaint(open(&config, file_of(&more)));
        assert!(message.contains(extra), "{extra}: {message}");
    }
    let plain = glm(json!({"indexer_types": ["full", "shared", "full"]}));
    let message = complaint(open(&plain, file_of(&tensors)));
    assert!(message.contains("bias"), "{message}");
}

#[test]
fn layers_for_multi_token_prediction_are_left_out_and_counted() {
    let config = tiny(json!({"num_nextn_predict_layers": 1}));
    let mut tensors = tiny_tensors(&parse(&config).unwrap());
    assert_eq!(open(&config, file_of(&tensors)).unwrap().skipped_layers(), 0);
    for module in ["eh_proj", "input_layernorm", "embed_tokens"] {
        let name = format!("model.layers.3.{module}.weight");
        tensors.insert(name, (StoredDtype::F32, vec![1], vec![0; 4]));
    }
    assert_eq!(open(&config, file_of(&tensors)).unwrap().skipped_layers(), 1);
}

/// Numbers that look random.
fn bytes(count: usize, salt: u64) -> Vec<u8> {
    let mut state = salt;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let byte = (state >> 33) as u8;
            // Not the NaN of e4m3.
            if byte & 0x7f == 0x7f { byte & 0x80 | 0x7e } else { byte }
        })
        .collect()
}

/// An e4m3 number by its definition.
fn e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let size =
        if exponent == 0 { fraction * 2f32.powi(-6) } else { (1.0 + fraction) * 2f32.powi(exponent - 7) };
    if byte & 0x80 == 0 { size } else { -size }
}

#[test]
fn fp8_weights_are_those_of_a_dequantised_checkpoint_on_ragged_blocks_too() {
    for (block, powers) in [([4usize, 7usize], false), ([16, 16], true), ([128, 128], false), ([1, 3], true)]
    {
        let format = if powers { json!("ue8m0") } else { Value::Null };
        let quantised =
            tiny(json!({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": format,
            "activation_scheme": "dynamic", "weight_block_size": block}}));
        let parsed = parse(&quantised).unwrap();
        let plain = tiny_tensors(&parsed);
        let (mut small, mut wide) = (plain.clone(), plain.clone());
        for (i, (name, (_, shape, _))) in plain.iter().enumerate() {
            let projection =
                name.ends_with("proj.weight") || name.ends_with("wk.weight") || name.ends_with("wq_b.weight");
            let &[rows, columns] = &shape[..] else { continue };
            if !projection || name.ends_with("weights_proj.weight") {
                continue;
            }
            let values = bytes(rows * columns, i as u64);
            let (down, across) = (rows.div_ceil(block[0]), columns.div_ceil(block[1]));
            // Powers of two are stored as their exponents, E8M0.
            let exponents: Vec<u8> = (0..down * across).map(|j| (112 + j * 7 % 11) as u8).collect();
            let scales: Vec<f32> = match powers {
                true => exponents.iter().map(|&exponent| 2f32.powi(i32::from(exponent) - 127)).collect(),
                false => (0..down * across).map(|j| 0.001 * (1 + j * 7 % 11) as f32).collect(),
            };
            let mut all = Vec::new();
            for r in 0..rows {
                for c in 0..columns {
                    let scale = scales[r / block[0] * across + c / block[1]];
                    all.extend((e4m3(values[r * columns + c]) * scale).to_le_bytes());
                }
            }
            wide.insert(name.clone(), (StoredDtype::F32, shape.clone(), all));
            small.insert(name.clone(), (StoredDtype::F8_E4M3, shape.clone(), values));
            let scales = match powers {
                true => (StoredDtype::F8_E8M0, vec![down, across], exponents),
                false => {
                    let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                    (StoredDtype::F32, vec![down, across], bytes)
                }
            };
            small.insert(format!("{name}_scale_inv"), scales);
        }
        let (small_file, wide_file) = (file_of(&small), file_of(&wide));
        let quantised_model = open(&quantised, small_file).unwrap();
        let plain_model = open(&tiny(json!({})), wide_file).unwrap();
        for (name, shape) in parsed.tensors() {
            let (a, b) =
                (quantised_model.tensor(&name, &shape).unwrap(), plain_model.tensor(&name, &shape).unwrap());
            let bits =
                |t: &Tensor<'_>| t.to_vec_f32().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&a), bits(&b), "{name} in blocks of {block:?}");
        }
        // Without its scales a weight means nothing.
        let scales = "model.layers.0.self_attn.q_a_proj.weight_scale_inv";
        let mut fewer = small.clone();
        fewer.remove(scales);
        let message = complaint(open(&quantised, file_of(&fewer)));
        assert!(message.contains(scales) || message.contains("FP8"), "{message}");
        // A configuration that does not speak of fp8 does not read it.
        assert!(open(&tiny(json!({})), file_of(&small)).is_err());
    }
}

#[test]
fn the_number_of_keys_can_be_set_within_the_models_positions() {
    let config = parse(&tiny(json!({}))).unwrap();
    let mut checkpoint = Checkpoint::dummy(config, 1);
    let before = checkpoint.fingerprint();
    checkpoint.set_index_topk(64).unwrap();
    assert_eq!(checkpoint.config().dsa.as_ref().unwrap().index_topk, 64);
    assert_ne!(checkpoint.fingerprint(), before, "what is chosen changes the KV of later layers");
    for keys in [0, 65] {
        assert!(complaint(checkpoint.set_index_topk(keys)).contains("64 positions"));
    }
    // So does how keys are cached: blocks of one way must not be found by another.
    let fp8 = |hadamard| IndexKeys::Fp8 { hadamard };
    let names = [IndexKeys::Plain, fp8(false), fp8(true)].map(|keys| {
        checkpoint.set_index_keys(keys).unwrap();
        checkpoint.fingerprint().to_string()
    });
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
    checkpoint.config.dsa.as_mut().unwrap().index_head_dim = 12;
    assert!(complaint(checkpoint.set_index_keys(fp8(true))).contains("power of two"));
    let mut dense = Checkpoint::dummy(parse(&tiny_config(json!({}))).unwrap(), 1);
    assert!(complaint(dense.set_index_topk(4)).contains("not sparse"));
    assert!(complaint(dense.set_index_keys(fp8(false))).contains("not sparse"));
}
