// Moves rows, and adds a bias to rows. Widths are multiples of 4. Grid (rows), block 256.
//
// gather_rows: out[i] = x[selection[i]]; copy_rows: out[i] = x[i]; widen_rows: the same from ACT to f32; add_bias,
// add_bias_act: x[i] += bias.
#include <types.cuh>

namespace {

constexpr u32 THREADS = 256;

__device__ __forceinline__ void move(const f32 *from, f32 *to, u32 width) {
    for (u32 i = threadIdx.x; i < width / 4; i += THREADS) {
        ((Four *)to)[i] = ((const Four *)from)[i];
    }
}

__device__ __forceinline__ Four widen(Pair words) {
    u32 low = bits_of(words.x), high = bits_of(words.y);
    return Four{lower<ACT>(low), upper<ACT>(low), lower<ACT>(high), upper<ACT>(high)};
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows(const f32 *x, const u32 *selection, f32 *out, u32 width) {
    wait_for_previous();
    let_next_start();
    move(x + u64(selection[blockIdx.x]) * width, out + u64(blockIdx.x) * width, width);
}

extern "C" __global__ void __launch_bounds__(THREADS) copy_rows(const f32 *x, f32 *out, u32 width) {
    wait_for_previous();
    let_next_start();
    move(x + u64(blockIdx.x) * width, out + u64(blockIdx.x) * width, width);
}

extern "C" __global__ void __launch_bounds__(THREADS) widen_rows(const ACT *x, f32 *out, u32 width) {
    wait_for_previous();
    let_next_start();
    const Pair *from = (const Pair *)(x + u64(blockIdx.x) * width);
    Four *to = (Four *)(out + u64(blockIdx.x) * width);
    for (u32 i = threadIdx.x; i < width / 4; i += THREADS) {
        to[i] = widen(from[i]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) add_bias(f32 *x, const f32 *bias, u32 width) {
    wait_for_previous();
    let_next_start();
    f32 *row = x + u64(blockIdx.x) * width;
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        row[i] += bias[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) add_bias_act(ACT *x, const f32 *bias, u32 width) {
    wait_for_previous();
    let_next_start();
    ACT *row = x + u64(blockIdx.x) * width;
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        narrow(::widen(row[i]) + bias[i], row[i]);
    }
}
