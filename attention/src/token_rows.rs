//! Rows of values, one for each token of a step.

use crate::error::AttentionError;

/// A matrix of f32 with one row per token; rows start `stride` values apart. It may be a whole matrix, or
/// some columns of a wider one (one matrix product leaves q, k and v side by side).
#[derive(Clone, Copy, Debug)]
pub struct TokenRows<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> TokenRows<'a> {
    /// Rows that start at the multiples of `stride` in `data`. The last row may end early.
    #[must_use]
    pub fn new(data: &'a [f32], stride: usize) -> TokenRows<'a> {
        TokenRows { data, stride }
    }

    /// Checks that there are `rows` rows of `width` values.
    pub(crate) fn check(
        &self,
        buffer: &'static str,
        rows: usize,
        width: usize,
    ) -> Result<(), AttentionError> {
        check_rows(buffer, self.data.len(), self.stride, rows, width)
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The start of a row, which [`check`](Self::check) has found to exist.
    #[inline(always)]
    pub(crate) fn row(&self, token: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(token * self.stride)
    }
}

/// Checks that a buffer of `len` values holds `rows` rows of `width` values that start `stride` values
/// apart.
pub(crate) fn check_rows(
    buffer: &'static str,
    len: usize,
    stride: usize,
    rows: usize,
    width: usize,
) -> Result<(), AttentionError> {
    if rows > 1 && stride < width {
        return Err(AttentionError::SmallBuffer { buffer, found: stride, needed: width });
    }
    let needed = if rows == 0 { 0 } else { (rows - 1) * stride + width };
    if len < needed {
        return Err(AttentionError::SmallBuffer { buffer, found: len, needed });
    }
    Ok(())
}
