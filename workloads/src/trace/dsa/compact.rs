//! The compact file of records, `dsa_topk.bin`.
//!
//! Its first line is JSON and says what the file is: [`CompactHeader`]. Frames follow, one for each query token:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | the length of the body |
//! | 1 | a check of these 4: the lowest byte of their CRC-32 |
//! | 4 | the CRC-32 of the body |
//! | length | the body |
//!
//! Numbers of fixed length are little-endian. Others (*varint*) have 7 bits a byte, the lowest first; the highest bit of a byte says that more
//! follow. A body has, in this order:
//!
//! 1. A byte: the kind of row (bits 0 and 1: prefill, decode, verify), `accepted` (bits 2 and 3: null, false, true), whether the request is
//!    introduced here (bit 4), whether its block table changed (bit 5), whether there are tiers (bit 6).
//! 2. Varint: the request's number. If it is introduced: its name and its `prefix_key` (a varint length and bytes each), and varint
//!    `prefix_cached_blocks`. Its table is empty then, and no layer has a last selection. A number is used again for another request.
//! 3. Varint `step`, varint `step_idx`.
//! 4. If the table changed: a varint, the number of entries that stay; a varint, the number that follow; and each as the difference from
//!    the one before it (0 before the first), as a varint of `2 d`, or of `-2 d - 1` if it is negative.
//! 5. For each layer with an indexer a byte: how its selection is written (bits 0 and 1: all keys, fresh, delta), whether it was scored
//!    (bit 2). The number of keys as a varint, unless all are selected. If it was scored: `scores_stats` (least, mean, greatest) in 32-bit floats, or,
//!    with `--trace-store-scores`, each score. Then the selection's bits, filled up to a byte.
//! 6. If there are tiers, for each layer: the microseconds that it took to find the blocks (a 64-bit float), and for the local and then the
//!    remote pool a varint, the number of blocks that were fetched from it, each of them as the difference from the one before (a
//!    varint), and, if there are any, the microseconds that it took (a 64-bit float).
//!
//! A fresh selection is a set of positions below `seq_len_current`; a delta is the varint number of keys that the layer's last
//! selection for the request had too, the set of their ranks in it, and the set of the new positions. A set is coded as it stands in `subset.rs`: a
//! bit (whether the others are listed), the 5 bits of b, and the gaps before the numbers in Rice's code.
//!
//! All other fields of a record follow from these. Layers without an indexer take no room.

use serde::{Deserialize, Serialize};

use super::DsaTraceConfig;

/// The version of this form.
pub(super) const VERSION: u32 = 1;
/// What the file says that it is.
pub(super) const FORMAT: &str = "pagedraft dsa_topk";
/// The bytes before a frame's body.
pub(super) const FRAME_HEAD: usize = 9;
/// More keys are not read: a selection of so many takes 64 MiB.
pub(super) const MOST_KEYS: u32 = 1 << 24;

/// The first line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CompactHeader {
    pub(super) format: String,
    pub(super) version: u32,
    pub(super) block_size: u32,
    pub(super) dsa: DsaTraceConfig,
}

/// What its name ends with.
pub(super) const EXTENSION: &str = "bin";

/// The CRC-32 of some bytes.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// The check of a length.
pub(super) fn length_check(length: [u8; 4]) -> u8 {
    crc(&length) as u8
}
