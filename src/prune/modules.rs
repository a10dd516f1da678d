//! The trained modules that score tokens: behind each layer a perceptron of one hidden layer.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use pagedraft_model::Dtype;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

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
}

/// Rounds to what the engine's products are made of.
fn round(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F32 => x,
        Dtype::F16 => half::f16::from_f32(x).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
    }
}

fn values(tensor: &TensorView<'_>) -> anyhow::Result<Vec<f32>> {
    let bytes = tensor.data();
    Ok(match tensor.dtype() {
        safetensors::Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        safetensors::Dtype::BF16 => {
            bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
        }
        safetensors::Dtype::F16 => {
            bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        }
        other => anyhow::bail!("a tensor of modules is of type {other:?}; F32, BF16 and F16 are known"),
    })
}

impl Modules {
    /// Reads the modules behind `layers` for a model of width `hidden` whose products are of `dtype`.
    ///
    /// # Errors
    ///
    /// The file can't be read, a module is missing, or was trained for a model of another width. The error names the file.
    pub fn read(path: &Path, layers: &[u16], hidden: usize, dtype: Dtype) -> anyhow::Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("can't read the modules {}", path.display()))?;
        Self::parse(path, &bytes, layers, hidden, dtype)
    }

    /// Takes modules held in memory. `path` is what errors call them.
    ///
    /// # Errors
    ///
    /// Those of [`Modules::read`].
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        layers: &[u16],
        hidden: usize,
        dtype: Dtype,
    ) -> anyhow::Result<Self> {
        let shown = path.display();
        let file =
            SafeTensors::deserialize(bytes).with_context(|| format!("{shown} is no safetensors file"))?;
        let inner = hidden / 4;
        let by_layer = layers.iter().map(|&layer| {
            let tensor = |name: &str, shape: &[usize]| -> anyhow::Result<Vec<f32>> {
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
        Ok(Self { by_layer: by_layer.collect::<anyhow::Result<_>>()?, dtype })
    }

    /// Whether there is a module behind each of these layers.
    #[must_use]
    pub fn have(&self, layers: &[u16]) -> bool {
        layers.iter().all(|layer| self.by_layer.contains_key(layer))
    }

    /// The score of a token whose residual row behind `layer` is `x`. It is no number where the file has no such module.
    #[must_use]
    pub fn score(&self, layer: u16, x: &[f32]) -> f32 {
        let Some(module) = self.by_layer.get(&layer) else { return f32::NAN };
        let x: Vec<f32> = x.iter().map(|&x| round(self.dtype, x)).collect();
        let rows = module.w1.chunks_exact(x.len());
        let inner = rows.zip(&module.b1).map(|(row, b)| gelu(dot(row, &x) + b));
        let inner: Vec<f32> = inner.map(|x| round(self.dtype, x)).collect();
        dot(&module.w2, &inner) + module.b2
    }
}

/// Sixteen sums side by side, which are then added in order: the compiler makes vectors of them, and the result never depends on where the
/// row lies.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// The exact one, `x Phi(x)`.
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}
