//! A model on a device, run a step at a time.

use pagedraft_block_manager::BlockCopy;

use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::dense::{DenseDecoder, StepLimits};
use crate::device::{Device, Op, StepInputs};
use crate::error::ModelError;

/// Runs forward passes of one model on one device, eagerly.
pub struct Runner<D: Device> {
    device: D,
    model: DenseDecoder<D::Buf>,
    limits: StepLimits,
    ops: Vec<Op<D::Buf>>,
    rows: usize,
}

impl<D: Device> Runner<D> {
    /// Loads the model of `checkpoint` onto `device`.
    ///
    /// # Errors
    ///
    /// See [`DenseDecoder::load`].
    pub fn load(mut device: D, checkpoint: &Checkpoint, limits: StepLimits) -> Result<Self, ModelError> {
        let model = DenseDecoder::load(&mut device, checkpoint, limits)?;
        Ok(Self { device, model, limits, ops: Vec::new(), rows: 0 })
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// The greatest step it was built for.
    #[must_use]
    pub fn limits(&self) -> StepLimits {
        self.limits
    }

    /// Keeps the residual stream of every later step for [`hidden`](Self::hidden); costs a copy a layer.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn tap_hidden(&mut self) -> Result<(), ModelError> {
        self.model.tap_hidden(&mut self.device, self.limits.token_rows)
    }

    /// Copies KV blocks; call before [`forward`](Self::forward) of the step whose plan has them.
    ///
    /// # Errors
    ///
    /// A block outside the pool.
    pub fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        if copies.is_empty() { Ok(()) } else { self.device.copy_blocks(copies) }
    }

    /// Computes the residual stream of every token row, and writes their KV.
    ///
    /// # Errors
    ///
    /// More rows than [`limits`](Self::limits) says, inconsistent inputs, or a fault of the device.
    pub fn forward(&mut self, inputs: &StepInputs) -> Result<(), ModelError> {
        let rows = inputs.tokens.len();
        if rows > self.limits.token_rows {
            return Err(ModelError::StepTooLarge { rows, limit: self.limits.token_rows });
        }
        let vocab = self.model.config().vocab_size;
        if let Some(token) = inputs.tokens.iter().find(|&&t| t as usize >= vocab) {
            let what = format!("token id {token}, and the model's are below {vocab}");
            return Err(ModelError::BadInputs { what });
        }
        let positions = self.limits.max_model_len;
        if let Some(position) = inputs.positions.iter().find(|&&p| p as usize >= positions) {
            let what = format!("position {position}, and the engine was built for {positions}");
            return Err(ModelError::BadInputs { what });
        }
        self.rows = rows;
        self.device.bind(inputs)?;
        self.ops.clear();
        self.model.trunk(rows, &mut self.ops);
        self.device.run(&self.ops)
    }

    /// The logits of token rows of the last [`forward`](Self::forward), `[rows.len(), vocab]` row-major.
    ///
    /// # Errors
    ///
    /// More rows than `limits().logit_rows`, a row that the step did not have, or a fault of the device.
    pub fn logits(&mut self, rows: &[u32]) -> Result<&[f32], ModelError> {
        if rows.len() > self.limits.logit_rows {
            return Err(ModelError::StepTooLarge { rows: rows.len(), limit: self.limits.logit_rows });
        }
        if let Some(&row) = rows.iter().find(|&&r| r as usize >= self.rows) {
            return Err(ModelError::NoSuchTokenRow { row: row as usize, rows: self.rows });
        }
        self.device.select(rows)?;
        self.ops.clear();
        self.model.head(rows.len(), &mut self.ops);
        self.device.run(&self.ops)?;
        self.device.read(self.model.logits(), rows.len())
    }

    /// The final norm's output of the rows last given to [`logits`](Self::logits), `[rows, hidden]`.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    pub fn final_hidden(&mut self, rows: usize) -> Result<&[f32], ModelError> {
        self.device.read(self.model.final_hidden(), rows)
    }

    /// The residual stream of the last step as it entered layer `layer` (`num_layers`: as it left the last), `None` where
    /// [`tap_hidden`](Self::tap_hidden) was not called or there is no such layer.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    pub fn hidden(&mut self, layer: usize) -> Result<Option<&[f32]>, ModelError> {
        match self.model.taps().get(layer) {
            Some(&tap) => self.device.read(tap, self.rows).map(Some),
            None => Ok(None),
        }
    }
}
