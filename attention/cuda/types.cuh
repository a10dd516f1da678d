// Number types: how values are stored, widened to f32, and rounded from f32 (to nearest even).
#pragma once
#include <ptx.cuh>

// The upper half of an f32.
struct bf16 {
    u16 bits;
};
// An IEEE number of 16 bits.
struct f16 {
    u16 bits;
};
// 8 bits: a sign, 4 bits of exponent (bias 7) and 3 of fraction. There are no infinities; 0x7f is NaN.
struct fp8 {
    u8 bits;
};

union FloatBits {
    f32 value;
    u32 bits;
};
union DoubleBits {
    f64 value;
    u64 bits;
};

__device__ __forceinline__ u32 bits_of(f32 value) {
    FloatBits both;
    both.value = value;
    return both.bits;
}
__device__ __forceinline__ f32 float_of(u32 bits) {
    FloatBits both;
    both.bits = bits;
    return both.value;
}
__device__ __forceinline__ u64 bits_of(f64 value) {
    DoubleBits both;
    both.value = value;
    return both.bits;
}
__device__ __forceinline__ f64 double_of(u64 bits) {
    DoubleBits both;
    both.bits = bits;
    return both.value;
}

#define MINUS_INFINITY (float_of(0xff800000u))

__device__ __forceinline__ f32 widen(bf16 x) { return float_of(u32(x.bits) << 16); }
__device__ __forceinline__ f32 widen(f16 x) { return f32_of_f16(x.bits); }
// This is exact, even for subnormals: an e4m3 is 2^120 times as large as the f32 with the same fields.
__device__ __forceinline__ f32 widen(fp8 x) {
    u32 magnitude = x.bits & 0x7fu;
    f32 value = float_of((u32(x.bits & 0x80u) << 24) | (magnitude << 20)) * float_of(0x7b800000u);
    return magnitude == 0x7fu ? float_of(0x7fc00000u) : value;
}

__device__ __forceinline__ void narrow(f32 x, bf16 &out) { out.bits = bf16_of_f32(x); }
__device__ __forceinline__ void narrow(f32 x, f16 &out) { out.bits = f16_of_f32(x); }
// Magnitudes above 448 become 448.
__device__ __forceinline__ void narrow(f32 x, fp8 &out) {
    u32 sign = (bits_of(x) >> 24) & 0x80u, code;
    f32 magnitude = fabsf(x);
    if (!(magnitude == magnitude)) {
        code = 0x7f;
    } else if (magnitude >= 448.0f) {
        code = 0x7e;
    } else if (magnitude < 0.015625f) {
        // Subnormals are multiples of 2^-9. Adding 2^23 rounds to a whole number of them.
        code = bits_of(magnitude * 512.0f + 8388608.0f) & 0xfu;
    } else {
        u32 bits = bits_of(magnitude);
        code = ((bits + 0x7ffffu + ((bits >> 20) & 1u)) >> 20) - (120u << 3);
    }
    out.bits = u8(sign | code);
}

// Packs two values into a word, the first in its lower half.
__device__ __forceinline__ u32 pack(f32 first, f32 second, bf16) { return bf16x2_of_f32(first, second); }
__device__ __forceinline__ u32 pack(f32 first, f32 second, f16) { return f16x2_of_f32(first, second); }

template <class T> __device__ __forceinline__ f32 lower(u32 word) {
    T x;
    x.bits = u16(word);
    return widen(x);
}
template <class T> __device__ __forceinline__ f32 upper(u32 word) {
    T x;
    x.bits = u16(word >> 16);
    return widen(x);
}

// Replaces by 0 each of two values that is infinite or NaN.
__device__ __forceinline__ u32 keep_finite(u32 word, u32 exponent) {
    if ((word & exponent) == exponent) {
        word &= 0xffff0000u;
    }
    if (((word >> 16) & exponent) == exponent) {
        word &= 0xffffu;
    }
    return word;
}
__device__ __forceinline__ u32 keep_finite(u32 word, bf16) { return keep_finite(word, 0x7f80u); }
__device__ __forceinline__ u32 keep_finite(u32 word, f16) { return keep_finite(word, 0x7c00u); }

// 16 bytes that are copied at once.
struct alignas(16) Chunk {
    u32 words[4];
};
struct alignas(16) Four {
    f32 x, y, z, w;
};
struct alignas(8) Pair {
    f32 x, y;
};
