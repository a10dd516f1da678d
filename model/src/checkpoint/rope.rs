//! Rotary position embedding: the frequencies of a model.

use std::f32::consts::PI;

/// How a model's positions are turned into angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// What was done to them to reach longer texts.
    pub scaling: RopeScaling,
}

/// A static change of the rope frequencies (`rope_scaling` / `rope_parameters`).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None: `theta^(-2i/d)`.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Llama 3.1: long waves are divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// By how much long waves are divided.
        factor: f64,
        /// Waves longer than `original / low` are long.
        low_freq_factor: f64,
        /// Waves shorter than `original / high` are short.
        high_freq_factor: f64,
        /// The length the model was first trained at.
        original_max_position_embeddings: usize,
    },
    /// Each frequency divided by a number of its own: what the tensor `rope_freqs.weight` of a GGUF file says in place of Llama 3.1's
    /// parameters.
    Divided {
        /// A divisor for each pair.
        divisors: Vec<f32>,
    },
    /// YaRN: pairs that turn often over the first training's length are kept, slow ones divided by `factor`, those
    /// between blended.
    Yarn {
        /// By how much slow pairs are divided.
        factor: f64,
        /// Pairs that turn more often are kept.
        beta_fast: f64,
        /// Pairs that turn less often are divided.
        beta_slow: f64,
        /// The length the model was first trained at.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// The `head_dim / 2` angular frequencies, in radians a position: pair `i` (elements `i` and
    /// `i + head_dim / 2`, the half-split convention) turns by `position * inv_freq[i]`.
    ///
    /// Computed as transformers does on the CPU, in single precision: the exponent, the power and
    /// its reciprocal are each rounded to f32. The power itself is taken in f64 and then rounded,
    /// so that the result does not depend on a platform's single-precision `powf`. Agrees with
    /// transformers to an ulp or so (checked against the `inv_freq` of the golden files).
    /// Llama 3 scaling: `modeling_rope_utils._compute_llama3_parameters`.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let theta = f64::from(self.theta as f32);
        let ramp = self.ramp(head_dim);
        (0..head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                let frequency = 1.0 / theta.powf(f64::from(exponent)) as f32;
                match (&self.scaling, ramp) {
                    (RopeScaling::Yarn { factor, .. }, Some((low, high))) => {
                        let divided = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                        frequency / *factor as f32 * divided + frequency * (1.0 - divided)
                    }
                    (RopeScaling::Divided { divisors }, _) => {
                        frequency / divisors.get(i).copied().unwrap_or(1.0)
                    }
                    _ => self.scale(frequency),
                }
            })
            .collect()
    }

    /// The pairs between which YaRN blends: transformers' `find_correction_range`.
    fn ramp(&self, head_dim: usize) -> Option<(f32, f32)> {
        let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, .. } = self.scaling
        else {
            return None;
        };
        let (d, original) = (head_dim as f64, original_max_position_embeddings as f64);
        let pair =
            |turns: f64| d * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * self.theta.ln());
        let low = pair(beta_fast).floor().max(0.0) as f32;
        let high = pair(beta_slow).ceil().min(d - 1.0) as f32;
        Some((low, if low == high { high + 0.001 } else { high }))
    }

    fn scale(&self, frequency: f32) -> f32 {
        match self.scaling {
            // Those that differ from pair to pair are done by the caller.
            RopeScaling::None | RopeScaling::Yarn { .. } | RopeScaling::Divided { .. } => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
                let original = original_max_position_embeddings as f32;
                let wave = 2.0 * PI / frequency;
                if wave > original / low {
                    frequency / factor
                } else if wave < original / high {
                    frequency
                } else {
                    let smooth = (original / wave - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}
