//! Opens the checkpoint of a model, which is a directory or a file or is built in.

use pagedraft_model::checkpoint::Checkpoint;

use super::builtin;
use super::options::{EngineOptions, LoadFormat, ModelRef};
use crate::error::{Context, EngineError, Result};

/// The checkpoint that `model` names, with the weights that the options ask for.
pub(super) fn open(model: &ModelRef, options: &EngineOptions) -> Result<Checkpoint> {
    let checkpoint = match (model, options.load_format) {
        (ModelRef::Builtin(name), LoadFormat::Auto) => builtin::checkpoint(name),
        (ModelRef::Builtin(name), LoadFormat::Dummy) => {
            builtin::checkpoint(name).map(|c| Checkpoint::dummy(c.config().clone(), options.seed))
        }
        (ModelRef::Directory(dir), LoadFormat::Auto) => {
            Checkpoint::open(dir).with_context(|| format!("the model {} does not load", dir.display()))
        }
        (ModelRef::Directory(dir), LoadFormat::Dummy) => Checkpoint::open_dummy(dir, options.seed)
            .with_context(|| format!("the model {} does not load", dir.display())),
    };
    checkpoint.map_err(EngineError::into_input)
}

/// The checkpoint that `model` names, with its own weights.
///
/// # Errors
///
/// The model does not exist, or can't be read.
pub fn open_checkpoint(model: &ModelRef) -> Result<Checkpoint> {
    open(model, &EngineOptions::new(model.clone()))
}
