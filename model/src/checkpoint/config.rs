//! `config.json` as a plain struct: what shape a model has.

use super::architecture::{Architecture, Part};
use super::dsa::DsaConfig;
use super::dtype::Dtype;
use super::rope::Rope;

/// The greatest number of positions that a configuration may ask for. The bound keeps products of two sizes in 64 bits.
pub(super) const MOST_POSITIONS: u64 = (1 << 31) - 1;

/// The shape and the constants of a model.
///
/// Made by [`ModelConfig::parse`], which checks every field; a value built by hand is not checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Number of token ids, rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward half.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even. Need not be `hidden_size / num_heads`.
    pub head_dim: usize,
    /// The greatest number of positions.
    pub max_position_embeddings: usize,
    /// The epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// The embedding and the output head are one matrix.
    pub tie_word_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The output projection of attention has a bias.
    pub o_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// q and k are normed head by head before the rotation (Qwen3).
    pub qk_norm: bool,
    /// The window of each layer: with `Some(w)`, query i sees keys j with i - w < j <= i; with `None`, all
    /// of j <= i.
    pub windows: Vec<Option<u32>>,
    /// The matrices of the layers are stored in [8 bits](crate::cpu::int8).
    pub int8_weights: bool,
    /// The type the checkpoint says it was saved in; float32 where it says nothing.
    pub torch_dtype: Dtype,
    /// Tokens that end a text; of `generation_config.json` where it names any. May be empty.
    pub eos_token_ids: Vec<u32>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// What models with sparse attention over latents have besides; `None` of the others. In such a model `head_dim`
    /// is the width of a query head.
    pub dsa: Option<Box<DsaConfig>>,
    /// The token that stands for what is not known yet, of a model that fills masks in a canvas. Such a model's tokens see
    /// each other in both directions. `None` of a causal model.
    pub mask_token_id: Option<u32>,
}

impl ModelConfig {
    /// Query values a token: `num_heads * head_dim`.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Key (or value) elements a token and layer: `num_kv_heads * head_dim`.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Values that a step's activations take for each token row, all buffers together.
    pub fn row_values(&self) -> usize {
        match &self.dsa {
            Some(dsa) => dsa.row_values(self),
            None => {
                2 * self.hidden_size + 3 * self.q_size() + 2 * self.kv_size() + 3 * self.intermediate_size
            }
        }
    }

    /// Whether a layer of this model has that part.
    pub fn has_part(&self, part: Part) -> bool {
        match part {
            Part::QNorm | Part::KNorm => self.qk_norm,
            _ => true,
        }
    }

    /// Whether that part of a layer has a bias.
    pub fn has_bias(&self, part: Part) -> bool {
        match part {
            Part::Q | Part::K | Part::V => self.qkv_bias,
            Part::O => self.o_bias,
            Part::Gate | Part::Up | Part::Down => self.mlp_bias,
            Part::InputNorm | Part::PostAttentionNorm | Part::QNorm | Part::KNorm => false,
        }
    }

    /// The shape of a part's weight, `[out, in]` or `[width]`.
    pub fn weight_shape(&self, part: Part) -> Vec<usize> {
        let hidden = self.hidden_size;
        match part {
            Part::InputNorm | Part::PostAttentionNorm => vec![hidden],
            Part::QNorm | Part::KNorm => vec![self.head_dim],
            Part::Q => vec![self.q_size(), hidden],
            Part::K | Part::V => vec![self.kv_size(), hidden],
            Part::O => vec![hidden, self.q_size()],
            Part::Gate | Part::Up => vec![self.intermediate_size, hidden],
            Part::Down => vec![hidden, self.intermediate_size],
        }
    }

    /// The shape of a part's bias, `[out]`.
    pub fn bias_shape(&self, part: Part) -> Vec<usize> {
        self.weight_shape(part).into_iter().take(1).collect()
    }

    /// The shape of the embedding and of the head, `[vocab_size, hidden_size]`.
    pub fn embedding_shape(&self) -> Vec<usize> {
        vec![self.vocab_size, self.hidden_size]
    }

    /// Every tensor a layer has, with its shape.
    pub fn layer_tensors(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        if let Some(dsa) = &self.dsa {
            return dsa.layer_tensors(self, layer);
        }
        let mut tensors = Vec::new();
        for part in Part::ALL {
            if self.has_part(part) {
                tensors.push((self.architecture.weight_name(layer, part), self.weight_shape(part)));
            }
            if self.has_bias(part) {
                tensors.push((self.architecture.bias_name(layer, part), self.bias_shape(part)));
            }
        }
        tensors
    }

    /// Every tensor of the model, with its shape. A tied matrix appears once, under
    /// [`Architecture::embed_tokens`].
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![(self.architecture.embed_tokens().to_owned(), self.embedding_shape())];
        for layer in 0..self.num_layers {
            tensors.extend(self.layer_tensors(layer));
        }
        tensors.push((self.architecture.final_norm().to_owned(), vec![self.hidden_size]));
        if !self.tie_word_embeddings {
            tensors.push((self.architecture.lm_head().to_owned(), self.embedding_shape()));
        }
        tensors
    }

    /// Number of parameters; a tied matrix counts once.
    pub fn num_parameters(&self) -> u64 {
        let count = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
        let layer = |l| self.layer_tensors(l).iter().map(|(_, s)| count(s)).sum::<u64>();
        let layers = match self.dsa {
            Some(_) => (0..self.num_layers).map(layer).sum(),
            None => layer(0) * self.num_layers as u64,
        };
        let matrices = if self.tie_word_embeddings { 1 } else { 2 };
        layers + matrices * count(&self.embedding_shape()) + self.hidden_size as u64
    }
}
