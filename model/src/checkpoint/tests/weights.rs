//! Reading weights: types, rows, ties, shards.

use super::*;

fn tied() -> Value {
    tiny_config(json!({"tie_word_embeddings": true}))
}

fn untied_bytes() -> (Value, Tensors) {
    let config = tiny_config(json!({}));
    let tensors = tiny_tensors(&parse(&config).unwrap());
    (config, tensors)
}

/// Writes the tensors as two shards and an index, with one file too many beside them.
fn write_sharded(dir: &Scratch, config: &Value, tensors: &Tensors) {
    let (mut first, mut second) = (Tensors::new(), Tensors::new());
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        let (shard, file) = match i % 3 {
            0 => (&mut first, "model-00001-of-00002.safetensors"),
            _ => (&mut second, "model-00002-of-00002.safetensors"),
        };
        shard.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), json!(file));
    }
    dir.write("config.json", config.to_string().as_bytes());
    dir.write("model-00001-of-00002.safetensors", &file_of(&first));
    dir.write("model-00002-of-00002.safetensors", &file_of(&second));
    dir.write("consolidated.safetensors", b"junk that nobody reads");
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    dir.write("model.safetensors.index.json", index.to_string().as_bytes());
}

#[test]
fn rows_of_all_three_types_are_read_exactly() {
    let config = tiny_config(json!({}));
    let shape = parse(&config).unwrap().embedding_shape();
    let values: Vec<f32> = (0..96).map(|i| (i as f32 - 40.0) / 32.0).collect();
    let half = |value: f32| half::f16::from_f32(value).to_bits().to_le_bytes();
    let brain = |value: f32| half::bf16::from_f32(value).to_bits().to_le_bytes();
    let stored: [(StoredDtype, Dtype, Vec<u8>); 3] = [
        (StoredDtype::F32, Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        (StoredDtype::F16, Dtype::F16, values.iter().flat_map(|v| half(*v)).collect()),
        (StoredDtype::BF16, Dtype::Bf16, values.iter().flat_map(|v| brain(*v)).collect()),
    ];
    for (as_stored, dtype, bytes) in stored {
        let (_, mut tensors) = untied_bytes();
        let tensor = (as_stored, shape.clone(), bytes.clone());
        tensors.insert(EMBED_TOKENS.to_owned(), tensor);
        let checkpoint = open(&config, file_of(&tensors)).unwrap();
        let embedding = checkpoint.embedding().unwrap();
        assert_eq!((embedding.rows(), embedding.row_len()), (12, 8));
        assert_eq!(embedding.dtype(), dtype);
        assert_eq!(embedding.to_vec_f32().unwrap(), values);
        assert_eq!(embedding.raw().unwrap(), bytes);
        let mut row = [0.0; 8];
        embedding.read_row(11, &mut row).unwrap();
        assert_eq!(row, values[88..]);
        assert_eq!(embedding.raw_row(11).unwrap(), &bytes[88 * dtype.size()..]);
        assert!(embedding.raw_row(12).is_none());
        assert!(complaint(embedding.read_row(12, &mut row)).contains("row 12"));
        assert!(complaint(embedding.read_row(0, &mut row[..7])).contains("length 7"));
    }
}

#[test]
fn a_vector_is_one_row() {
    let (config, tensors) = untied_bytes();
    let checkpoint = open(&config, file_of(&tensors)).unwrap();
    let norm = checkpoint.final_norm().unwrap();
    assert_eq!((norm.rows(), norm.row_len()), (1, 8));
    assert_eq!(norm.to_vec_f32().unwrap().len(), 8);
}

#[test]
fn a_tied_matrix_is_found_under_either_name() {
    let config = tied();
    let tensors = tiny_tensors(&parse(&config).unwrap());
    let mut renamed = tensors.clone();
    let matrix = renamed.remove(EMBED_TOKENS).unwrap();
    renamed.insert(LM_HEAD.to_owned(), matrix);
    for tensors in [&tensors, &renamed] {
        let checkpoint = open(&config, file_of(tensors)).unwrap();
        let embedding = checkpoint.embedding().unwrap().to_vec_f32().unwrap();
        let head = checkpoint.lm_head().unwrap().to_vec_f32().unwrap();
        assert_eq!(embedding, head);
    }
    let mut neither = tensors.clone();
    neither.remove(EMBED_TOKENS);
    assert!(complaint(open(&config, file_of(&neither))).contains(EMBED_TOKENS));
}

#[test]
fn untied_matrices_must_both_be_there() {
    for name in [EMBED_TOKENS, LM_HEAD] {
        let (config, mut tensors) = untied_bytes();
        tensors.remove(name);
        assert!(complaint(open(&config, file_of(&tensors))).contains(name));
    }
}

#[test]
fn biases_are_read_where_the_config_has_them() {
    let config = tiny_config(json!({"architectures": ["Qwen2ForCausalLM"]}));
    let tensors = tiny_tensors(&parse(&config).unwrap());
    let checkpoint = open(&config, file_of(&tensors)).unwrap();
    let bias = checkpoint.bias(1, Part::K).unwrap().unwrap();
    assert_eq!(bias.shape(), [4]);
    assert!(checkpoint.bias(1, Part::O).unwrap().is_none());
}

#[test]
fn shards_hold_the_same_model_as_one_file() {
    let (config, tensors) = untied_bytes();
    let dir = Scratch::new();
    write_sharded(&dir, &config, &tensors);
    let sharded = Checkpoint::open(&dir.0).unwrap();
    let whole = open(&config, file_of(&tensors)).unwrap();
    for (name, shape) in whole.config().tensors() {
        let one = whole.tensor(&name, &shape).unwrap();
        assert_eq!(one.raw(), sharded.tensor(&name, &shape).unwrap().raw());
    }
}

#[test]
fn a_reference_checkpoint_cut_into_shards_is_the_same_model() {
    let Some(source) = shared("reference/qwen3/untied") else {
        return;
    };
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, view): (String, TensorView<'_>)| {
        let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        (name, tensor)
    };
    let tensors: Tensors = file.tensors().into_iter().map(owned).collect();
    let config = std::fs::read(source.join("config.json")).unwrap();
    let dir = Scratch::new();
    write_sharded(&dir, &serde_json::from_slice(&config).unwrap(), &tensors);
    let whole = Checkpoint::open(&source).unwrap();
    let sharded = Checkpoint::open(&dir.0).unwrap();
    for (name, shape) in whole.config().tensors() {
        let one = whole.tensor(&name, &shape).unwrap();
        assert_eq!(one.raw(), sharded.tensor(&name, &shape).unwrap().raw());
    }
}

#[test]
fn one_whole_file_wins_over_an_index() {
    let (config, tensors) = untied_bytes();
    let dir = Scratch::new();
    dir.write("config.json", config.to_string().as_bytes());
    dir.write("model.safetensors", &file_of(&tensors));
    dir.write("model.safetensors.index.json", b"not even json");
    Checkpoint::open(&dir.0).unwrap();
}

#[test]
fn rows_are_read_by_many_threads_at_once() {
    let (config, tensors) = untied_bytes();
    let checkpoint = open(&config, file_of(&tensors)).unwrap();
    let tensor = checkpoint.weight(1, Part::Gate).unwrap();
    let whole = tensor.to_vec_f32().unwrap();
    std::thread::scope(|scope| {
        for start in 0..2 {
            let (tensor, whole) = (&tensor, &whole);
            scope.spawn(move || {
                let mut row = [0.0; 8];
                for r in (start..10).step_by(2) {
                    tensor.read_row(r, &mut row).unwrap();
                    assert_eq!(row, whole[r * 8..][..8]);
                }
            });
        }
    });
}
