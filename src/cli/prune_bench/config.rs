//! The ways to prune that are compared.

use std::path::Path;

use anyhow::ensure;
use pagedraft::exit::usage;
use pagedraft::prune::{PruneChoice, PruneScorer, PruneSpec};

/// A way to prune, and what it is called.
#[derive(Clone, Debug)]
pub struct Config {
    /// The preset's name, or the file's without its ending.
    pub name: String,
    pub choice: PruneChoice,
}

/// Reads the ways that the flag names.
pub fn all(names: &[String]) -> anyhow::Result<Vec<Config>> {
    let mut configs: Vec<Config> = Vec::new();
    for name in names {
        let choice = PruneChoice::named(name).map_err(|error| usage(error.into()))?;
        let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str()).unwrap_or(name).to_owned();
        let known = configs.iter().any(|config| config.name == stem);
        let checked = (|| {
            ensure!(!known, "--configs has two ways called {stem}: rename a file, or leave one out");
            Ok(())
        })();
        checked.map_err(usage)?;
        configs.push(Config { name: stem, choice });
    }
    Ok(configs)
}

impl Config {
    /// Whether trained modules score tokens.
    pub fn is_learned(&self) -> bool {
        match &self.choice {
            PruneChoice::Spec(spec) => spec.scorer == PruneScorer::Learned,
            PruneChoice::Preset(_) => true,
        }
    }

    /// The same way with another scorer, for a model of `num_layers` layers.
    pub fn scored_by(&self, scorer: PruneScorer, num_layers: u16) -> anyhow::Result<PruneChoice> {
        Ok(match &self.choice {
            PruneChoice::Spec(spec) => PruneChoice::Spec(PruneSpec { scorer, ..spec.clone() }),
            // A preset knows the model's own modules.
            PruneChoice::Preset(preset) if scorer == PruneScorer::Learned => PruneChoice::Preset(*preset),
            PruneChoice::Preset(preset) => {
                PruneChoice::Spec(PruneSpec { scorer, ..preset.spec(num_layers, Path::new(""))? })
            }
        })
    }
}
