//! The weights of a checkpoint with sparse attention: fp8 blocks, and layers that are left out.

use super::architecture::Part;
use super::dsa::IndexKeys;
use super::fp8::{Blocks, SCALES};
use super::tensor::Tensor;
use super::{Checkpoint, Weights};
use crate::error::ModelError;

impl Checkpoint {
    /// The block of weights that share a scale, where weights may be fp8.
    pub(super) fn fp8_block(&self) -> Option<[usize; 2]> {
        self.config.dsa.as_ref().and_then(|dsa| dsa.fp8_block)
    }

    /// A matrix in fp8 with its scales, `[ceil(rows / block rows), ceil(columns / block columns)]`.
    pub(super) fn fp8_tensor<'a>(
        &'a self,
        name: &str,
        shape: &[usize],
        bytes: &'a [u8],
    ) -> Result<Tensor<'a>, ModelError> {
        let (Some(block), &[rows, columns]) = (self.fp8_block(), shape) else {
            return Err(ModelError::UnsupportedDtype {
                path: self.name.clone(),
                tensor: name.to_owned(),
                found: "F8_E4M3 of other than two dimensions".to_owned(),
            });
        };
        let scales =
            self.tensor(&format!("{name}{SCALES}"), &[rows.div_ceil(block[0]), columns.div_ceil(block[1])])?;
        Ok(Tensor::blocks(name, shape, Blocks { bytes, scales: Box::new(scales), block }))
    }

    /// How many layers behind the last are there for multi-token prediction. They are left out: nothing here drafts with them.
    #[must_use]
    pub fn skipped_layers(&self) -> usize {
        if self.config.dsa.is_none() || self.is_dummy() {
            return 0;
        }
        let first = self.config.num_layers;
        (first..).take_while(|&layer| self.has(&format!("model.layers.{layer}.eh_proj.weight"))).count()
    }

    /// Looks at every tensor that the configuration demands or denies.
    pub(super) fn check_sparse_tensors(&self) -> Result<(), ModelError> {
        let Some(dsa) = &self.config.dsa else { return Ok(()) };
        for layer in 0..self.config.num_layers {
            for (name, shape) in self.config.layer_tensors(layer) {
                let tensor = self.tensor(&name, &shape)?;
                let scales = format!("{name}{SCALES}");
                if self.has(&scales) && tensor.raw().is_some() {
                    self.refuse(
                        &scales,
                        "its weight is not fp8, so that it is not clear what the scales are for",
                    )?;
                }
            }
            for (name, hint) in dsa.denied_tensors(&self.config, layer) {
                self.refuse(&name, hint)?;
            }
        }
        let behind = self.config.num_layers + self.skipped_layers();
        self.refuse(&Part::InputNorm.weight_name(behind), "it has more layers than num_hidden_layers")
    }

    /// Attends to at most `keys` keys a query, whatever the configuration says.
    ///
    /// # Errors
    ///
    /// 0, more than the model has positions, or a model without an indexer.
    pub fn set_index_topk(&mut self, keys: usize) -> Result<(), ModelError> {
        let positions = self.config.max_position_embeddings;
        let (path, feature) = (self.name.clone(), format!("a choice of {keys} keys a query"));
        let refuse = |hint| Err(ModelError::Unsupported { path, feature, hint });
        match &mut self.config.dsa {
            None => refuse("the model's attention is not sparse".to_owned()),
            Some(_) if !(1..=positions).contains(&keys) => {
                refuse(format!("from 1 to the {positions} positions of the model can be chosen"))
            }
            Some(dsa) => {
                dsa.index_topk = keys;
                Ok(())
            }
        }
    }

    /// Caches the keys of the indexer in another way than in the dtype of the cache.
    ///
    /// # Errors
    ///
    /// A model without an indexer; a Hadamard transform of keys whose values are not a power of two.
    pub fn set_index_keys(&mut self, keys: IndexKeys) -> Result<(), ModelError> {
        let (path, feature) = (self.name.clone(), "fp8 keys of an indexer".to_owned());
        let refuse = |hint| Err(ModelError::Unsupported { path, feature, hint });
        match &mut self.config.dsa {
            None => refuse("the model's attention is not sparse".to_owned()),
            Some(dsa)
                if keys == IndexKeys::Fp8 { hadamard: true } && !dsa.index_head_dim.is_power_of_two() =>
            {
                let values = dsa.index_head_dim;
                refuse(format!("a Hadamard transform of {values} values, which are not a power of two"))
            }
            Some(dsa) => {
                dsa.index_keys = keys;
                Ok(())
            }
        }
    }

    /// Tells a subscriber of events which layers are left out.
    pub(super) fn tell_skipped(&self) {
        if let (layers @ 1.., Weights::Stored { .. }) = (self.skipped_layers(), &self.weights) {
            tracing::info!(name = %self.name.display(), layers, "layers for multi-token prediction are left out");
        }
    }
}
