// Copies whole KV blocks with all layers at once. This is done before a sequence that was forked writes to a shared block
// for the first time.
//
// cache: the arena; pairs: [copies][2], the source block and the target block; block_stride: in bytes, a multiple of 16.
// Grid (copies, ceil(block_stride / 4096)), block 256: a thread copies 16 bytes.
#include <types.cuh>

extern "C" __global__ void __launch_bounds__(256) copy_blocks(u8 *cache, const u32 *pairs, u64 block_stride) {
    wait_for_previous();
    let_next_start();
    u64 source = pairs[2 * blockIdx.x], target = pairs[2 * blockIdx.x + 1];
    u64 at = (u64(blockIdx.y) * 256 + threadIdx.x) * 16;
    if (at < block_stride) {
        *(Chunk *)(cache + target * block_stride + at) = *(const Chunk *)(cache + source * block_stride + at);
    }
}
