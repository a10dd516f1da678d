// Finds the least rank of the candidates that are kept, digit by digit from the top.
#pragma once
#include <types.cuh>

constexpr u32 DIGIT = 11, BINS = 1u << DIGIT;

// For each value of a digit, the sum of its candidates' masses, and the number of its candidates.
struct Bins {
    u64 mass[BINS];
    u32 count[BINS];
    u64 group[BINS / 64];
    // The result of `find_digit`.
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

// Finds the greatest digit for which `before`, its mass and the masses of all greater digits together are enough. It writes
// the digit to `bins.digit`, the number of its candidates to `bins.found`, and `before` with the masses of the greater
// digits to `bins.before`. `enough` must be monotone, and true for the sum of all masses. All threads must call it, between
// barriers.
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

// The least rank that is kept, if the candidates are taken from the best one on until the sum of their masses is enough.
// For i below `end`, `rank(i)` is 0 if i is no candidate; all other ranks differ. `mass(i)` is the mass of candidate i. All
// threads must call it.
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
        // Only one candidate's rank begins with these digits.
        if (bins.found == 1) {
            break;
        }
        __syncthreads();
    } while (shift > 0);
    __syncthreads();
    return prefix << shift;
}
