//! A dense decoder that is run a layer at a time, so that its queries can be looked at behind each layer.

use pagedraft_block_manager::KvGroup;

use crate::architecture::{Architecture, Attended};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::dense::{DenseDecoder, StepLimits};
use crate::device::{Device, Op};
use crate::error::ModelError;
use crate::kv::PartShape;

/// A dense decoder in as many segments as it has layers. All tokens run through all of them.
pub struct LayerwiseDecoder<B> {
    dense: DenseDecoder<B>,
}

impl<B: Copy> LayerwiseDecoder<B> {
    /// Loads every weight of `checkpoint` onto `device`.
    ///
    /// # Errors
    ///
    /// Those of [`DenseDecoder::load`].
    pub fn load<D: Device<Buf = B>>(
        device: &mut D,
        checkpoint: &Checkpoint,
        limits: StepLimits,
    ) -> Result<Self, ModelError> {
        Ok(Self { dense: DenseDecoder::load(device, checkpoint, limits)? })
    }
}

impl<B: Copy + Send> Architecture<B> for LayerwiseDecoder<B> {
    fn config(&self) -> &ModelConfig {
        self.dense.config()
    }

    fn kv(&self) -> &[KvGroup] {
        self.dense.kv()
    }

    fn shapes(&self) -> &[Vec<PartShape>] {
        self.dense.shapes()
    }

    fn num_segments(&self) -> usize {
        self.dense.num_layers()
    }

    fn segment(&self, index: usize, rows: usize, ops: &mut Vec<Op<B>>) {
        if index == 0 {
            self.dense.embed(rows, ops);
        }
        self.dense.layers(index..index + 1, rows, ops);
    }

    fn head(&self, rows: usize, ops: &mut Vec<Op<B>>) {
        self.dense.head(rows, ops);
    }

    fn attended(&self, segment: usize) -> Option<Attended<B>> {
        self.dense.attended_in(segment)
    }

    fn residual(&self) -> B {
        self.dense.residual()
    }

    fn logits(&self) -> B {
        self.dense.logits()
    }

    fn final_hidden(&self) -> B {
        self.dense.final_hidden()
    }

    fn taps(&self) -> &[B] {
        self.dense.taps()
    }

    fn set_taps(&mut self, taps: Vec<B>) {
        self.dense.set_taps(taps);
    }
}
