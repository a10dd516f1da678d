//! Checks that there is enough memory for what flags ask for, before any of it is taken.

use pagedraft_model::cpu::MemoryLimit;

use crate::error::{EngineError, Result};

/// The bytes that the scheduler keeps for each KV block, besides keys and values. It is a generous figure
/// that includes hash tables which have grown.
const BOOKS_OF_A_BLOCK: u128 = 128;

/// The bytes that are kept for a request, besides its tokens.
const BYTES_OF_A_REQUEST: u128 = 1500;

/// The bytes that `engines` schedulers keep for `num_blocks` KV blocks each, besides keys and values.
#[must_use]
pub fn books(num_blocks: u32, engines: u32) -> u128 {
    u128::from(num_blocks) * u128::from(engines) * BOOKS_OF_A_BLOCK
}

/// The bytes of a batch of requests: for each request what the session and the scheduler keep, and several
/// copies of its tokens.
#[must_use]
pub fn requests(count: u32, input_len: u32, output_len: u32) -> u128 {
    let tokens = 16 * u128::from(input_len) + 8 * u128::from(output_len);
    u128::from(count) * (BYTES_OF_A_REQUEST + tokens)
}

/// Refuses to take more memory than this process may have. `what` is the subject of the message, a flag and
/// its value.
///
/// # Errors
///
/// The bytes do not fit. The error says how many they are, how many there are, and who sets the limit.
pub fn ensure_fits(what: &str, bytes: u128) -> Result<()> {
    ensure_fits_in(MemoryLimit::of_this_process(), what, bytes)
}

fn ensure_fits_in(limit: Option<MemoryLimit>, what: &str, bytes: u128) -> Result<()> {
    match limit {
        Some(limit) if bytes > u128::from(limit.bytes) => Err(EngineError::input(format!(
            "{what} takes {bytes} bytes of memory, and {limit}: ask for less"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use pagedraft_model::cpu::Whose;

    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_both_figures() {
        let limit = Some(MemoryLimit { bytes: 1000, whose: Whose::Machine });
        assert!(ensure_fits_in(limit, "--num-blocks 7", 1000).is_ok());
        assert!(ensure_fits_in(None, "--num-blocks 7", u128::MAX).is_ok());
        let error = ensure_fits_in(limit, "--num-blocks 7", 1001).unwrap_err();
        let told = "--num-blocks 7 takes 1001 bytes of memory, and this machine has 1000: ask for less";
        assert_eq!(error.to_string(), told);
        assert!(matches!(error, EngineError::Input(_)), "{error:?}");
        assert!(books(u32::MAX, u32::MAX) > u128::from(u64::MAX));
    }
}
