// Finds the token with the greatest logit of each row; of equal logits, the lowest token.
//
// logits: [rows][vocab]; best, arrived: [rows], zeroes before and after the launch; chosen: [rows], NO_TOKEN if a logit of
// the row is NaN or plus infinity, or if none is finite. Grid (rows, PARTS), block 256: PARTS blocks share a row. They may
// finish in any order, because a maximum does not depend on it.
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
        // An atomic operation reads past the L1 cache of this multiprocessor.
        greatest = atomicExch(best + row, 0ull);
        chosen[row] = token_of(greatest);
    }
}
