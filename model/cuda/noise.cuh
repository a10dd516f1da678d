// Random numbers from a counter, and logarithms and exponentials whose bits are fixed.
//
// These are the numbers of the CPU sampler, bit for bit: f64 additions, multiplications and divisions in the same order,
// none of them fused.
#pragma once
#include <types.cuh>

struct Words {
    u32 words[4];
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011).
__device__ __forceinline__ Words philox(u32 a, u32 b, u32 c, u32 d, u64 key) {
    u32 k0 = u32(key), k1 = u32(key >> 32);
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        u64 p0 = u64(0xd2511f53u) * a, p1 = u64(0xcd9e8d57u) * c;
        a = u32(p1 >> 32) ^ b ^ k0;
        c = u32(p0 >> 32) ^ d ^ k1;
        b = u32(p1);
        d = u32(p0);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return Words{{a, b, c, d}};
}

__device__ __forceinline__ f64 ln2_high() { return double_of(0x3fe62e42fee00000ull); }
__device__ __forceinline__ f64 ln2_low() { return double_of(0x3dea39ef35793c76ull); }

// e^x for x of at most 0. It is 0 below -700.
__device__ __forceinline__ f64 exponential(f64 x) {
    const f64 round = 6755399441055744.0;
    f64 inside = x < -700.0 ? -700.0 : x;
    f64 rounded = inside * 1.44269504088896340735992468100189214 + round;
    f64 k = rounded - round;
    f64 r = (inside - k * ln2_high()) - k * ln2_low();
    const f64 factorials[13] = {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0,
                                120.0,       24.0,       6.0,       2.0,      1.0,     1.0};
    f64 sum = 1.0 / 6227020800.0;
#pragma unroll
    for (u32 i = 0; i < 13; i++) {
        sum = sum * r + 1.0 / factorials[i];
    }
    f64 power = double_of((bits_of(rounded) + 1023ull) << 52);
    return x < -700.0 ? 0.0 : sum * power;
}

// The natural logarithm of a positive normal number.
__device__ __forceinline__ f64 logarithm(f64 x) {
    i64 above = i64(bits_of(x) - 0x3fe6a09e667f3bcdull) >> 52;
    f64 fraction = double_of(bits_of(x) - (u64(above) << 52));
    f64 exponent = f64(above);
    f64 s = (fraction - 1.0) / (fraction + 1.0);
    f64 square = s * s;
    const f64 odds[9] = {19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0};
    f64 sum = 1.0 / 21.0;
#pragma unroll
    for (u32 i = 0; i < 9; i++) {
        sum = sum * square + 1.0 / odds[i];
    }
    f64 tail = 2.0 * s * square * sum;
    return exponent * ln2_high() + (2.0 * s + (tail + exponent * ln2_low()));
}

// Turns 32 random bits into standard Gumbel noise, which is below 23.
__device__ __forceinline__ f64 gumbel(u32 bits) {
    return -logarithm(-logarithm((f64(bits) + 0.5) / 4294967296.0));
}
