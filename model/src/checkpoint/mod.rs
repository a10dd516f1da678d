//! Checkpoints: a Hugging Face directory, a GGUF file, an embedded model, or weights drawn from a seed, all
//! read through one type.
//!
//! [`Checkpoint::open`] reads `config.json` (and `generation_config.json` where there is one), maps
//! `model.safetensors` or the shards of `model.safetensors.index.json`, and compares every tensor that
//! the configuration demands with what the headers offer, before one weight is touched. What a
//! checkpoint asks for and the engine does not do (other architectures, yarn in a dense model, quantised weights,
//! biases the configuration does not mention) is an error that names the file and the field.
//!
//! Weights are read row by row as f32 ([`Tensor::read_row`]), from any number of threads; nothing is
//! copied before that. Opening costs the parsing of the headers.
//!
//! A tied matrix (`tie_word_embeddings`) may be stored under either of its names:
//! [`Checkpoint::embedding`] and [`Checkpoint::lm_head`] are then the same tensor.

mod architecture;
mod class_defaults;
mod config;
mod dsa;
mod dsa_parse;
mod dtype;
mod dummy;
mod fields;
mod files;
mod fingerprint;
mod foreign;
mod fp8;
mod gguf;
mod index_sharing;
mod int8;
mod llada_parse;
mod parse;
mod quantisation;
mod rope;
mod rope_parameters;
mod rope_yarn;
mod shard;
mod sparse_weights;
mod tensor;
#[cfg(test)]
mod tests;
mod windows;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype as StoredDtype;

pub use architecture::{Architecture, EMBED_TOKENS, FINAL_NORM, LM_HEAD, Part};
pub use config::{ModelConfig, StoredWeights};
pub use dsa::{DsaConfig, ExpertsConfig, INDEX_NORM_EPS, IndexKeys, LATENT_NORM_EPS};
pub use dtype::Dtype;
pub use fingerprint::Fingerprint;
pub use gguf::{GgmlType, Gguf};
pub use int8::{INT8_METHOD, INT8_SCALES, quantised_tensors};
pub use rope::{Rope, RopeScaling};
pub use tensor::Tensor;

use crate::error::ModelError;
use crate::tokenizer::Tokenizer;
use shard::{Shard, Stored};

/// A model's configuration, weights and tokenizer, wherever they come from.
pub struct Checkpoint {
    /// The directory or file, or the name of an embedded or dummy model.
    name: PathBuf,
    config: ModelConfig,
    weights: Weights,
    tokenizer: TokenizerSource,
}

enum Weights {
    Stored {
        shards: Vec<Shard>,
        /// Tensor to shard.
        index: HashMap<String, usize>,
    },
    Gguf(Arc<Gguf>),
    Drawn {
        seed: u64,
    },
}

enum TokenizerSource {
    File(PathBuf),
    Bytes(Cow<'static, [u8]>),
    Gguf(Arc<Gguf>),
    None,
}

impl Checkpoint {
    /// Opens a Hugging Face directory, or a GGUF file, and checks that every tensor is there with its shape.
    ///
    /// The weight files are mapped: they must not be changed or cut short while this lives.
    ///
    /// # Errors
    /// Names the file, and the field or tensor, that is missing, wrong or not supported.
    pub fn open(dir: &Path) -> Result<Checkpoint, ModelError> {
        if let Some(gguf) = Gguf::at(dir)? {
            return Checkpoint::of_gguf(gguf);
        }
        let config = ModelConfig::open(dir)?;
        let (shards, index) = files::open_shards(dir)?;
        let checkpoint = Checkpoint {
            name: dir.to_owned(),
            config,
            weights: Weights::Stored { shards, index },
            tokenizer: TokenizerSource::File(dir.join("tokenizer.json")),
        };
        checkpoint.check()?;
        checkpoint.tell();
        Ok(checkpoint)
    }

    /// Takes a model held in memory: the bytes of `config.json`, `model.safetensors` and
    /// `tokenizer.json`. `name` is what errors call it, such as `builtin:target`.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`].
    pub fn from_bytes(
        name: &str,
        config_json: &[u8],
        safetensors: impl Into<Cow<'static, [u8]>>,
        tokenizer_json: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Checkpoint, ModelError> {
        let name = PathBuf::from(name);
        let config = ModelConfig::parse(&name.join("config.json"), config_json)?;
        let shard = Shard::from_bytes(name.join("model.safetensors"), safetensors.into())?;
        let index = shard.names().map(|name| (name.to_owned(), 0)).collect();
        let checkpoint = Checkpoint {
            name,
            config,
            weights: Weights::Stored { shards: vec![shard], index },
            tokenizer: TokenizerSource::Bytes(tokenizer_json.into()),
        };
        checkpoint.check()?;
        checkpoint.tell();
        Ok(checkpoint)
    }

    /// Tells a subscriber of events what was opened.
    fn tell(&self) {
        let files = match &self.weights {
            Weights::Stored { shards, .. } => shards.len(),
            Weights::Gguf(_) => 1,
            Weights::Drawn { .. } => 0,
        };
        tracing::debug!(
            name = %self.name.display(),
            architecture = %self.config.architecture,
            layers = self.config.num_layers,
            parameters = self.config.num_parameters(),
            files,
            "checkpoint opened"
        );
        self.tell_skipped();
    }

    /// A model of the given shape whose weights are drawn from a seed: small, centred numbers that
    /// are the same in every dtype, norm weights of 1. Has no tokenizer. A value is a function of
    /// the seed, the tensor's name and its place alone.
    pub fn dummy(config: ModelConfig, seed: u64) -> Checkpoint {
        Checkpoint {
            name: PathBuf::from("dummy"),
            config,
            weights: Weights::Drawn { seed },
            tokenizer: TokenizerSource::None,
        }
    }

    /// [`Checkpoint::dummy`] for a directory's `config.json` or a GGUF file's metadata (`--load-format
    /// dummy`); its tokenizer is used where there is one.
    ///
    /// # Errors
    /// Those of [`ModelConfig::open`].
    pub fn open_dummy(dir: &Path, seed: u64) -> Result<Checkpoint, ModelError> {
        if let Some(gguf) = Gguf::at(dir)? {
            return Checkpoint::dummy_of_gguf(gguf, seed);
        }
        Ok(Checkpoint {
            name: dir.to_owned(),
            config: ModelConfig::open(dir)?,
            weights: Weights::Drawn { seed },
            tokenizer: TokenizerSource::File(dir.join("tokenizer.json")),
        })
    }

    /// The directory or file, or the name of an embedded model.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether the weights are drawn from a seed.
    pub fn is_dummy(&self) -> bool {
        matches!(self.weights, Weights::Drawn { .. })
    }

    /// Reads the tokenizer that belongs to the model.
    ///
    /// # Errors
    /// [`ModelError::NoTokenizer`] where there is none, [`ModelError::BadTokenizer`] where it is
    /// not one.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        match &self.tokenizer {
            TokenizerSource::File(path) if path.exists() => Tokenizer::open(&self.name),
            TokenizerSource::Gguf(gguf) => gguf.tokenizer(),
            TokenizerSource::Bytes(bytes) => Tokenizer::from_bytes(&self.name.join("tokenizer.json"), bytes),
            TokenizerSource::File(_) | TokenizerSource::None => {
                Err(ModelError::NoTokenizer { path: self.name.clone() })
            }
        }
    }

    /// Whether the checkpoint stores a tensor of that name; a dummy one has every tensor.
    pub fn has(&self, name: &str) -> bool {
        match &self.weights {
            Weights::Stored { index, .. } => index.contains_key(name),
            Weights::Gguf(gguf) => gguf.has(name),
            Weights::Drawn { .. } => true,
        }
    }

    /// A tensor by name, of the shape it must have.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::WrongShape`] or
    /// [`ModelError::UnsupportedDtype`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, ModelError> {
        if let Weights::Drawn { seed } = self.weights {
            let dtype = self.config.torch_dtype;
            return Ok(Tensor::drawn(name, dtype, shape, seed));
        }
        if let Weights::Gguf(gguf) = &self.weights {
            return gguf.tensor(&self.config, name, shape);
        }
        let Some((path, stored)) = self.stored(name) else {
            return Err(ModelError::MissingTensor {
                path: self.name.clone(),
                tensor: name.to_owned(),
                hint: format!("config.json asks for it, with shape {shape:?}"),
            });
        };
        if stored.shape != shape {
            return Err(ModelError::WrongShape {
                path: path.to_owned(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: stored.shape.to_vec(),
            });
        }
        let dtype = match stored.dtype {
            StoredDtype::F32 => Dtype::F32,
            StoredDtype::F16 => Dtype::F16,
            StoredDtype::BF16 => Dtype::Bf16,
            StoredDtype::I8 if self.config.stored_weights == StoredWeights::Int8 => {
                return self.int8_tensor(name, shape, stored.bytes);
            }
            StoredDtype::F8_E4M3 if self.fp8_block().is_some() => {
                return self.fp8_tensor(name, shape, stored.bytes);
            }
            StoredDtype::F8_E8M0 if self.fp8_block().is_some() && name.ends_with(fp8::SCALES) => {
                return Ok(Tensor::powers(name, shape, stored.bytes));
            }
            StoredDtype::I8 if self.has(&format!("{name}{INT8_SCALES}")) => {
                return Err(ModelError::Unsupported {
                    path: path.to_owned(),
                    feature: format!("tensor {name} in 8 bits without a quantization_config in config.json"),
                    hint:
                        "config.json has lost what `pagedraft quantize` wrote there: quantise the model again"
                            .to_owned(),
                });
            }
            other => {
                return Err(ModelError::UnsupportedDtype {
                    path: path.to_owned(),
                    tensor: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        Ok(Tensor::stored(name, dtype, shape, stored.bytes))
    }

    /// The weight of a part of a layer, `[out, in]` or `[width]`.
    ///
    /// # Errors
    /// Those of [`Checkpoint::tensor`].
    pub fn weight(&self, layer: usize, part: Part) -> Result<Tensor<'_>, ModelError> {
        self.tensor(&self.config.architecture.weight_name(layer, part), &self.config.weight_shape(part))
    }

    /// The bias of a part of a layer, `[out]`; `None` where the model has none.
    ///
    /// # Errors
    /// Those of [`Checkpoint::tensor`].
    pub fn bias(&self, layer: usize, part: Part) -> Result<Option<Tensor<'_>>, ModelError> {
        if !self.config.has_bias(part) {
            return Ok(None);
        }
        let name = self.config.architecture.bias_name(layer, part);
        self.tensor(&name, &self.config.bias_shape(part)).map(Some)
    }

    /// The token embedding, `[vocab_size, hidden_size]`.
    ///
    /// # Errors
    /// Those of [`Checkpoint::tensor`].
    pub fn embedding(&self) -> Result<Tensor<'_>, ModelError> {
        let (embed, head) = (self.config.architecture.embed_tokens(), self.config.architecture.lm_head());
        let tied_away = self.config.tie_word_embeddings && !self.has(embed);
        let name = if tied_away && self.has(head) { head } else { embed };
        self.tensor(name, &self.config.embedding_shape())
    }

    /// The output head, `[vocab_size, hidden_size]`: the embedding itself where they are tied.
    ///
    /// # Errors
    /// Those of [`Checkpoint::tensor`].
    pub fn lm_head(&self) -> Result<Tensor<'_>, ModelError> {
        if self.config.tie_word_embeddings {
            return self.embedding();
        }
        self.tensor(self.config.architecture.lm_head(), &self.config.embedding_shape())
    }

    /// The norm before the head, `[hidden_size]`.
    ///
    /// # Errors
    /// Those of [`Checkpoint::tensor`].
    pub fn final_norm(&self) -> Result<Tensor<'_>, ModelError> {
        self.tensor(self.config.architecture.final_norm(), &[self.config.hidden_size])
    }

    fn stored(&self, name: &str) -> Option<(&Path, Stored<'_>)> {
        let Weights::Stored { shards, index } = &self.weights else {
            return None;
        };
        let shard = shards.get(*index.get(name)?)?;
        Some((shard.path(), shard.get(name)?))
    }

    /// Looks at every tensor the configuration demands, and for biases and norms that it denies. Where one
    /// is not as it must be because the weights are quantised, that is the error.
    fn check(&self) -> Result<(), ModelError> {
        self.check_tensors().map_err(|error| {
            if self.fp8_block().is_some() || self.config.stored_weights == StoredWeights::Int8 {
                return error;
            }
            let Weights::Stored { index, .. } = &self.weights else { return error };
            let Some(tool) = quantisation::by_tensors(index.keys().map(String::as_str)) else { return error };
            let (feature, hint) = quantisation::quantised_by(tool);
            ModelError::Unsupported { path: self.name.clone(), feature, hint: hint.to_owned() }
        })
    }

    fn check_tensors(&self) -> Result<(), ModelError> {
        self.embedding()?;
        self.lm_head()?;
        self.final_norm()?;
        if self.config.dsa.is_some() {
            return self.check_sparse_tensors();
        }
        let architecture = self.config.architecture;
        for layer in 0..self.config.num_layers {
            for part in Part::ALL {
                if self.config.has_part(part) {
                    self.weight(layer, part)?;
                } else {
                    self.refuse(&architecture.weight_name(layer, part), "the architecture has no such part")?;
                }
                if self.bias(layer, part)?.is_none() {
                    let hint = "config.json says there is no such bias (attention_bias, mlp_bias)";
                    self.refuse(&architecture.bias_name(layer, part), hint)?;
                }
            }
        }
        let beyond = architecture.weight_name(self.config.num_layers, Part::InputNorm);
        self.refuse(&beyond, "it has more layers than num_hidden_layers")
    }

    fn refuse(&self, name: &str, hint: &str) -> Result<(), ModelError> {
        match self.stored(name) {
            None => Ok(()),
            Some((path, _)) => Err(ModelError::UnexpectedTensor {
                path: path.to_owned(),
                tensor: name.to_owned(),
                hint: hint.to_owned(),
            }),
        }
    }
}
