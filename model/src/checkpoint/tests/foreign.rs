//! Places that hold something else than a model say so, and what to do.

use super::*;
use crate::tokenizer::Tokenizer;

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1
oid sha256:0f3a9c35e0f4d1a6f1b2ce6e2b5a6c7d8e9f00112233445566778899aabbccdd
size 4943274328
";

#[track_caller]
fn contains(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
}

/// A directory with a whole model.
fn whole() -> Scratch {
    let dir = Scratch::new();
    let config = tiny_config(json!({}));
    dir.write("config.json", config.to_string().as_bytes());
    dir.write("model.safetensors", &file_of(&tiny_tensors(&parse(&config).unwrap())));
    dir
}

#[test]
fn a_git_lfs_pointer_in_place_of_any_file_is_named_as_one() {
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        let dir = whole();
        Checkpoint::open(&dir.0).unwrap();
        dir.write(file, POINTER);
        let message = complaint(Checkpoint::open(&dir.0));
        contains(&message, &[file, "Git LFS pointer", "git lfs pull"]);
    }
    let dir = whole();
    dir.write("tokenizer.json", POINTER);
    let checkpoint = Checkpoint::open(&dir.0).unwrap();
    for message in [complaint(checkpoint.tokenizer()), complaint(Tokenizer::open(&dir.0))] {
        contains(&message, &["tokenizer.json", "Git LFS pointer", "git lfs pull"]);
    }
}

#[test]
fn a_git_lfs_pointer_in_place_of_an_index_or_a_shard_is_named_as_one() {
    let dir = whole();
    std::fs::rename(dir.0.join("model.safetensors"), dir.0.join("model-00001-of-00001.safetensors")).unwrap();
    dir.write("model.safetensors.index.json", POINTER);
    contains(&complaint(Checkpoint::open(&dir.0)), &["index.json", "Git LFS pointer"]);
    let index = json!({"weight_map": {EMBED_TOKENS: "model-00001-of-00001.safetensors"}});
    dir.write("model.safetensors.index.json", index.to_string().as_bytes());
    dir.write("model-00001-of-00001.safetensors", POINTER);
    contains(&complaint(Checkpoint::open(&dir.0)), &["00001-of-00001", "Git LFS pointer"]);
    std::fs::remove_file(dir.0.join("model-00001-of-00001.safetensors")).unwrap();
    contains(&complaint(Checkpoint::open(&dir.0)), &["00001-of-00001", "index.json names", "download"]);
}

#[test]
fn weights_of_a_quantised_model_are_named_though_the_config_does_not_say_it() {
    for (suffix, tool) in [
        ("q_proj.scales", "MLX"),
        ("q_proj.biases", "MLX"),
        ("q_proj.qweight", "GPTQ or AWQ"),
        ("q_proj.g_idx", "GPTQ"),
        ("q_proj.weight_scale_inv", "FP8"),
        ("q_proj.weight_packed", "compressed-tensors"),
        ("q_proj.weight.absmax", "bitsandbytes"),
        ("q_proj.SCB", "bitsandbytes"),
    ] {
        let config = tiny_config(json!({}));
        let mut tensors = tiny_tensors(&parse(&config).unwrap());
        let name = format!("model.layers.0.self_attn.{suffix}");
        let tensor = || (StoredDtype::F32, vec![1], vec![0; 4]);
        tensors.insert(name, tensor());
        // Where every weight is as it should be, a tensor more is no reason.
        open(&config, file_of(&tensors)).unwrap();
        tensors.insert(Part::Q.weight_name(0), tensor());
        contains(&complaint(open(&config, file_of(&tensors))), &["quantised", tool, "bfloat16"]);
    }
}

/// What is said of a directory with these files.
fn said_of(files: &[&str]) -> String {
    let dir = Scratch::new();
    let config = tiny_config(json!({})).to_string();
    for file in files {
        dir.write(file, if *file == "config.json" { config.as_bytes() } else { b"{}" });
    }
    let message = complaint(Checkpoint::open(&dir.0));
    contains(&message, &[dir.0.to_str().unwrap()]);
    message
}

#[test]
fn a_directory_of_another_kind_says_which_and_what_to_do() {
    contains(&said_of(&[]), &["empty directory", "config.json", "model.safetensors"]);
    let adapter = ["adapter_config.json", "adapter_model.safetensors"];
    contains(&said_of(&adapter), &["PEFT adapter", "merge"]);
    contains(&said_of(&[&adapter[..], &["config.json"]].concat()), &["PEFT adapter", "merge"]);
    contains(&said_of(&["model-q4_0.gguf"]), &["GGUF", "model-q4_0.gguf", "the file itself"]);
    contains(&said_of(&["config.json", "model-q4_0.gguf"]), &["GGUF", "the file itself"]);
    contains(&said_of(&["pytorch_model.bin"]), &["pytorch_model.bin", "convert"]);
    contains(
        &said_of(&["config.json", "pytorch_model-00001-of-00002.bin"]),
        &["pytorch_model-00001", "convert"],
    );
    contains(&said_of(&["params.json", "consolidated.00.pth"]), &["own format", "convert"]);
    contains(&said_of(&["config.json", "weights.safetensors"]), &["weights.safetensors", "rename"]);
    contains(&said_of(&["config.json"]), &["model.safetensors", "dummy"]);
    contains(&said_of(&["readme.txt"]), &["config.json"]);
    contains(&said_of(&["model.safetensors", "pytorch_model.bin"]), &["cannot read", "config.json"]);
}

#[test]
fn a_file_in_place_of_a_directory_says_what_it_is() {
    let dir = whole();
    dir.write("small.gguf", b"GGUF\x03\0\0\0");
    contains(&complaint(Checkpoint::open(&dir.0.join("small.gguf"))), &["small.gguf", "cut short"]);
    let message = complaint(Checkpoint::open(&dir.0.join("model.safetensors")));
    contains(&message, &["is a file", "GGUF", "give the directory"]);
    dir.write("tiny", b"ab");
    contains(&complaint(Checkpoint::open(&dir.0.join("tiny"))), &["is a file"]);
}

#[test]
fn a_folder_of_the_hugging_face_cache_points_at_its_snapshots() {
    let dir = Scratch::new();
    for name in ["snapshots", "blobs", "refs"] {
        std::fs::create_dir(dir.0.join(name)).unwrap();
    }
    contains(&complaint(Checkpoint::open(&dir.0)), &["cache of Hugging Face", "snapshots"]);
}
