//! Fills memory with varied values for timings, because a GPU's clock rate depends on the bits that it moves.

use pagedraft_model::cuda::Backend;

/// The number of bytes that are made on the host. The rest is copied from them on the GPU.
const MADE: usize = 16 << 20;

/// Fills memory with bf16 values of either sign between 0.5 and 1.
pub fn fill(backend: &mut impl Backend, at: u64, bytes: usize) {
    let mut state = 0x9e37_79b9_u32;
    let value = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        0x3f00 | (state >> 16) as u16 & 0x807f
    };
    let made: Vec<u8> =
        std::iter::repeat_with(value).take(bytes.min(MADE) / 2).flat_map(u16::to_le_bytes).collect();
    backend.write(at, &made).expect("a copy to the GPU");
    let mut filled = made.len();
    while filled > 0 && filled < bytes {
        let more = filled.min(bytes - filled);
        backend.copy(at, at + filled as u64, more).expect("a copy");
        filled += more;
    }
}
