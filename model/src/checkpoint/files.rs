//! Which files of a directory make up a checkpoint.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Component, Path};

use serde_json::Value;

use super::config::ModelConfig;
use super::fields::{Fields, parse_object};
use super::foreign;
use super::gguf::Gguf;
use super::shard::Shard;
use crate::error::ModelError;
use crate::lfs_pointer;

fn read(path: &Path, hint: &'static str) -> Result<Vec<u8>, ModelError> {
    let bytes = std::fs::read(path);
    let bytes = bytes.map_err(|source| ModelError::Read { path: path.to_owned(), source, hint })?;
    lfs_pointer::refuse(path, &bytes)?;
    Ok(bytes)
}

impl ModelConfig {
    /// Reads `config.json` of a directory, and `generation_config.json` where there is one; or the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::Foreign`] where the place holds something else than a model,
    /// [`ModelError::LfsPointer`], or those of [`ModelConfig::parse`] or [`Gguf::config`].
    pub fn open(dir: &Path) -> Result<ModelConfig, ModelError> {
        if let Some(gguf) = Gguf::at(dir)? {
            return gguf.config();
        }
        let hint =
            "; a model is a directory with config.json, model.safetensors and tokenizer.json, or a GGUF file";
        let path = dir.join("config.json");
        let json = read(&path, hint).map_err(|error| match error {
            ModelError::Read { .. } if !path.exists() => foreign::instead_of_config(dir).unwrap_or(error),
            error => error,
        })?;
        let mut config = ModelConfig::parse(&path, &json)?;
        let path = dir.join("generation_config.json");
        match read(&path, "") {
            Ok(json) => config.apply_generation_config(&path, &json)?,
            Err(ModelError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(config)
    }
}

/// Opens `model.safetensors`, or the shards that the index names; no other file is looked at.
/// Returns the shards and, for each tensor, the shard it is in.
pub(super) fn open_shards(dir: &Path) -> Result<(Vec<Shard>, HashMap<String, usize>), ModelError> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        let shard = Shard::open(&single)?;
        let index = shard.names().map(|name| (name.to_owned(), 0)).collect();
        return Ok((vec![shard], index));
    }
    let path = dir.join("model.safetensors.index.json");
    if !path.exists() {
        let hint = "put the weights there, or use --load-format dummy for a speed run".to_owned();
        let unknown = ModelError::NoWeights { path: dir.to_owned(), hint };
        return Err(foreign::instead_of_weights(dir).unwrap_or(unknown));
    }
    let object = parse_object(&path, &read(&path, "")?)?;
    let fields = Fields::new(&path, &object);
    let map = match fields.get("weight_map") {
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.bad("weight_map", other, "an object, tensor to file")),
        None => return Err(fields.missing("weight_map", "an object, tensor to file")),
    };
    let mut shards: Vec<Shard> = Vec::new();
    let mut by_file: HashMap<&str, usize> = HashMap::new();
    let mut index = HashMap::new();
    for (tensor, file) in map {
        let Some(file) = file.as_str().filter(|file| is_plain_name(file)) else {
            let expected = "the name of a file in the same directory";
            return Err(fields.bad(&format!("weight_map.{tensor}"), file, expected));
        };
        let number = match by_file.get(file) {
            Some(&number) => number,
            None => {
                shards.push(open_shard(&dir.join(file))?);
                by_file.insert(file, shards.len() - 1);
                shards.len() - 1
            }
        };
        if shards[number].get(tensor).is_none() {
            return Err(ModelError::MissingTensor {
                path: dir.join(file),
                tensor: tensor.clone(),
                hint: "model.safetensors.index.json says it is there".to_owned(),
            });
        }
        index.insert(tensor.clone(), number);
    }
    Ok((shards, index))
}

fn open_shard(path: &Path) -> Result<Shard, ModelError> {
    match Shard::open(path) {
        Err(ModelError::Read { path, source, .. }) => Err(ModelError::Read {
            path,
            source,
            hint: "; it is a shard that model.safetensors.index.json names: download it too",
        }),
        other => other,
    }
}

/// An index must not reach outside its directory.
fn is_plain_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none()
}
