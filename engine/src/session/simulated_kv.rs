//! What a simulation has to know of the KV of a model, without loading it.

use std::sync::Arc;

use pagedraft_block_manager::KvGroup;
use pagedraft_model::ModelError;
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::{cut, dense};
use pagedraft_scheduler::SegmentKv;
use pagedraft_workloads::sim::PromptRule;

use super::builtin;
use super::options::PruneOptions;
use super::options::{DeviceRef, EngineOptions, ModelRef};
use super::placement::Placement;
use super::pruning;
use crate::error::{EngineError, Result};

/// The KV groups that a simulated engine keeps.
#[derive(Clone, Debug, Default)]
pub struct SimulatedKv {
    /// The groups of the model, where any of its layers has a window that hides something, or where the model is cut between its
    /// layers; else none, which stands for one group that holds every token.
    pub groups: Vec<KvGroup>,
    /// The groups of each segment of a model that is cut; none if it is not.
    pub segments: Vec<SegmentKv>,
    /// How prompts are pruned.
    pub prune: Option<Arc<dyn PromptRule>>,
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
    /// of such a model knows no windows, and says so. Prompts are to be pruned, and the model's layers are not known or can't be cut.
    pub fn of(options: &EngineOptions, max_model_len: u32) -> Result<Self> {
        let kv = Self::of_model(options, max_model_len)?;
        match &kv.unknown {
            Some(why) if options.prune != PruneOptions::default() => Err(EngineError::input_hint(
                format!("prompts are to be pruned, and the layers of the model are not known: {why}"),
                "name a model with --model, or leave out --prune-spec and --prune-layers",
            )),
            _ => Ok(kv),
        }
    }

    fn of_model(options: &EngineOptions, max_model_len: u32) -> Result<Self> {
        let config = match &options.model {
            ModelRef::Builtin(name) => {
                builtin::checkpoint(name).map_err(EngineError::into_input)?.config().clone()
            }
            ModelRef::Directory(dir) if !dir.is_file() && !dir.join("config.json").exists() => {
                let unknown = format!("{} has no config.json", dir.display());
                return Ok(Self { unknown: Some(unknown), ..Self::default() });
            }
            ModelRef::Directory(dir) => match ModelConfig::open(dir) {
                Ok(config) => config,
                Err(error @ ModelError::UnknownArchitecture { .. }) => {
                    return Ok(Self { unknown: Some(error.to_string()), ..Self::default() });
                }
                Err(error) => return Err(EngineError::from(error).into_input()),
            },
        };
        if config.mask_token_id.is_some() {
            return Err(EngineError::input_hint(
                format!(
                    "{} fills masks in a canvas, and a simulated engine plans for tokens that follow each other",
                    options.model
                ),
                "use --executor real",
            ));
        }
        let cuts = pruning::cuts(options, &config)?;
        let on_cpu = EngineOptions { device: DeviceRef::Cpu, ..options.clone() };
        if !cuts.is_empty() {
            let (placement, _) = Placement::new(&on_cpu, &config, None)?;
            let groups = placement.cut_groups(&config, &cuts)?;
            let num_layers = config.num_layers as u16;
            let segments = pruning::segments(&cut::layer_runs(num_layers, &cuts));
            let prune = pruning::simulated(options, num_layers, cuts)?;
            return Ok(Self { groups, segments, prune, unknown: None });
        }
        if !config.windows.iter().flatten().any(|&window| window < max_model_len) {
            return Ok(Self::default());
        }
        let (placement, _) = Placement::new(&on_cpu, &config, None)?;
        let token_bytes = placement.token_bytes(&config)?;
        let groups = dense::kv_groups(&config.windows, max_model_len as usize, token_bytes);
        Ok(Self { groups, ..Self::default() })
    }
}
