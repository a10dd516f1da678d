// Root mean square norm: out = weight * x / sqrt(mean(x^2) + eps). One kernel adds y to x first.
//
// x: [rows][width] f32; weight: [width] f32; out: [rows][width]; y: [rows][width]. width is a multiple of 8. Grid (rows),
// block 256.
// Squares are summed in a fixed order: a thread adds up 4 adjacent values of every 1,024 as one chain, and block_sum adds
// up the threads.
#include <reduce.cuh>

namespace {

constexpr u32 THREADS = 256;

__device__ __forceinline__ f32 squares(Four x, f32 sum) {
    return fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, sum))));
}

__device__ __forceinline__ void scale(const Four *x, const Four *weight, ACT *out, u32 width, f32 sum, f32 eps) {
    f32 factor = 1.0f / sqrtf(block_sum<THREADS>(sum) / f32(width) + eps);
    for (u32 i = threadIdx.x; i < width / 4; i += THREADS) {
        Four v = x[i], w = weight[i];
        u32 words[2] = {pack(v.x * factor * w.x, v.y * factor * w.y, ACT{}),
                        pack(v.z * factor * w.z, v.w * factor * w.w, ACT{})};
        *(Pair *)(out + i * 4) = Pair{float_of(words[0]), float_of(words[1])};
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(const f32 *x, const f32 *weight, ACT *out, u32 width, f32 eps) {
    wait_for_previous();
    let_next_start();
    const Four *row = (const Four *)(x + u64(blockIdx.x) * width);
    f32 sum = 0.0f;
    for (u32 i = threadIdx.x; i < width / 4; i += THREADS) {
        sum = squares(row[i], sum);
    }
    scale(row, (const Four *)weight, out + u64(blockIdx.x) * width, width, sum, eps);
}

// Adds y to x before the norm.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_rms_norm(f32 *x, const ACT *y, const f32 *weight, ACT *out, u32 width, f32 eps) {
    wait_for_previous();
    let_next_start();
    Four *row = (Four *)(x + u64(blockIdx.x) * width);
    const Pair *added = (const Pair *)(y + u64(blockIdx.x) * width);
    f32 sum = 0.0f;
    for (u32 i = threadIdx.x; i < width / 4; i += THREADS) {
        Pair words = added[i];
        Four v = row[i];
        v.x += lower<ACT>(bits_of(words.x));
        v.y += upper<ACT>(bits_of(words.x));
        v.z += lower<ACT>(bits_of(words.y));
        v.w += upper<ACT>(bits_of(words.y));
        row[i] = v;
        sum = squares(v, sum);
    }
    // Each thread reads only what it wrote itself.
    scale(row, (const Four *)weight, out + u64(blockIdx.x) * width, width, sum, eps);
}
