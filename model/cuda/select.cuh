// Finds the rank down to which candidates are kept, digit by digit from the top.
#pragma once
#include <types.cuh>

constexpr u32 DIGIT = 11, BINS = 1u << DIGIT;

// What the candidates of each value of a digit amount to, and how many they are.
struct Bins {
    u64 mass[BINS];
    u32 count[BINS];
    u64 group[BINS / 64];
    // The answer.
    u32 digit, found;
    u64 before;
};

__device__ __forceinline__ void clear(Bins &bins) {
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
        bins.mass[i] = 0;
        bins.count[i] = 0;
    }
    __syncthreads();
}

// The greatest digit at which the masses of it and all above it, added to `before`, are enough; `bins.digit`, and in `bins.before`
// the mass above it. `enough` is monotone, and holds for all masses together. By all threads, between barriers.
template <class Enough> __device__ __forceinline__ void find_digit(Bins &bins, u64 before, Enough enough) {
    if (threadIdx.x < BINS / 64) {
        u64 sum = 0;
        for (u32 i = 0; i < 64; i++) {
            sum += bins.mass[threadIdx.x * 64 + i];
        }
        bins.group[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 group = BINS / 64 - 1;
        while (group > 0 && !enough(before + bins.group[group])) {
            before += bins.group[group];
            group--;
        }
        u32 digit = group * 64 + 63;
        while (digit > group * 64 && !enough(before + bins.mass[digit])) {
            before += bins.mass[digit];
            digit--;
        }
        bins.digit = digit;
        bins.found = bins.count[digit];
        bins.before = before;
    }
    __syncthreads();
}

// The least rank that is kept: candidates enter best first until what entered is enough. `rank(i)` of candidates i below `end` are
// above 0 and differ; 0 is none. `mass(i)` is what one adds. By all threads.
template <class Rank, class Mass, class Enough>
__device__ __forceinline__ u64 select(Bins &bins, u32 end, Rank rank, Mass mass, Enough enough) {
    u64 prefix = 0, before = 0;
    u32 shift = 64;
    do {
        u32 bits = shift < DIGIT ? shift : DIGIT;
        u32 above = shift;
        shift -= bits;
        clear(bins);
        for (u32 i = threadIdx.x; i < end; i += blockDim.x) {
            u64 r = rank(i);
            if (r != 0 && (above == 64 || r >> above == prefix)) {
                u32 digit = u32(r >> shift) & ((1u << bits) - 1);
                atomicAdd(&bins.mass[digit], mass(i));
                atomicAdd(&bins.count[digit], 1u);
            }
        }
        __syncthreads();
        find_digit(bins, before, enough);
        prefix = (prefix << bits) | bins.digit;
        before = bins.before;
        // Nothing else begins like this one.
        if (bins.found == 1) {
            break;
        }
        __syncthreads();
    } while (shift > 0);
    __syncthreads();
    return prefix << shift;
}
