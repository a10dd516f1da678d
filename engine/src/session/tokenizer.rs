//! A model's tokenizer, without the model.

use pagedraft_model::ModelError;
use pagedraft_model::checkpoint::{Gguf, ModelConfig};
use pagedraft_model::tokenizer::Tokenizer;

use super::builtin;
use super::options::ModelRef;
use crate::error::{EngineError, Result};

/// The tokenizer of a model, if it has one. The model's weights are not read.
///
/// # Errors
///
/// The model does not exist, or its tokenizer can't be read.
pub fn tokenizer(model: &ModelRef) -> Result<Option<Tokenizer>> {
    let found = match model {
        ModelRef::Builtin(name) => builtin::checkpoint(name).map_err(EngineError::into_input)?.tokenizer(),
        ModelRef::Directory(file) if file.is_file() => Gguf::open(file).and_then(|gguf| gguf.tokenizer()),
        ModelRef::Directory(dir) if !dir.is_dir() => {
            return Err(EngineError::input(format!(
                "the model {} does not load: there is no such directory or file",
                dir.display()
            )));
        }
        ModelRef::Directory(dir) if !dir.join("tokenizer.json").exists() => return Ok(None),
        ModelRef::Directory(dir) => Tokenizer::open(dir),
    };
    match found {
        Ok(mut tokenizer) => {
            if let ModelRef::Directory(dir) = model
                && let Some(mask) = ModelConfig::open(dir).ok().and_then(|config| config.mask_token_id)
            {
                tokenizer.take_literally(mask);
            }
            Ok(Some(tokenizer))
        }
        Err(ModelError::NoTokenizer { .. }) => Ok(None),
        Err(error) => Err(EngineError::from(error).into_input()),
    }
}
