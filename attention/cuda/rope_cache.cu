// Normalises each head of q and k if there are weights for it, rotates q and k by the row's position, writes q out, and
// writes k and v to the row's slot in the KV cache.
//
// qkv: [rows][(HEADS + 2 KV_HEADS) HEAD_DIM]; q_weight, k_weight: [HEAD_DIM] or null; rope: [positions][HEAD_DIM], first
// cosines, then sines; slots: at -1, K and V are not written; q: [rows][HEADS HEAD_DIM]; cache: the layer's part of
// block 0.
// Grid (rows, ceil((HEADS + 2 KV_HEADS) / 4)), block 128: a warp has one head of a row. Value i is rotated together with
// value i + HEAD_DIM / 2.
#include <kv_layout.cuh>
#include <reduce.cuh>

namespace {

constexpr u32 HALF = HEAD_DIM / 2;
// The number of pairs of values that a lane has. The last lanes may have fewer.
constexpr u32 PAIRS = (HALF + 31) / 32;

struct Head {
    f32 low[PAIRS], high[PAIRS];
};

__device__ __forceinline__ u32 pair_of(u32 i) { return i * 32 + threadIdx.x % 32; }

__device__ __forceinline__ void norm(Head &head, const f32 *weight, f32 eps) {
    f32 squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        squares = fmaf(head.low[i], head.low[i], squares);
        squares = fmaf(head.high[i], head.high[i], squares);
    }
    f32 factor = 1.0f / sqrtf(warp_sum(squares) / f32(HEAD_DIM) + eps);
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        u32 d = pair_of(i);
        if (d < HALF) {
            head.low[i] = head.low[i] * factor * weight[d];
            head.high[i] = head.high[i] * factor * weight[d + HALF];
        }
    }
}

__device__ __forceinline__ void rotate(Head &head, const f32 *angles) {
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        u32 d = pair_of(i);
        if (d < HALF) {
            f32 cosine = angles[d], sine = angles[d + HALF], low = head.low[i], high = head.high[i];
            head.low[i] = fmaf(-high, sine, low * cosine);
            head.high[i] = fmaf(low, sine, high * cosine);
        }
    }
}

template <class T> __device__ __forceinline__ void store(const Head &head, T *to, f32 factor) {
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        u32 d = pair_of(i);
        if (d < HALF) {
            narrow(head.low[i] * factor, to[d]);
            narrow(head.high[i] * factor, to[d + HALF]);
        }
    }
}

// The scale of a head for fp8, by which its greatest magnitude becomes 448.
__device__ __forceinline__ f32 scale_of(const Head &head) {
    f32 greatest = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        greatest = fmaxf(greatest, fmaxf(fabsf(head.low[i]), fabsf(head.high[i])));
    }
    f32 scale = warp_max(greatest) / 448.0f;
    return scale > 0.0f ? scale : 1.0f;
}

} // namespace

extern "C" __global__ void __launch_bounds__(128)
    rope_cache(const ACT *qkv, const f32 *q_weight, const f32 *k_weight, const f32 *rope, const u32 *positions,
               const i64 *slots, ACT *q, u8 *cache, u64 block_stride, f32 eps) {
    wait_for_previous();
    let_next_start();
    u64 row = blockIdx.x;
    u32 head = blockIdx.y * 4 + threadIdx.x / 32;
    if (head >= HEADS + 2 * KV_HEADS) {
        return;
    }
    bool is_q = head < HEADS, is_v = head >= HEADS + KV_HEADS;
    i64 slot = slots[row];
    if (!is_q && slot < 0) {
        return;
    }
    const ACT *from = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * HEAD_DIM;
    Head values;
#pragma unroll
    for (u32 i = 0; i < PAIRS; i++) {
        u32 d = pair_of(i);
        values.low[i] = d < HALF ? widen(from[d]) : 0.0f;
        values.high[i] = d < HALF ? widen(from[d + HALF]) : 0.0f;
    }
    const f32 *weight = is_q ? q_weight : k_weight;
    if (!is_v && weight) {
        norm(values, weight, eps);
    }
    if (!is_v) {
        rotate(values, rope + u64(positions[row]) * HEAD_DIM);
    }
    if (is_q) {
        store(values, q + (row * HEADS + head) * HEAD_DIM, 1.0f);
        return;
    }
    u32 kv_head = is_v ? head - HEADS - KV_HEADS : head - HEADS;
    u32 token = u32(u64(slot) % BLOCK_SIZE);
    u8 *part = cache + u64(slot) / BLOCK_SIZE * block_stride + u64(kv_head) * HEAD_BYTES;
    KV *to = (KV *)(part + (is_v ? V_OFFSET : 0) + token * ROW_BYTES);
    if (IS_FP8) {
        f32 scale = scale_of(values);
        store(values, to, 1.0f / scale);
        if (threadIdx.x % 32 == 0) {
            *(f32 *)(part + (is_v ? V_SCALES : K_SCALES) + token * 4) = scale;
        }
    } else {
        store(values, to, 1.0f);
    }
}
