//! The KV groups of a model on the CPU.

use pagedraft_block_manager::KvGroup;

use super::CpuDevice;
use super::kv::token_bytes;
use crate::checkpoint::{Dtype, ModelConfig};
use crate::error::ModelError;
use crate::{cut, dense, dsa};

impl CpuDevice {
    /// The KV groups that a model of this configuration keeps, for sequences of up to `max_model_len` positions: an arena
    /// is planned from them before there is a device.
    ///
    /// # Errors
    ///
    /// A block size that is not 16, 32 or 64.
    pub fn kv_groups(
        config: &ModelConfig,
        dtype: Dtype,
        block_size: u32,
        max_model_len: usize,
    ) -> Result<Vec<KvGroup>, ModelError> {
        match &config.dsa {
            Some(dsa) => dsa::kv_groups(dsa, |shape| token_bytes(shape, dtype, block_size)),
            None => {
                let bytes = token_bytes(dense::heads_shape(config), dtype, block_size)?;
                Ok(dense::kv_groups(&config.windows, max_model_len, bytes))
            }
        }
    }

    /// The KV groups that a model of this configuration keeps which is [cut](crate::cut) behind the layers `cuts`.
    ///
    /// # Errors
    ///
    /// A block size that is not 16, 32 or 64.
    pub fn cut_groups(
        config: &ModelConfig,
        dtype: Dtype,
        block_size: u32,
        cuts: &[u16],
    ) -> Result<Vec<KvGroup>, ModelError> {
        cut::kv_groups(config, cuts, |shape| token_bytes(shape, dtype, block_size))
    }
}
