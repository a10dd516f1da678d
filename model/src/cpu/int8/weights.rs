//! Packed weights in 8 bits.

use half::f16;

use super::{BIAS, BLOCK, Int8Row, STEP};
use crate::cpu::memory::{Memory, OutOfMemory};
use crate::cpu::panel::GROUP;
use crate::cpu::team::{Chunks, Team};

/// The integers of a block of a group: 16 steps of 4 inputs; in a step two panels of 16 outputs; for each output 4 bytes.
const QUANTS: usize = GROUP * BLOCK;
/// The integers, and behind them the f16 scales of the group's 32 outputs. It is a whole number of cache lines.
pub(super) const BLOCK_BYTES: usize = QUANTS + GROUP * size_of::<f16>();

/// The weights of a matrix in 8 bits, in the order in which a product reads them: by group of 32 outputs, then by block of 64 inputs. n is
/// padded to whole groups and k to whole blocks, with weights of 0 and scales of 0.
#[derive(Debug)]
pub(crate) struct Int8Weights {
    bytes: Memory<u8>,
    blocks: usize,
}

impl Int8Weights {
    /// Packs a matrix of n rows and k columns. `fill(r, row)` must make `row` the row `r` (0..n); any member of the team may call it, once
    /// per row.
    pub fn pack(
        team: &Team,
        n: usize,
        k: usize,
        fill: &(dyn Fn(usize, &mut Int8Row) + Sync),
    ) -> Result<Int8Weights, OutOfMemory> {
        let (groups, blocks) = (n.div_ceil(GROUP), k.div_ceil(BLOCK));
        let too_big = OutOfMemory { bytes: usize::MAX };
        let len = groups.checked_mul(blocks).and_then(|b| b.checked_mul(BLOCK_BYTES)).ok_or(too_big)?;
        let weights = Int8Weights { bytes: Memory::zeroed(len)?, blocks };
        let chunks = Chunks::new(groups, team.members(), 1);
        team.run(&|_, _| {
            let mut rows = vec![Int8Row::default(); GROUP];
            while let Some(run) = chunks.draw() {
                for group in run {
                    let here = GROUP.min(n - group * GROUP);
                    for (i, row) in rows[..here].iter_mut().enumerate() {
                        fill(group * GROUP + i, row);
                        assert_eq!(row.quants().len(), k, "a row of another length");
                    }
                    weights.store_group(group, &rows[..here]);
                }
            }
        });
        Ok(weights)
    }

    /// Writes one group.
    fn store_group(&self, group: usize, rows: &[Int8Row]) {
        let len = self.group_len();
        // SAFETY: groups are disjoint, and each is written by the one share that drew it.
        let to = unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr().add(group * len), len) };
        for (block, to) in to.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            let (quants, scales) = to.split_at_mut(QUANTS);
            quants.fill(BIAS as u8);
            for (o, row) in rows.iter().enumerate() {
                let from = &row.quants()[block * BLOCK..];
                let from = &from[..BLOCK.min(from.len())];
                for (step, four) in from.chunks(STEP).enumerate() {
                    let at = step * GROUP * STEP + o * STEP;
                    for (to, &q) in quants[at..].iter_mut().zip(four) {
                        *to = (i32::from(q) + BIAS) as u8;
                    }
                }
                scales[o * 2..][..2].copy_from_slice(&row.scales()[block].to_ne_bytes());
            }
        }
    }

    /// How many bytes a group takes.
    pub fn group_len(&self) -> usize {
        self.blocks * BLOCK_BYTES
    }

    /// How many blocks lie along k. The last one may be padded.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// All bytes, padding included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The integer and the scale of input `i` of output `r`.
    fn at(&self, r: usize, i: usize) -> (i32, f16) {
        let block = &self.bytes[r / GROUP * self.group_len() + i / BLOCK * BLOCK_BYTES..][..BLOCK_BYTES];
        let (o, i) = (r % GROUP, i % BLOCK);
        let quant = i32::from(block[i / STEP * GROUP * STEP + o * STEP + i % STEP]) - BIAS;
        (quant, f16::from_ne_bytes([block[QUANTS + o * 2], block[QUANTS + o * 2 + 1]]))
    }

    /// Writes the weights of row `r` as f32, exactly.
    pub fn read_row(&self, r: usize, row: &mut [f32]) {
        for (i, x) in row.iter_mut().enumerate() {
            let (quant, scale) = self.at(r, i);
            *x = quant as f32 * scale.to_f32();
        }
    }

    /// Writes the weights of some blocks of a group as f32, exactly: for each input the 32 outputs.
    pub fn widen(&self, group: usize, blocks: std::ops::Range<usize>, out: &mut [f32]) {
        let all = &self.bytes[group * self.group_len()..][..self.group_len()];
        let from = all[blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES].chunks_exact(BLOCK_BYTES);
        for (from, out) in from.zip(out.chunks_exact_mut(BLOCK * GROUP)) {
            let (quants, scales) = from.split_at(QUANTS);
            let mut widened = [0.0; GROUP];
            for (to, two) in widened.iter_mut().zip(scales.as_chunks::<2>().0) {
                *to = f16::from_ne_bytes(*two).to_f32();
            }
            for (from, out) in quants.chunks_exact(GROUP * STEP).zip(out.chunks_exact_mut(GROUP * STEP)) {
                for (i, out) in out.chunks_exact_mut(GROUP).enumerate() {
                    for ((out, four), scale) in out.iter_mut().zip(from.as_chunks::<STEP>().0).zip(&widened) {
                        *out = (i32::from(four[i]) - BIAS) as f32 * scale;
                    }
                }
            }
        }
    }
}
