//! `pagedraft train`.

use clap::{Args, Subcommand};

use super::Ended;

#[derive(Debug, Args)]
pub struct Train {
    #[command(subcommand)]
    what: What,
}

#[cfg(feature = "train")]
#[derive(Debug, Subcommand)]
enum What {
    /// Train a language model on plain texts
    Lm(pagedraft::train::TrainLmArgs),
    /// Train the sparse model on plain texts and recall tasks
    Dsa(pagedraft::train::dsa::TrainDsaArgs),
    /// Train a dense model on plain texts and recall tasks
    Recall(pagedraft::train::recall::TrainRecallArgs),
    /// Train a model that fills masks, from a causal one and plain texts
    Diffusion(pagedraft::train::diffusion::TrainDiffusionArgs),
    /// Work out how much each prompt token matters to what follows
    Saliency(pagedraft::train::saliency::TrainSaliencyArgs),
    /// Train the modules by which prompts are pruned
    Pruning(pagedraft::train::pruning::TrainPruningArgs),
}

#[cfg(not(feature = "train"))]
#[derive(Debug, Subcommand)]
enum What {
    /// Train a language model on plain texts
    Lm {
        /// The trainer's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<std::ffi::OsString>,
    },
    /// Train the sparse model on plain texts and recall tasks
    Dsa {
        /// The trainer's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<std::ffi::OsString>,
    },
    /// Train a dense model on plain texts and recall tasks
    Recall {
        /// The trainer's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<std::ffi::OsString>,
    },
    /// Train a model that fills masks, from a causal one and plain texts
    Diffusion {
        /// The trainer's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<std::ffi::OsString>,
    },
    /// Work out how much each prompt token matters to what follows
    Saliency {
        /// The trainer's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<std::ffi::OsString>,
    },
    /// Train the modules by which prompts are pruned
    Pruning {
        /// The trainer's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<std::ffi::OsString>,
    },
}

impl Train {
    #[cfg(feature = "train")]
    pub fn run(&self) -> anyhow::Result<Ended> {
        match &self.what {
            What::Lm(arguments) => pagedraft::train::run(arguments)?,
            What::Dsa(arguments) => pagedraft::train::dsa::run(arguments)?,
            What::Recall(arguments) => pagedraft::train::recall::run(arguments)?,
            What::Diffusion(arguments) => pagedraft::train::diffusion::run(arguments)?,
            What::Saliency(arguments) => pagedraft::train::saliency::run(arguments)?,
            What::Pruning(arguments) => pagedraft::train::pruning::run(arguments)?,
        }
        Ok(Ended::Done)
    }

    #[cfg(not(feature = "train"))]
    pub fn run(&self) -> anyhow::Result<Ended> {
        let (What::Lm { rest: _ }
        | What::Dsa { rest: _ }
        | What::Recall { rest: _ }
        | What::Diffusion { rest: _ }
        | What::Saliency { rest: _ }
        | What::Pruning { rest: _ }) = &self.what;
        let error = anyhow::anyhow!("this build has no trainer");
        Err(pagedraft::exit::usage_hint(error, "cargo build --release --features train"))
    }
}
