//! Rows of values, one for each token of a step.

use crate::error::AttentionError;

/// One row of f32 a token, `stride` values apart: a whole matrix, or some columns of a wider one (q, k
/// and v as one product leaves them).
#[derive(Clone, Copy, Debug)]
pub struct TokenRows<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> TokenRows<'a> {
    /// Rows that start at each multiple of `stride` in `data`; the last may end early.
    #[must_use]
    pub fn new(data: &'a [f32], stride: usize) -> TokenRows<'a> {
        TokenRows { data, stride }
    }

    /// Whether there are `rows` rows of `width` values.
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

    /// Start of a row that [`check`](Self::check) has found to be there.
    #[inline(always)]
    pub(crate) fn row(&self, token: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(token * self.stride)
    }
}

/// Whether `len` values hold `rows` rows of `width` that are `stride` apart.
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
