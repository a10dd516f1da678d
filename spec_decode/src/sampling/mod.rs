//! Turns a row of logits into a token: filters, the coupled choice, and log probabilities.
//!
//! A token is a function of (logits, parameters, seed, sample, position) alone:
//!
//! ```text
//! token = argmax over kept tokens of  logit / T + gumbel(seed, sample, position, token)
//! ```
//!
//! At T = 0 the token is the plain argmax, and ties go to the lowest id. By the Gumbel-max trick (Gumbel 1954;
//! Maddison, Tarlow, Minka 2014) this is an exact draw from the filtered softmax. The noise comes from a counter, never
//! from a shared stream, so neither the order of requests nor the rest of the batch changes a draw. Because the noise
//! of a token does not depend on the logits, a draft model that chooses with the same noise tends to choose the same
//! tokens.
//!
//! Every number is made of additions, multiplications and divisions in f64 (see `series`), so a seed gives the same
//! text on every machine that computes the same logits.
//!
//! The order of the filters is vLLM's: temperature, then min-p, then top-k, then top-p over the renormalised rest. Ties
//! at an edge go to the lowest ids, and the number of kept tokens is exact (vLLM's top-k keeps all that tie).
//!
//! ```
//! # use pagedraft_spec_decode::sampling::{Sampler, SamplingParams};
//! let params = SamplingParams { temperature: 0.8, top_k: Some(2), seed: 7, ..Default::default() };
//! let mut sampler = Sampler::default();
//! let token = sampler.choose(&[0.1, 2.0, -1.0, 1.9], &params, 42)?;
//! assert!(token == 1 || token == 3);
//! assert_eq!(token, sampler.choose(&[0.1, 2.0, -1.0, 1.9], &params, 42)?);
//! # Ok::<(), pagedraft_spec_decode::sampling::SamplingError>(())
//! ```

pub(crate) mod changes;
mod choose;
mod distribution;
mod error;
mod filter;
mod logprobs;
mod noise;
mod params;
mod philox;
mod row;
pub(crate) mod series;
#[cfg(test)]
mod tests;

pub use changes::{Changer, LogitChanges};
pub use choose::Sampler;
pub use distribution::distribution;
pub use error::SamplingError;
pub use logprobs::{RowLogprobs, TokenLogprob, logprobs};
pub use noise::{Noise, Purpose};
pub use params::SamplingParams;
pub use philox::philox4x32;
