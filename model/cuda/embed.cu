// Looks up the rows of an embedding table and widens them: out[r] = table[tokens[r]].
//
// table: [vocab][width]; tokens: [rows]; out: [rows][width]. width is a multiple of 8. Grid (rows), block 128.
#include <types.cuh>

extern "C" __global__ void __launch_bounds__(128) embed(const ACT *table, const u32 *tokens, f32 *out, u32 width) {
    wait_for_previous();
    let_next_start();
    const Chunk *from = (const Chunk *)(table + u64(tokens[blockIdx.x]) * width);
    Four *to = (Four *)(out + u64(blockIdx.x) * width);
    for (u32 i = threadIdx.x; i < width / 8; i += 128) {
        Chunk chunk = from[i];
        const u32 *w = chunk.words;
        to[2 * i] = Four{lower<ACT>(w[0]), upper<ACT>(w[0]), lower<ACT>(w[1]), upper<ACT>(w[1])};
        to[2 * i + 1] = Four{lower<ACT>(w[2]), upper<ACT>(w[2]), lower<ACT>(w[3]), upper<ACT>(w[3])};
    }
}
