//! What the indexers of a model with sparse attention chose for the tokens of a request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pagedraft_workloads::trace::npy_header;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// The keys that each indexer chose for each computed token of a sample, from position 0 on.
///
/// It is written as `{"data": .., "start": 0}`. `data` is the base64 of a `.npy` file with an int32 array
/// `[tokens, layers with an indexer, k]`: ascending positions, padded with -1. Every token of a request that
/// asks for it is computed, because the request reads nothing from the prefix cache and shares nothing with
/// other samples of its prompt. Its first position is therefore 0 always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexerTopk {
    layers: usize,
    k: usize,
    /// `[tokens, layers, k]`.
    positions: Vec<i32>,
}

impl IndexerTopk {
    /// No tokens yet.
    pub(super) fn new(layers: usize, k: usize) -> Self {
        Self { layers, k, positions: Vec::new() }
    }

    /// Bytes that the array of so many tokens takes.
    pub(super) fn bytes(tokens: u64, layers: usize, k: usize) -> u128 {
        u128::from(tokens) * layers as u128 * k as u128 * size_of::<i32>() as u128
    }

    /// Takes in what the `place`-th indexer chose for the token at `position`. A token that is computed again
    /// chooses the same keys.
    pub(super) fn set(&mut self, position: u32, place: usize, chosen: &[u32]) {
        let (row, start) = (self.layers * self.k, position as usize);
        if place >= self.layers {
            return;
        }
        if self.positions.len() < (start + 1) * row {
            self.positions.resize((start + 1) * row, -1);
        }
        let from = start * row + place * self.k;
        let slots = &mut self.positions[from..from + self.k];
        slots.fill(-1);
        for (slot, &position) in slots.iter_mut().zip(chosen) {
            *slot = i32::try_from(position).unwrap_or(i32::MAX);
        }
    }

    /// Drops what lies behind the first `tokens` tokens.
    pub(super) fn truncate(&mut self, tokens: usize) {
        self.positions.truncate(tokens.saturating_mul(self.layers * self.k));
    }

    /// The tokens, layers with an indexer, and keys a layer of the array.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        let row = (self.layers * self.k).max(1);
        [self.positions.len() / row, self.layers, self.k]
    }

    /// The array `[tokens, layers with an indexer, k]`: ascending positions, padded with -1.
    #[must_use]
    pub fn positions(&self) -> &[i32] {
        &self.positions
    }

    /// The array as a `.npy` file (version 1.0, little-endian int32, C order).
    #[must_use]
    pub fn npy(&self) -> Vec<u8> {
        let mut file = npy_header(self.shape());
        file.reserve(4 * self.positions.len());
        file.extend(self.positions.iter().flat_map(|position| position.to_le_bytes()));
        file
    }
}

impl Serialize for IndexerTopk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_struct("IndexerTopk", 2)?;
        line.serialize_field("data", &STANDARD.encode(self.npy()))?;
        line.serialize_field("start", &0)?;
        line.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_a_header_of_whole_lines_of_64_bytes_and_then_the_array() {
        let mut topk = IndexerTopk::new(2, 3);
        topk.set(1, 1, &[0, 1]);
        topk.set(0, 0, &[0]);
        topk.set(2, 0, &[0, 1, 2]);
        topk.truncate(2);
        assert_eq!(topk.shape(), [2, 2, 3]);
        assert_eq!(topk.positions(), [0, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, -1]);
        let file = topk.npy();
        let header = usize::from(u16::from_le_bytes([file[8], file[9]]));
        assert_eq!((10 + header) % 64, 0);
        let text = std::str::from_utf8(&file[10..10 + header]).unwrap();
        let dict = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2, 3), }";
        assert!(text.starts_with(dict) && text.ends_with('\n'), "{text:?}");
        assert_eq!(file.len(), 10 + header + 4 * 12);
        assert_eq!(file[10 + header..][36..40], 0i32.to_le_bytes());
    }

    #[test]
    fn it_is_written_as_base64_with_its_first_position() {
        let mut topk = IndexerTopk::new(1, 1);
        topk.set(0, 0, &[0]);
        let value = serde_json::to_value(&topk).unwrap();
        assert_eq!(STANDARD.decode(value["data"].as_str().unwrap()).unwrap(), topk.npy());
        assert_eq!(value["start"], 0);
    }
}
