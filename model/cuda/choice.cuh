// Logits and their tokens in one number, so that the better is the greater.
#pragma once
#include <types.cuh>

// In place of a token, where a row of logits has a NaN, plus infinity, or nothing finite.
constexpr u32 NO_TOKEN = 0xffffffffu;
constexpr u64 BAD = ~0ull;

// Greater for a greater logit, and of equals for the lower token. 0 for minus infinity, BAD for NaN and plus infinity.
__device__ __forceinline__ u64 rank_of(f32 logit, u32 token) {
    // Both zeroes are one.
    u32 bits = bits_of(logit + 0.0f);
    if (!(logit < float_of(0x7f800000u))) {
        return BAD;
    }
    if (bits == 0xff800000u) {
        return 0;
    }
    u32 ordered = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
    return (u64(ordered) << 32) | (0xffffffffu - token);
}

// The token of the greatest rank of a row.
__device__ __forceinline__ u32 token_of(u64 rank) {
    return rank == 0 || rank == BAD ? NO_TOKEN : 0xffffffffu - u32(rank);
}
