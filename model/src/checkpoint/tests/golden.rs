//! The reference checkpoints and the real small model.

use super::*;

const REFERENCES: [&str; 4] =
    ["llama/plain-tied", "llama/llama3rope-untied", "qwen3/tied-headdim32", "qwen3/untied"];

fn f32s(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.map(|four| f32::from_le_bytes(*four)).collect()
}

#[test]
fn the_reference_checkpoints_open_with_every_tensor() {
    for name in REFERENCES {
        let Some(dir) = shared(&format!("reference/{name}")) else {
            return;
        };
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let config = checkpoint.config();
        assert_eq!(config.vocab_size, 512, "{name}");
        assert_eq!(config.eos_token_ids, [509], "{name}");
        let mut parameters = 0;
        for (tensor, shape) in config.tensors() {
            let values = checkpoint.tensor(&tensor, &shape).unwrap().to_vec_f32();
            let values = values.unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{tensor}");
            parameters += values.len() as u64;
        }
        assert_eq!(parameters, config.num_parameters(), "{name}");
        checkpoint.tokenizer().unwrap();
    }
}

#[test]
fn rope_frequencies_are_those_of_transformers() {
    for name in REFERENCES {
        let Some(dir) = shared(&format!("reference/{name}")) else {
            return;
        };
        let config = ModelConfig::open(&dir).unwrap();
        let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let expected = f32s(file.tensor("inv_freq").unwrap().data());
        let found = config.rope.inv_freq(config.head_dim);
        assert_eq!(found.len(), expected.len());
        let mut worst = 0.0f32;
        for (found, expected) in found.iter().zip(&expected) {
            worst = worst.max((found - expected).abs() / expected);
        }
        println!("{name}: {worst:e}");
        assert!(worst <= 1.2e-7, "{name}: off by {worst:e} relative");
    }
}

#[test]
fn transformers_5_writes_the_same_rope_under_other_names() {
    for name in REFERENCES {
        let Some(dir) = shared(&format!("reference/{name}")) else {
            return;
        };
        let old = std::fs::read(dir.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&old).unwrap();
        let expected = std::fs::read(dir.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let parameters = expected["transformers5_rope_parameters"].clone();
        assert!(parameters.is_object(), "{name}");
        let object = config.as_object_mut().unwrap();
        object.remove("rope_theta");
        object.remove("rope_scaling");
        let dtype = object.remove("torch_dtype").unwrap();
        object.insert("dtype".to_owned(), dtype);
        object.insert("rope_parameters".to_owned(), parameters);
        assert_eq!(parse(&config).unwrap(), ModelConfig::open(&dir).unwrap());
    }
}

#[test]
fn a_tied_matrix_may_be_stored_as_the_head_only() {
    let Some(dir) = shared("models/tinystories-656k") else {
        return;
    };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert!(checkpoint.config().tie_word_embeddings);
    assert!(!checkpoint.has(EMBED_TOKENS));
    let embedding = checkpoint.embedding().unwrap();
    assert_eq!(embedding.shape(), [2048, 128]);
    assert_eq!(embedding.raw(), checkpoint.lm_head().unwrap().raw());
    assert_eq!(checkpoint.config().bos_token_id, Some(1));
    assert_eq!(checkpoint.config().eos_token_ids, [2]);
}
