//! Tests of the checkpoint reader, on the golden checkpoints and on tiny ones made here.

mod bad_input;
mod config;
mod dsa;
mod dummy;
mod foreign;
mod golden;
mod weights;
mod windows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use safetensors::{Dtype as StoredDtype, tensor::TensorView};
use serde_json::{Value, json};

use super::*;

/// A directory that is gone when the test ends.
pub(super) struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("pagedraft-ckpt-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    pub fn write(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(file), bytes).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The project's shared files, which a plain clone does not have.
pub(super) fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// A small valid configuration, with fields replaced (or, by null, taken away).
pub(super) fn tiny_config(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": 12, "hidden_size": 8, "intermediate_size": 10,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "eos_token_id": 2, "bos_token_id": 1, "torch_dtype": "float32",
    });
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

pub(super) fn parse(config: &Value) -> Result<ModelConfig, ModelError> {
    ModelConfig::parse(Path::new("config.json"), config.to_string().as_bytes())
}

/// Tensors by name: type, shape, bytes.
pub(super) type Tensors = BTreeMap<String, (StoredDtype, Vec<usize>, Vec<u8>)>;

/// Every tensor of a configuration in float32; value number i of tensor t is a small number of both.
pub(super) fn tiny_tensors(config: &ModelConfig) -> Tensors {
    let mut tensors = Tensors::new();
    for (t, (name, shape)) in config.tensors().into_iter().enumerate() {
        let count = shape.iter().product::<usize>();
        let value = |i: usize| (t as f32 - 3.0) + i as f32 / 64.0;
        let bytes = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
        tensors.insert(name, (StoredDtype::F32, shape, bytes));
    }
    tensors
}

pub(super) fn file_of(tensors: &Tensors) -> Vec<u8> {
    let views: Vec<(String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (name.clone(), view.unwrap())
        })
        .collect();
    safetensors::serialize(views, None).unwrap()
}

/// Opens a checkpoint in memory.
pub(super) fn open(config: &Value, file: Vec<u8>) -> Result<Checkpoint, ModelError> {
    let json = config.to_string();
    Checkpoint::from_bytes("tiny", json.as_bytes(), file, Vec::new())
}

/// The message of what must be an error.
#[track_caller]
pub(super) fn complaint<T>(result: Result<T, ModelError>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}
