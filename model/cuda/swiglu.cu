// out[r] = gate / (1 + e^-gate) * up, where a row of x consists of gate, then up.
//
// x: [rows][2 width]; out: [rows][width]; width is a multiple of 8. Grid (rows, ceil(width / 1024)), block 128: a thread
// computes 8 values.
#include <types.cuh>

namespace {

__device__ __forceinline__ f32 gated(f32 gate, f32 up) {
    return gate / (1.0f + power_of_two(gate * -1.44269504f)) * up;
}

} // namespace

extern "C" __global__ void __launch_bounds__(128) swiglu(const ACT *x, ACT *out, u32 width) {
    wait_for_previous();
    let_next_start();
    u32 at = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (at >= width) {
        return;
    }
    const ACT *row = x + u64(blockIdx.x) * 2 * width + at;
    Chunk gate = *(const Chunk *)row, up = *(const Chunk *)(row + width), result;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 g = gate.words[i], u = up.words[i];
        result.words[i] = pack(gated(lower<ACT>(g), lower<ACT>(u)), gated(upper<ACT>(g), upper<ACT>(u)), ACT{});
    }
    *(Chunk *)(out + u64(blockIdx.x) * width + at) = result;
}
