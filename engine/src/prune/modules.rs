//! The trained modules that score tokens: behind each layer a perceptron of one hidden layer.

use std::collections::BTreeMap;
use std::path::Path;

use pagedraft_attention::isa::Isa;
use pagedraft_block_manager::{BlockHash, Salt};
use pagedraft_model::Dtype;
use pagedraft_model::cpu::perceptron::{biased_gelu, round_to};
use pagedraft_model::cpu::products;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::error::{Context, Result, bail, ensure};

/// Reduces to one score what a layer hands on of a token: `W2 gelu(W1 x + b1) + b2`.
#[derive(Clone, Debug)]
struct Perceptron {
    /// `[inner, hidden]`.
    w1: Vec<f32>,
    b1: Vec<f32>,
    w2: Vec<f32>,
    b2: f32,
}

/// The modules of a file, by the layer that each stands behind.
#[derive(Clone, Debug)]
pub struct Modules {
    by_layer: BTreeMap<u16, Perceptron>,
    dtype: Dtype,
    isa: Isa,
    /// Stands for the contents of the file.
    fingerprint: BlockHash,
}

/// Rounds to what the engine's products are made of.
fn round(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F32 => x,
        Dtype::F16 => half::f16::from_f32(x).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
    }
}

fn values(tensor: &TensorView<'_>) -> Result<Vec<f32>> {
    let bytes = tensor.data();
    Ok(match tensor.dtype() {
        safetensors::Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        safetensors::Dtype::BF16 => {
            bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
        }
        safetensors::Dtype::F16 => {
            bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        }
        other => bail!("a tensor of modules is of type {other:?}; F32, BF16 and F16 are known"),
    })
}

impl Modules {
    /// Reads the modules behind `layers` for a model of width `hidden` whose products are of `dtype`.
    ///
    /// # Errors
    ///
    /// The file can't be read, a module is missing, or was trained for a model of another width. The error names the file.
    pub fn read(path: &Path, layers: &[u16], hidden: usize, dtype: Dtype) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("can't read the modules {}", path.display()))?;
        Self::parse(path, &bytes, layers, hidden, dtype)
    }

    /// Takes modules held in memory. `path` is what errors call them.
    ///
    /// # Errors
    ///
    /// Those of [`Modules::read`].
    pub fn parse(path: &Path, bytes: &[u8], layers: &[u16], hidden: usize, dtype: Dtype) -> Result<Self> {
        let shown = path.display();
        let file =
            SafeTensors::deserialize(bytes).with_context(|| format!("{shown} is no safetensors file"))?;
        let inner = hidden / 4;
        let by_layer = layers.iter().map(|&layer| {
            let tensor = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
                let name = format!("{layer}.scorer.{name}");
                let tensor = file.tensor(&name).with_context(|| {
                    format!("{shown} has no tensor {name}: it holds no module for layer {layer}")
                })?;
                ensure!(
                    tensor.shape() == shape,
                    "{shown}: {name} is of shape {:?}, and a model of width {hidden} needs {shape:?}: these modules are for another model",
                    tensor.shape()
                );
                values(&tensor).with_context(|| shown.to_string())
            };
            let rounded = |values: Vec<f32>| values.into_iter().map(|x| round(dtype, x)).collect();
            Ok((
                layer,
                Perceptron {
                    w1: rounded(tensor("0.weight", &[inner, hidden])?),
                    b1: tensor("0.bias", &[inner])?,
                    w2: rounded(tensor("2.weight", &[1, inner])?),
                    b2: tensor("2.bias", &[1])?[0],
                },
            ))
        });
        let words =
            bytes.chunks(4).map(|chunk| chunk.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)));
        let words: Vec<u32> = words.chain([bytes.len() as u32]).collect();
        let fingerprint = BlockHash::of(&BlockHash::ROOT, &words, &Salt::NONE);
        Ok(Self { by_layer: by_layer.collect::<Result<_>>()?, dtype, isa: Isa::detect(), fingerprint })
    }

    /// Stands for the contents of the file.
    #[must_use]
    pub fn fingerprint(&self) -> BlockHash {
        self.fingerprint
    }

    /// Modules of random numbers, for a model of random weights.
    #[must_use]
    pub fn dummy(seed: u64, layers: &[u16], hidden: usize, dtype: Dtype) -> Self {
        let next = |state: &mut u64| {
            // splitmix64
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let inner = hidden / 4;
        let by_layer = layers.iter().map(|&layer| {
            // Each layer has numbers of its own, whichever other layers are asked for.
            let mut state = seed ^ u64::from(layer) << 48;
            let mut values =
                |n: usize| (0..n).map(|_| round(dtype, next(&mut state) * 0.1)).collect::<Vec<f32>>();
            let (w1, b1) = (values(inner * hidden), values(inner));
            (layer, Perceptron { w1, b1, w2: values(inner), b2: 0.0 })
        });
        let by_layer = by_layer.collect();
        let words = [seed as u32, (seed >> 32) as u32, hidden as u32];
        let fingerprint = BlockHash::of(&BlockHash::ROOT, &words, &Salt::of(&[("modules", "dummy")]));
        Self { by_layer, dtype, isa: Isa::detect(), fingerprint }
    }

    /// Whether there is a module behind each of these layers.
    #[must_use]
    pub fn have(&self, layers: &[u16]) -> bool {
        layers.iter().all(|layer| self.by_layer.contains_key(layer))
    }

    /// The same modules, whose products are computed with this instruction set.
    #[must_use]
    pub fn on(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// The score of a token whose residual row behind `layer` is `x`. It is no number where the file has no such module.
    #[must_use]
    pub fn score(&self, layer: u16, x: &[f32]) -> f32 {
        /// Width of the models for which no memory is taken for each token.
        const USUAL: usize = 512;
        let Some(module) = self.by_layer.get(&layer) else { return f32::NAN };
        let (mut few, mut many) = ([0.0; USUAL + USUAL / 4], Vec::new());
        let room = x.len() + module.b1.len();
        let room = match few.get_mut(..room) {
            Some(few) => few,
            None => {
                many.resize(room, 0.0);
                &mut many[..]
            }
        };
        let (row, inner) = room.split_at_mut(x.len());
        row.copy_from_slice(x);
        round_to(self.isa, self.dtype, row);
        products(self.isa, &module.w1, row, inner);
        biased_gelu(self.isa, inner, &module.b1);
        round_to(self.isa, self.dtype, inner);
        let mut score = [0.0];
        products(self.isa, &module.w2, inner, &mut score);
        score[0] + module.b2
    }
}
