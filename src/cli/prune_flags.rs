//! The flags that say which prompts are pruned.

use clap::Args;
use pagedraft::prune::PruneChoice;
use pagedraft::session::PruneOptions;

/// Which prompts are pruned, and where the model is cut for them.
#[derive(Clone, Debug, Default, Args)]
pub struct PruneFlags {
    /// Prune every prompt as this spec (JSON) says: keep09, keep08, keep07 and sdtp are built in
    #[arg(long, value_name = "FILE|NAME", value_parser = named)]
    prune_spec: Option<PruneChoice>,
    /// Layers behind which prompts may be pruned (default: those that --prune-spec and the lines of --prompts name)
    #[arg(long, value_name = "L,L,..", value_delimiter = ',')]
    prune_layers: Option<Vec<u16>>,
}

/// A preset or a spec, with every cause of an error in its text.
fn named(name: &str) -> Result<PruneChoice, String> {
    PruneChoice::named(name).map_err(|error| format!("{error:#}"))
}

impl PruneFlags {
    /// The engine's options.
    pub fn options(&self) -> PruneOptions {
        PruneOptions { all: self.prune_spec.clone(), others: Vec::new(), layers: self.prune_layers.clone() }
    }
}
