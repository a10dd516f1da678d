// The lowest token with the greatest logit of each row.
//
// logits: [rows][vocab]; best, arrived: [rows], zeroes before and after; chosen: [rows], NO_TOKEN where a logit is NaN or plus
// infinity, or none is finite. Grid (rows, PARTS), block 256: a row is shared by PARTS blocks; greatest values need no order.
#include <choice.cuh>
#include <reduce.cuh>

namespace {

constexpr u32 THREADS = 256, PARTS = 8;

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS)
    argmax(const f32 *logits, u64 *best, u32 *arrived, u32 *chosen, u32 vocab) {
    wait_for_previous();
    let_next_start();
    u32 row = blockIdx.x, share = (vocab + PARTS - 1) / PARTS;
    u32 begin = blockIdx.y * share, end = begin + share < vocab ? begin + share : vocab;
    u64 greatest = 0;
    for (u32 token = begin + threadIdx.x; token < end; token += THREADS) {
        u64 rank = rank_of(logits[u64(row) * vocab + token], token);
        greatest = rank > greatest ? rank : greatest;
    }
    greatest = block_max<THREADS>(greatest);
    if (threadIdx.x == 0) {
        atomicMax(best + row, greatest);
    }
    if (last_to_arrive(arrived + row, PARTS) && threadIdx.x == 0) {
        // Past the caches of this multiprocessor.
        greatest = atomicExch(best + row, 0ull);
        chosen[row] = token_of(greatest);
    }
}
