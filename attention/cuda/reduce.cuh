// Sums and greatest values over a warp, over a block of threads, and over the blocks that share a result.
#pragma once
#include <types.cuh>

// The sum over the 32 lanes, in every lane. Lanes 16 apart are added first, then those 8, 4, 2 and 1 apart.
__device__ __forceinline__ f32 warp_sum(f32 x) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        x += shuffle_xor(x, mask);
    }
    return x;
}

__device__ __forceinline__ f32 warp_max(f32 x) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        x = fmaxf(x, shuffle_xor(x, mask));
    }
    return x;
}

__device__ __forceinline__ u64 shuffle_xor(u64 x, u32 mask) {
    u32 low = shuffle_xor(u32(x), mask), high = shuffle_xor(u32(x >> 32), mask);
    return (u64(high) << 32) | low;
}

// The sum over a block of THREADS threads, in every thread: first within each warp, then over the warps in order. A kernel
// may call it only once between two barriers.
template <u32 THREADS> __device__ __forceinline__ f32 block_sum(f32 x) {
    __shared__ f32 sums[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = x;
    }
    __syncthreads();
    f32 total = sums[0];
#pragma unroll
    for (u32 warp = 1; warp < THREADS / 32; warp++) {
        total += sums[warp];
    }
    return total;
}

// The greatest value over a block of THREADS threads, in every thread.
template <u32 THREADS> __device__ __forceinline__ u64 block_max(u64 x) {
    __shared__ u64 greatest[THREADS / 32];
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        u64 other = shuffle_xor(x, mask);
        x = other > x ? other : x;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        greatest[threadIdx.x / 32] = x;
    }
    __syncthreads();
#pragma unroll
    for (u32 warp = 0; warp < THREADS / 32; warp++) {
        x = greatest[warp] > x ? greatest[warp] : x;
    }
    return x;
}

// Signals that this block of threads has written its part. Returns whether it is the last of `parts` blocks to do so. In
// that case all parts can be read, and the counter is 0 again. All threads of the block must call it.
__device__ __forceinline__ bool last_to_arrive(u32 *counter, u32 parts) {
    __shared__ u32 last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) == parts - 1 ? 1u : 0u;
        if (last) {
            *counter = 0;
        }
    }
    __syncthreads();
    __threadfence();
    return last != 0;
}
