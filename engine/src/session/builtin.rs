//! The embedded models: `builtin:target`, `builtin:draft`, `builtin:dsa`, `builtin:recall` and `builtin:llada`.

use std::path::Path;

use pagedraft_model::checkpoint::Checkpoint;

use crate::error::{Context, Result, bail};

/// An embedded model, as the files that a directory would have.
pub struct Builtin {
    name: &'static str,
    /// `config.json`.
    pub config: &'static [u8],
    weights: &'static [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'static [u8],
    /// Modules that were trained to prune its prompts.
    modules: Option<&'static [u8]>,
}

macro_rules! builtin {
    ($name:literal) => {
        builtin!($name, modules: None)
    };
    ($name:literal, pruned) => {
        builtin!($name, modules: Some(include_bytes!(concat!("../../../assets/", $name, "/pruning_modules.safetensors"))))
    };
    ($name:literal, modules: $modules:expr) => {
        Builtin {
            name: $name,
            config: include_bytes!(concat!("../../../assets/", $name, "/config.json")),
            weights: include_bytes!(concat!("../../../assets/", $name, "/model.safetensors")),
            tokenizer: include_bytes!(concat!("../../../assets/", $name, "/tokenizer.json")),
            modules: $modules,
        }
    };
}

static BUILTINS: [Builtin; 5] = [
    builtin!("target", pruned),
    builtin!("draft"),
    builtin!("dsa"),
    builtin!("recall", pruned),
    builtin!("llada"),
];

/// The files of the embedded model with this name.
///
/// # Errors
///
/// No embedded model has this name.
pub fn files(name: &str) -> Result<&'static Builtin> {
    let Some(found) = BUILTINS.iter().find(|b| b.name == name) else {
        let names: Vec<_> = BUILTINS.iter().map(|b| format!("builtin:{}", b.name)).collect();
        bail!("there is no embedded model builtin:{name}; there are {}", names.join(", "));
    };
    Ok(found)
}

/// Reads the embedded model with this name.
///
/// # Errors
///
/// No embedded model has this name.
pub fn checkpoint(name: &str) -> Result<Checkpoint> {
    let found = files(name)?;
    let path = format!("builtin:{name}");
    Checkpoint::from_bytes(&path, found.config, found.weights, found.tokenizer)
        .with_context(|| format!("the embedded model {path} does not load"))
}

/// The trained modules of the embedded model that this names, as `builtin:NAME`.
pub fn modules(name: &Path) -> Option<&'static [u8]> {
    let name = name.to_str()?.strip_prefix("builtin:")?;
    BUILTINS.iter().find(|builtin| builtin.name == name)?.modules
}
