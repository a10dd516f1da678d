//! Blocks of a GGUF file into f32, as ggml's reference code does it (`dequantize_row_*` in `ggml-quants.c`).
//!
//! A product of a scale and a quantised value fits into the 24 bits of an f32 for every type but Q6_K, where it is rounded once:
//! the results do not depend on the order of the operations or on fused ones.

use half::{bf16, f16};

use super::ggml_type::GgmlType;

impl GgmlType {
    /// Writes the values of whole blocks into `out`. Blocks and values beyond the shorter of the two are left out.
    pub fn dequantise(self, blocks: &[u8], out: &mut [f32]) {
        match self {
            GgmlType::F32 => each::<4, 1>(blocks, out, |block, out| out[0] = f32::from_le_bytes(*block)),
            GgmlType::F16 => each::<2, 1>(blocks, out, |block, out| out[0] = half(*block)),
            GgmlType::Bf16 => each::<2, 1>(blocks, out, |block, out| {
                out[0] = bf16::from_le_bytes(*block).to_f32();
            }),
            GgmlType::Q4_0 => each::<18, 32>(blocks, out, q4_0),
            GgmlType::Q4_1 => each::<20, 32>(blocks, out, q4_1),
            GgmlType::Q8_0 => each::<34, 32>(blocks, out, q8_0),
            GgmlType::Q4K => each::<144, 256>(blocks, out, q4_k),
            GgmlType::Q6K => each::<210, 256>(blocks, out, q6_k),
        }
    }
}

/// Runs `block` on each block of `BYTES` bytes and its `VALUES` values.
fn each<const BYTES: usize, const VALUES: usize>(
    blocks: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (from, to) = (blocks.as_chunks::<BYTES>().0, out.as_chunks_mut::<VALUES>().0);
    from.iter().zip(to).for_each(|(from, to)| block(from, to));
}

fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half([block[0], block[1]]);
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in block[2..].iter().zip(low).zip(high) {
        *low = (f32::from(q & 15) - 8.0) * d;
        *high = (f32::from(q >> 4) - 8.0) * d;
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half([block[0], block[1]]), half([block[2], block[3]]));
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in block[4..].iter().zip(low).zip(high) {
        *low = f32::from(q & 15) * d + m;
        *high = f32::from(q >> 4) * d + m;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half([block[0], block[1]]);
    for (q, out) in block[2..].iter().zip(out) {
        *out = f32::from(*q as i8) * d;
    }
}

/// The 6-bit scale and minimum of group `group` of a Q4_K block, out of its 12 bytes.
///
/// Bytes 0 to 3 hold the scales of groups 0 to 3 in their lower 6 bits, bytes 4 to 7 the minima. Of groups 4 to 7, bytes 8 to 11 hold
/// the lower 4 bits of scale and minimum, and the upper 2 bits of bytes 0 to 3 and 4 to 7 the rest.
pub(super) fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(minimum))
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, m) = (half([block[0], block[1]]), half([block[2], block[3]]));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for (pair, (quants, out)) in quants.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let (first, second) = (scale_and_minimum(packed, 2 * pair), scale_and_minimum(packed, 2 * pair + 1));
        let (low, high) = out.split_at_mut(32);
        for ((q, low), high) in quants.iter().zip(low).zip(high) {
            *low = d * first.0 * f32::from(q & 15) - m * first.1;
            *high = d * second.0 * f32::from(q >> 4) - m * second.1;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half([block[208], block[209]]);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&low[64 * half..], &high[32 * half..], &scales[8 * half..]);
        for (i, out) in out.iter_mut().enumerate() {
            // A half has four runs of 32 values: the low halves of 64 bytes, then their high halves; the upper bits of all four runs are in
            // the same 32 bytes, two bits a run.
            let (run, at) = (i / 32, i % 32);
            let nibble = low[i % 64] >> (i / 64 * 4) & 15;
            let q = nibble | (high[at] >> (2 * run) & 3) << 4;
            *out = d * f32::from(scales[i / 16] as i8) * (f32::from(q) - 32.0);
        }
    }
}
