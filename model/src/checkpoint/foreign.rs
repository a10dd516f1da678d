//! What a place holds where there is no model, said by name.

use std::path::Path;

use crate::error::ModelError;

/// What a model is.
const LAYOUT: &str =
    "a model is a directory with config.json, model.safetensors and tokenizer.json, or a GGUF file";

/// Why there is no `config.json` to read in `place`, as far as the place tells.
pub(super) fn instead_of_config(place: &Path) -> Option<ModelError> {
    let names = names(place)?;
    if names.is_empty() {
        return Some(foreign(place, "an empty directory", format!("{LAYOUT}: put them there")));
    }
    let has = |name: &str| names.iter().any(|found| found == name);
    if has("snapshots") && has("blobs") {
        let hint = "give the directory in its snapshots that has config.json".to_owned();
        return Some(foreign(place, "a model's folder in the cache of Hugging Face", hint));
    }
    if has("params.json") || has("consolidated.safetensors") || has("consolidated.00.pth") {
        let hint = "download the version with config.json, or convert it with transformers".to_owned();
        return Some(foreign(place, "a model in its makers' own format", hint));
    }
    // With weights that can be read, only config.json is missing, which the reader says.
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return None;
    }
    other_weights(place, &names)
}

/// A file that is no model.
pub(super) fn other_file(file: &Path) -> ModelError {
    foreign(
        file,
        "a file that does not begin with GGUF",
        format!("{LAYOUT}: give the directory that the file is in"),
    )
}

/// What a directory has in place of `model.safetensors` and its index, where it is known.
pub(super) fn instead_of_weights(dir: &Path) -> Option<ModelError> {
    let names = names(dir)?;
    other_weights(dir, &names).or_else(|| {
        let name = names.iter().find(|name| name.ends_with(".safetensors"))?;
        let hint = format!(
            "it has {name}: rename it to model.safetensors if it is the whole model, or add the index of the shards"
        );
        Some(ModelError::NoWeights { path: dir.to_owned(), hint })
    })
}

/// Weights of a format that is not read here.
fn other_weights(dir: &Path, names: &[String]) -> Option<ModelError> {
    if names.iter().any(|name| name == "adapter_config.json") {
        let hint = "merge it into its base model (peft: merge_and_unload), and give the directory of that";
        return Some(foreign(dir, "a PEFT adapter (adapter_config.json)", hint.to_owned()));
    }
    if let Some(name) = names.iter().find(|name| name.ends_with(".gguf")) {
        let hint = "give the path of the file itself".to_owned();
        return Some(foreign(dir, &format!("a directory with a GGUF file ({name})"), hint));
    }
    let name = names.iter().find(|name| name.starts_with("pytorch_model") || name.ends_with(".pth"))?;
    let hint = format!(
        "it has PyTorch weights ({name}): convert them to safetensors (transformers: from_pretrained, then save_pretrained)"
    );
    Some(ModelError::NoWeights { path: dir.to_owned(), hint })
}

fn foreign(path: &Path, what: &str, hint: String) -> ModelError {
    ModelError::Foreign { path: path.to_owned(), what: what.to_owned(), hint }
}

/// The names in a directory, sorted, so that a message is the same everywhere.
fn names(dir: &Path) -> Option<Vec<String>> {
    let entries = std::fs::read_dir(dir).ok()?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    Some(names)
}
