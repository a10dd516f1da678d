//! A checkpoint whose weights are those of a GGUF file.

use std::collections::HashSet;
use std::sync::Arc;

use super::file::Gguf;
use super::rows::Rows;
use super::stored_name::{self, ROPE_FREQS};
use crate::checkpoint::architecture::{Architecture, Part};
use crate::checkpoint::tensor::Tensor;
use crate::checkpoint::{Checkpoint, ModelConfig, TokenizerSource, Weights};
use crate::error::ModelError;

impl Checkpoint {
    /// Takes a GGUF file, and checks that every tensor is there with its shape, and none besides.
    ///
    /// # Errors
    /// Names the key or tensor that is missing, wrong or not supported.
    pub fn of_gguf(gguf: Gguf) -> Result<Checkpoint, ModelError> {
        let config = gguf.config()?;
        let gguf = Arc::new(gguf);
        let checkpoint = Checkpoint {
            name: gguf.path().to_owned(),
            config,
            weights: Weights::Gguf(Arc::clone(&gguf)),
            tokenizer: TokenizerSource::Gguf(gguf),
        };
        checkpoint.check()?;
        checkpoint.refuse_unknown()?;
        checkpoint.tell();
        Ok(checkpoint)
    }

    /// A model of a GGUF file's shape whose weights are drawn from a seed.
    pub(in crate::checkpoint) fn dummy_of_gguf(gguf: Gguf, seed: u64) -> Result<Checkpoint, ModelError> {
        Ok(Checkpoint {
            name: gguf.path().to_owned(),
            config: gguf.config()?,
            weights: Weights::Drawn { seed },
            tokenizer: TokenizerSource::Gguf(Arc::new(gguf)),
        })
    }

    /// Refuses a tensor that the configuration has no place for.
    fn refuse_unknown(&self) -> Result<(), ModelError> {
        let Weights::Gguf(gguf) = &self.weights else { return Ok(()) };
        let known: HashSet<String> =
            self.config.tensors().iter().filter_map(|(name, _)| stored_name::of(name)).collect();
        match gguf.names().into_iter().find(|&name| name != ROPE_FREQS && !known.contains(name)) {
            None => Ok(()),
            Some(tensor) => Err(ModelError::UnexpectedTensor {
                path: gguf.path().to_owned(),
                tensor: tensor.to_owned(),
                hint: format!(
                    "a {} of {} layers has no such tensor",
                    self.config.architecture, self.config.num_layers
                ),
            }),
        }
    }
}

impl Gguf {
    /// Whether the file has a tensor that is called `name` in a Hugging Face checkpoint.
    pub(in crate::checkpoint) fn has(&self, name: &str) -> bool {
        stored_name::of(name).is_some_and(|name| self.stored(&name).is_some())
    }

    /// The tensor that is called `name` in a Hugging Face checkpoint, of the shape it must have.
    pub(in crate::checkpoint) fn tensor(
        &self,
        config: &ModelConfig,
        name: &str,
        shape: &[usize],
    ) -> Result<Tensor<'_>, ModelError> {
        let own = stored_name::of(name).unwrap_or_else(|| name.to_owned());
        let Some((stored, bytes)) = self.stored(&own) else {
            return Err(ModelError::MissingTensor {
                path: self.path().to_owned(),
                tensor: own,
                hint: format!("its metadata ask for it, with shape {shape:?}"),
            });
        };
        if stored.shape != shape {
            return Err(ModelError::WrongShape {
                path: self.path().to_owned(),
                tensor: own,
                expected: shape.to_vec(),
                found: stored.shape.clone(),
            });
        }
        let rows = Rows::new(stored.kind, bytes, shape, interleaved(config, name));
        Ok(Tensor::ggml(name, shape, rows))
    }

    /// Every tensor as it lies in the file: its name, a description of its type and shape, its bytes.
    pub(in crate::checkpoint) fn contents(&self) -> impl Iterator<Item = (&str, String, &[u8])> {
        self.names().into_iter().filter_map(|name| {
            let (stored, bytes) = self.stored(name)?;
            Some((name, format!("ggml {:?} {:?}", stored.kind, stored.shape), bytes))
        })
    }
}

/// The width of the heads whose outputs are in llama.cpp's order: those of q and k of its architecture `llama`.
fn interleaved(config: &ModelConfig, name: &str) -> Option<usize> {
    let (_, part, _) = stored_name::of_layer(name)?;
    let turned = config.architecture == Architecture::Llama && matches!(part, Part::Q | Part::K);
    turned.then_some(config.head_dim)
}
