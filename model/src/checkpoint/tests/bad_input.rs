//! Damaged, lying and incomplete files: a clear error each, never a panic.

use proptest::prelude::*;

use super::*;

fn good() -> (Value, Tensors) {
    let config = tiny_config(json!({}));
    let tensors = tiny_tensors(&parse(&config).unwrap());
    (config, tensors)
}

/// A file with the given header text and that many bytes of data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[track_caller]
fn refused(file: Vec<u8>, words: &[&str]) {
    let message = complaint(open(&good().0, file));
    assert!(message.contains("model.safetensors"), "{message}");
    for word in words {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let (config, tensors) = good();
    let whole = file_of(&tensors);
    open(&config, whole.clone()).unwrap();
    for length in (0..600).chain((600..whole.len()).step_by(97)).chain([whole.len() - 1]) {
        refused(whole[..length].to_vec(), &[]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    refused(longer, &[&(whole.len() + 1).to_string(), &whole.len().to_string()]);
    let length = whole.len() - 5;
    refused(whole[..length].to_vec(), &[&length.to_string(), &whole.len().to_string()]);
}

#[test]
fn a_mapped_file_that_is_cut_is_refused_by_its_path() {
    let (config, tensors) = good();
    let whole = file_of(&tensors);
    for length in [0, 3, 8, 100, whole.len() - 1] {
        let dir = Scratch::new();
        dir.write("config.json", config.to_string().as_bytes());
        dir.write("model.safetensors", &whole[..length]);
        let message = complaint(Checkpoint::open(&dir.0));
        let path = dir.0.join("model.safetensors");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let tensor = |dtype: &str, shape: &str, from: i64, to: i64| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    refused(with_header(&tensor("F32", "[2]", 0, 800), 8), &["damaged", "`a`", "[2]"]);
    refused(with_header(&tensor("F32", "[200]", 0, 800), 8), &["damaged", "broken download"]);
    refused(with_header(&tensor("F32", "[2]", 0, 4), 4), &["damaged", "`a`", "[2]"]);
    refused(with_header(&tensor("F32", "[2]", 8, 0), 8), &["damaged", "`a`"]);
    refused(with_header(&tensor("F32", "[2]", -8, 0), 8), &["damaged"]);
    refused(with_header(&tensor("F32", "[2]", 4, 12), 12), &["damaged", "`a`"]);
    refused(with_header(&tensor("F33", "[2]", 0, 8), 8), &["damaged"]);
    let huge = "[4294967296,4294967296,16]";
    refused(with_header(&tensor("F32", huge, 0, 8), 8), &["damaged", "`a`", huge]);
    refused(with_header(&tensor("F32", "[-1]", 0, 8), 8), &["damaged"]);
    let overlapping = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    refused(with_header(overlapping, 12), &["damaged", "overlap"]);
    refused(with_header("[]", 0), &["damaged"]);
    refused(with_header("{", 0), &["damaged"]);
    refused(with_header("\u{0}\u{0}", 0), &["damaged"]);
    refused(b"<!DOCTYPE html><html>".to_vec(), &["damaged", "no safetensors file"]);
    for length in [u64::MAX, u64::MAX - 7, 1 << 62, 1 << 40, 99_999_999] {
        let mut file = length.to_le_bytes().to_vec();
        file.extend_from_slice(b"{}");
        refused(file, &["damaged", &length.to_string()]);
    }
    // Well formed, and without a single tensor.
    refused_for(with_header("{}", 0), EMBED_TOKENS);
}

#[track_caller]
fn refused_for(file: Vec<u8>, tensor: &str) {
    let message = complaint(open(&good().0, file));
    assert!(message.contains(tensor), "{message}");
}

#[test]
fn each_missing_tensor_is_named() {
    let (config, tensors) = good();
    for name in tensors.keys() {
        let mut fewer = tensors.clone();
        fewer.remove(name);
        let message = complaint(open(&config, file_of(&fewer)));
        assert!(message.contains(name), "{name}: {message}");
    }
}

#[test]
fn a_wrong_shape_is_told_with_both_shapes_and_the_file() {
    let (config, tensors) = good();
    for name in tensors.keys() {
        let mut wrong = tensors.clone();
        let (_, shape, bytes) = wrong.get_mut(name).unwrap();
        let expected = format!("{shape:?}");
        *shape = vec![1, bytes.len() / 4];
        let found = format!("{shape:?}");
        let message = complaint(open(&config, file_of(&wrong)));
        for word in [name, &expected, &found, "tiny/model.safetensors"] {
            assert!(message.contains(word), "`{message}` lacks `{word}`");
        }
    }
}

#[test]
fn a_type_that_is_not_read_is_named() {
    let (config, mut tensors) = good();
    let name = Part::Q.weight_name(1);
    let (dtype, _, _) = tensors.get_mut(&name).unwrap();
    *dtype = StoredDtype::I32;
    let message = complaint(open(&config, file_of(&tensors)));
    assert!(message.contains(&name) && message.contains("I32"), "{message}");
}

#[test]
fn tensors_that_the_config_denies_are_not_ignored() {
    for name in [
        Part::Q.bias_name(0),
        Part::Down.bias_name(1),
        Part::QNorm.weight_name(0),
        Part::InputNorm.weight_name(2),
    ] {
        let (config, mut tensors) = good();
        let tensor = (StoredDtype::F32, vec![1], vec![0; 4]);
        tensors.insert(name.clone(), tensor);
        let message = complaint(open(&config, file_of(&tensors)));
        assert!(message.contains(&name), "{message}");
    }
    // Old checkpoints carry their rope frequencies; those are only a copy.
    let (config, mut tensors) = good();
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    tensors.insert(name, (StoredDtype::F32, vec![2], vec![0; 8]));
    open(&config, file_of(&tensors)).unwrap();
}

#[test]
fn directories_without_a_model_say_what_is_missing() {
    let message = complaint(Checkpoint::open(Path::new("/no/such/model")));
    assert!(message.contains("/no/such/model/config.json"), "{message}");
    let dir = Scratch::new();
    assert!(complaint(Checkpoint::open(&dir.0)).contains("config.json"));
    dir.write("config.json", good().0.to_string().as_bytes());
    assert!(complaint(Checkpoint::open(&dir.0)).contains("model.safetensors"));
    dir.write("pytorch_model.bin", b"");
    assert!(complaint(Checkpoint::open(&dir.0)).contains("convert"));
}

#[test]
fn an_index_that_lies_is_refused() {
    let (config, tensors) = good();
    let name = EMBED_TOKENS;
    let cases = [
        (json!({}), "weight_map"),
        (json!({"weight_map": []}), "weight_map"),
        (json!({"weight_map": {name: 7}}), name),
        (json!({"weight_map": {name: "../outside.safetensors"}}), "same directory"),
        (json!({"weight_map": {name: "/etc/passwd"}}), "same directory"),
        (json!({"weight_map": {name: ""}}), "same directory"),
        (json!({"weight_map": {name: "gone.safetensors"}}), "gone.safetensors"),
        (json!({"weight_map": {"no.such": "here.safetensors"}}), "no.such"),
        (json!({"weight_map": {name: "here.safetensors"}}), LM_HEAD),
    ];
    for (index, word) in cases {
        let dir = Scratch::new();
        dir.write("config.json", config.to_string().as_bytes());
        dir.write("here.safetensors", &file_of(&tensors));
        dir.write("model.safetensors.index.json", index.to_string().as_bytes());
        let message = complaint(Checkpoint::open(&dir.0));
        assert!(message.contains(word), "{index}: `{message}` lacks `{word}`");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_damaged_header_never_panics(
        changes in prop::collection::vec((0usize..2000, any::<u8>()), 1..6),
    ) {
        let (config, tensors) = good();
        let mut file = file_of(&tensors);
        for (place, byte) in changes {
            let length = file.len();
            file[place % length] = byte;
        }
        if let Ok(checkpoint) = open(&config, file) {
            for (name, shape) in checkpoint.config().tensors() {
                checkpoint.tensor(&name, &shape).unwrap().to_vec_f32().unwrap();
            }
        }
    }

    #[test]
    fn a_damaged_config_never_panics(
        changes in prop::collection::vec((0usize..600, any::<u8>()), 1..4),
    ) {
        let mut json = good().0.to_string().into_bytes();
        for (place, byte) in changes {
            let length = json.len();
            json[place % length] = byte;
        }
        if let Ok(config) = ModelConfig::parse(Path::new("config.json"), &json) {
            prop_assert_eq!(config.rope.inv_freq(config.head_dim.min(64)).len(), config.head_dim.min(64) / 2);
        }
    }
}
