//! The rows of a tensor of a GGUF file, in the order in which this engine wants them.

use super::ggml_type::GgmlType;

/// The blocks of a tensor, row by row.
///
/// llama.cpp turns the pairs (2 i, 2 i + 1) of a head where transformers and this engine turn (i, i + head_dim / 2). Its converter
/// therefore stores the rows of q and k of the architecture `llama` in another order: within each head, output i of the first half
/// becomes 2 i, output i of the second half 2 i + 1. Rows are read here as they were before that.
#[derive(Clone, Copy)]
pub(in crate::checkpoint) struct Rows<'a> {
    kind: GgmlType,
    bytes: &'a [u8],
    row_len: usize,
    /// The outputs of a head, where they are stored in llama.cpp's order. They are the rows of a matrix, or the elements of a vector.
    interleaved: Option<usize>,
    is_vector: bool,
}

impl<'a> Rows<'a> {
    /// The caller has checked that `bytes` has the length of the shape, and that a head divides the number of outputs.
    pub fn new(kind: GgmlType, bytes: &'a [u8], shape: &[usize], interleaved: Option<usize>) -> Self {
        let row_len = shape.last().copied().unwrap_or(1);
        Rows { kind, bytes, row_len, interleaved, is_vector: shape.len() < 2 }
    }

    /// The type that they are stored in.
    pub fn kind(&self) -> GgmlType {
        self.kind
    }

    /// Reads a row, of which there are as many as the tensor has, into `out`, which has the length of a row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        if let Some((kind, blocks)) = self.blocks(row) {
            return kind.dequantise(blocks, out);
        }
        let mut stored = vec![0.0; self.row_len];
        self.kind.dequantise(self.bytes, &mut stored);
        for (element, out) in out.iter_mut().enumerate() {
            *out = stored.get(self.place(element)).copied().unwrap_or_default();
        }
    }

    /// The blocks of a row. `None` past the end, and of a vector whose elements are in another order.
    pub fn blocks(&self, row: usize) -> Option<(GgmlType, &'a [u8])> {
        if self.is_vector && self.interleaved.is_some() {
            return None;
        }
        let length = self.kind.row_bytes(self.row_len)?;
        let start = self.place(row).checked_mul(length)?;
        Some((self.kind, self.bytes.get(start..start.checked_add(length)?)?))
    }

    /// All the bytes, where they are plain numbers in order.
    pub fn plain(&self) -> Option<&'a [u8]> {
        (self.kind.dtype().is_some() && self.interleaved.is_none()).then_some(self.bytes)
    }

    /// Where an output is stored.
    fn place(&self, output: usize) -> usize {
        let Some(head) = self.interleaved else { return output };
        let (first, within) = (output - output % head, output % head);
        let (half, pair) = (within / (head / 2), within % (head / 2));
        first + 2 * pair + half
    }
}
