//! Packed weights of few bits.

use half::f16;

use super::format::{Layout, SCALES};
use super::{BLOCK, Format, QuantRow};
use crate::cpu::memory::{Memory, OutOfMemory};
use crate::cpu::panel::GROUP;
use crate::cpu::team::{Chunks, Team};

/// The weights of a matrix, in the order in which a product reads them: by group of 32 outputs, then by [block](Layout) of 64 inputs. n is
/// padded to whole groups and k to whole blocks, with weights, scales and least values of 0.
#[derive(Debug)]
pub(crate) struct QuantWeights {
    format: Format,
    bytes: Memory<u8>,
    blocks: usize,
}

impl QuantWeights {
    /// Packs a matrix of n rows and k columns. `fill(r, row)` must make `row` the row `r` (0..n) in this format; any member of the team may
    /// call it, once per row.
    pub fn pack(
        team: &Team,
        format: Format,
        n: usize,
        k: usize,
        fill: &(dyn Fn(usize, &mut QuantRow) + Sync),
    ) -> Result<QuantWeights, OutOfMemory> {
        let (groups, blocks) = (n.div_ceil(GROUP), k.div_ceil(BLOCK));
        let too_big = OutOfMemory { bytes: usize::MAX };
        let len = groups.checked_mul(blocks).and_then(|b| b.checked_mul(format.layout().bytes()));
        let weights = QuantWeights { format, bytes: Memory::zeroed(len.ok_or(too_big)?)?, blocks };
        let chunks = Chunks::new(groups, team.members(), 1);
        team.run(&|_, _| {
            let mut rows = vec![QuantRow::default(); GROUP];
            while let Some(run) = chunks.draw() {
                for group in run {
                    let here = GROUP.min(n - group * GROUP);
                    for (i, row) in rows[..here].iter_mut().enumerate() {
                        fill(group * GROUP + i, row);
                        assert_eq!(
                            (row.quants().len(), row.format()),
                            (k, format),
                            "a row of another matrix"
                        );
                        let parts = k.div_ceil(format.inputs_a_scale());
                        assert_eq!(row.scales().len(), parts, "scales of another row");
                    }
                    weights.store_group(group, &rows[..here]);
                }
            }
        });
        Ok(weights)
    }

    fn layout(&self) -> Layout {
        self.format.layout()
    }

    /// Writes one group.
    fn store_group(&self, group: usize, rows: &[QuantRow]) {
        let (len, layout) = (self.group_len(), self.layout());
        // SAFETY: groups are disjoint, and each is written by the one share that drew it.
        let to = unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr().add(group * len), len) };
        for (block, to) in to.chunks_exact_mut(layout.bytes()).enumerate() {
            // Padding stands for integers of 0.
            let zero = layout.bias as u8;
            to[..layout.quants()].fill(if layout.bits == 8 { zero } else { zero | zero << 4 });
            for (o, row) in rows.iter().enumerate() {
                let from = &row.quants()[block * BLOCK..];
                for (i, &q) in from[..BLOCK.min(from.len())].iter().enumerate() {
                    let (at, shift) = layout.place(i, o);
                    let unsigned = (i32::from(q) + layout.bias) as u8;
                    match layout.bits {
                        8 => to[at] = unsigned,
                        _ => to[at] = to[at] & !(15 << shift) | (unsigned & 15) << shift,
                    }
                }
                let mut store = |from: &[f16], at: usize| {
                    let parts = from[(block * layout.scales).min(from.len())..].iter().take(layout.scales);
                    for (part, scale) in parts.enumerate() {
                        to[at + part * SCALES + o * 2..][..2].copy_from_slice(&scale.to_ne_bytes());
                    }
                };
                store(row.scales(), layout.scale(0));
                store(row.minima(), layout.minimum(0));
            }
        }
    }

    /// How many bytes a group takes.
    pub fn group_len(&self) -> usize {
        self.blocks * self.layout().bytes()
    }

    /// How many blocks lie along k. The last one may be padded.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// What kind of weights they are.
    pub fn format(&self) -> Format {
        self.format
    }

    /// All bytes, padding included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the weights of row `r` as f32.
    pub fn read_row(&self, r: usize, row: &mut [f32]) {
        let (layout, o) = (self.layout(), r % GROUP);
        let blocks = self.bytes[r / GROUP * self.group_len()..].chunks_exact(layout.bytes());
        for (block, row) in blocks.zip(row.chunks_mut(BLOCK)) {
            for (i, x) in row.iter_mut().enumerate() {
                *x = value(layout, block, i, o);
            }
        }
    }

    /// Writes the weights of some blocks of a group as f32: for each input the 32 outputs.
    pub fn widen(&self, group: usize, blocks: std::ops::Range<usize>, out: &mut [f32]) {
        let layout = self.layout();
        let all = &self.bytes[group * self.group_len()..][..self.group_len()];
        let from = &all[blocks.start * layout.bytes()..blocks.end * layout.bytes()];
        for (block, out) in from.chunks_exact(layout.bytes()).zip(out.chunks_exact_mut(BLOCK * GROUP)) {
            for (i, out) in out.chunks_exact_mut(GROUP).enumerate() {
                for (o, out) in out.iter_mut().enumerate() {
                    *out = value(layout, block, i, o);
                }
            }
        }
    }
}

/// The weight of input `i` and output `o` of a block.
#[inline(always)]
fn value(layout: Layout, block: &[u8], i: usize, o: usize) -> f32 {
    let (at, shift) = layout.place(i, o);
    let part = i * layout.scales / BLOCK;
    let half = |at: usize| f16::from_ne_bytes([block[at + o * 2], block[at + o * 2 + 1]]).to_f32();
    let quant = match layout.bits {
        8 => i32::from(block[at]),
        _ => i32::from(block[at] >> shift & 15),
    };
    let product = (quant - layout.bias) as f32 * half(layout.scale(part));
    if layout.minima { product + half(layout.minimum(part)) } else { product }
}
