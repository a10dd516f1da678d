//! What a simulation has to know of the KV of a model, without loading it.

use pagedraft_block_manager::KvGroup;
use pagedraft_model::ModelError;
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::dense::kv_groups;

use super::builtin;
use super::options::{DeviceRef, EngineOptions, ModelRef};
use super::placement::Placement;
use crate::exit::usage;

/// The KV groups that a simulated engine keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SimulatedKv {
    /// The groups of the model, where any of its layers has a window that hides something; else none, which stands for one group
    /// that holds every token.
    pub groups: Vec<KvGroup>,
    /// Why the model's windows are not known, where they are not.
    pub unknown: Option<String>,
}

impl SimulatedKv {
    /// The groups that an engine with these options keeps on the CPU, for sequences of up to `max_model_len` tokens. Of the model
    /// only `config.json` is read.
    ///
    /// # Errors
    ///
    /// A `config.json` that a real engine refuses, except for an architecture that this engine does not run: a simulation
    /// of such a model knows no windows, and says so.
    pub fn of(options: &EngineOptions, max_model_len: u32) -> anyhow::Result<Self> {
        let config = match &options.model {
            ModelRef::Builtin(name) => builtin::checkpoint(name).map_err(usage)?.config().clone(),
            ModelRef::Directory(dir) if !dir.join("config.json").exists() => {
                let unknown = format!("{} has no config.json", dir.display());
                return Ok(Self { unknown: Some(unknown), ..Self::default() });
            }
            ModelRef::Directory(dir) => match ModelConfig::open(dir) {
                Ok(config) => config,
                Err(error @ ModelError::UnknownArchitecture { .. }) => {
                    return Ok(Self { unknown: Some(error.to_string()), ..Self::default() });
                }
                Err(error) => return Err(usage(error.into())),
            },
        };
        if !config.windows.iter().flatten().any(|&window| window < max_model_len) {
            return Ok(Self::default());
        }
        let on_cpu = EngineOptions { device: DeviceRef::Cpu, ..options.clone() };
        let (placement, _) = Placement::new(&on_cpu, &config, None)?;
        let token_bytes = placement.token_bytes(&config)?;
        let groups = kv_groups(&config.windows, max_model_len as usize, token_bytes);
        Ok(Self { groups, unknown: None })
    }
}
