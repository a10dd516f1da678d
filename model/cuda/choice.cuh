// Packs a logit and its token into one number, so that the better choice is the greater number.
#pragma once
#include <types.cuh>

// Stands in place of a token if a row of logits has a NaN or plus infinity, or nothing finite.
constexpr u32 NO_TOKEN = 0xffffffffu;
constexpr u64 BAD = ~0ull;

// The rank is greater for a greater logit, and for the lower token among equal logits. It is 0 for minus infinity, and BAD
// for NaN and plus infinity.
__device__ __forceinline__ u64 rank_of(f32 logit, u32 token) {
    // Makes the two zeroes equal.
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

// The token of a row, given the greatest rank in it.
__device__ __forceinline__ u32 token_of(u64 rank) {
    return rank == 0 || rank == BAD ? NO_TOKEN : 0xffffffffu - u32(rank);
}
