// The emulator's version of ptx.cuh, with the same functions on the CPU.
//
// A multiplication adds its 16 products to the sum in ascending order and rounds each addition to f32. The products are
// exact. GPUs add in another order and round differently, but they treat all elements alike. What tests compare bit for bit
// here is therefore the order in which a kernel uses the elements.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;
using f32 = float;
using f64 = double;

struct bf16;
struct f16;

inline u8 *shared_memory() { return emulate::launch.shared; }

inline void wait_for_previous() {}
inline void let_next_start() {}

namespace emulate {

template <class T> struct ShuffleIn {
    T value;
    u32 mask;
};

template <class T> void shuffle_lanes(Fiber *lanes) {
    for (u32 lane = 0; lane < 32; lane++) {
        u32 mask = static_cast<const ShuffleIn<T> *>(lanes[lane].in)->mask;
        *static_cast<T *>(lanes[lane].out) = static_cast<const ShuffleIn<T> *>(lanes[lane ^ mask].in)->value;
    }
}

inline void copy_now(const Copy &copy) {
    if (copy.valid) {
        memcpy(copy.to, copy.from, 16);
    } else {
        memset(copy.to, 0, 16);
    }
}

inline void check_row(const void *row) {
    if (reinterpret_cast<size_t>(row) % 16 != 0) {
        fail("a row of a matrix is not aligned to 16 bytes");
    }
}

// Loads COUNT matrices of 8 x 8 values.
template <u32 COUNT, bool TRANSPOSED> void load_lanes(Fiber *lanes) {
    u16 values[COUNT][8][8];
    for (u32 m = 0; m < COUNT; m++) {
        for (u32 row = 0; row < 8; row++) {
            const void *from = *static_cast<const void *const *>(lanes[m * 8 + row].in);
            check_row(from);
            memcpy(values[m][row], from, 16);
        }
    }
    for (u32 lane = 0; lane < 32; lane++) {
        u32 *out = static_cast<u32 *>(lanes[lane].out);
        u32 a = lane / 4, b = lane % 4 * 2;
        for (u32 m = 0; m < COUNT; m++) {
            u16 low = TRANSPOSED ? values[m][b][a] : values[m][a][b];
            u16 high = TRANSPOSED ? values[m][b + 1][a] : values[m][a][b + 1];
            out[m] = u32(low) | u32(high) << 16;
        }
    }
}

struct Operands {
    u32 a[4], b[2];
};

template <class T> f32 operand(u16 bits);

template <class T> void multiply_lanes(Fiber *lanes) {
    f32 a[16][16], b[16][8];
    for (u32 lane = 0; lane < 32; lane++) {
        const Operands &in = *static_cast<const Operands *>(lanes[lane].in);
        u32 g = lane / 4, c = lane % 4 * 2;
        for (u32 half = 0; half < 2; half++) {
            for (u32 n = 0; n < 4; n++) {
                a[g + n % 2 * 8][c + n / 2 * 8 + half] = operand<T>(u16(in.a[n] >> (16 * half)));
            }
            for (u32 n = 0; n < 2; n++) {
                b[c + n * 8 + half][g] = operand<T>(u16(in.b[n] >> (16 * half)));
            }
        }
    }
    for (u32 lane = 0; lane < 32; lane++) {
        f32 *d = static_cast<f32 *>(lanes[lane].out);
        for (u32 n = 0; n < 4; n++) {
            u32 row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
            f32 sum = d[n];
            for (u32 k = 0; k < 16; k++) {
                sum += a[row][k] * b[k][column];
            }
            d[n] = sum;
        }
    }
}

} // namespace emulate

inline f32 shuffle_xor(f32 x, u32 mask) {
    f32 out;
    emulate::collective(emulate::shuffle_lanes<f32>, emulate::ShuffleIn<f32>{x, mask}, out);
    return out;
}
inline u32 shuffle_xor(u32 x, u32 mask) {
    u32 out;
    emulate::collective(emulate::shuffle_lanes<u32>, emulate::ShuffleIn<u32>{x, mask}, out);
    return out;
}

inline void copy_async(void *to, const void *from, bool valid) {
    if (reinterpret_cast<size_t>(to) % 16 != 0 || reinterpret_cast<size_t>(from) % 16 != 0) {
        emulate::fail("a copy is not aligned to 16 bytes");
    }
    emulate::Copy copy{to, from, valid};
    if (emulate::launch.late_copies) {
        emulate::launch.current->copies.back().push_back(copy);
    } else {
        emulate::copy_now(copy);
    }
}
inline void copy_commit() { emulate::launch.current->copies.emplace_back(); }
template <u32 N> void copy_wait() {
    auto &groups = emulate::launch.current->copies;
    // The last group is still open, and is not waited for.
    while (groups.size() > N + 1) {
        for (const emulate::Copy &copy : groups.front()) {
            emulate::copy_now(copy);
        }
        groups.erase(groups.begin());
    }
}

inline void load_matrices(u32 (&r)[4], const void *row) {
    emulate::collective(emulate::load_lanes<4, false>, row, r);
}
inline void load_matrices(u32 (&r)[2], const void *row) {
    emulate::collective(emulate::load_lanes<2, false>, row, r);
}
inline void load_transposed(u32 (&r)[4], const void *row) {
    emulate::collective(emulate::load_lanes<4, true>, row, r);
}

template <class T> void multiply(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, T *) {
    emulate::collective(emulate::multiply_lanes<T>, emulate::Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}}, d);
}

inline f32 power_of_two(f32 x) {
    f32 y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

inline f32 f32_of_bits(u32 bits) {
    f32 y;
    memcpy(&y, &bits, 4);
    return y;
}
inline u32 bits_of_f32(f32 x) {
    u32 y;
    memcpy(&y, &x, 4);
    return y;
}

inline f32 f32_of_f16(u16 bits) {
    u32 sign = u32(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {
        return f32_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    // A half is 2^112 times as large as the f32 with the same fields.
    f32 value = f32_of_bits(magnitude << 13) * f32_of_bits(0x77800000u);
    return f32_of_bits(sign | bits_of_f32(value));
}
inline u16 f16_of_f32(f32 x) {
    u32 sign = bits_of_f32(x) >> 16 & 0x8000u, magnitude = bits_of_f32(x) & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7fff;
    }
    if (magnitude >= 0x477ff000u) {
        return u16(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) {
        // Subnormals are multiples of 2^-24. Adding 0.5, whose last bit is worth 2^-24, rounds to such a multiple.
        return u16(sign | (bits_of_f32(f32_of_bits(magnitude) + 0.5f) - 0x3f000000u));
    }
    u32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return u16(sign | ((rounded >> 13) - (112u << 10)));
}
inline u16 bf16_of_f32(f32 x) {
    u32 bits = bits_of_f32(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fff;
    }
    return u16((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline u32 f16x2_of_f32(f32 first, f32 second) { return u32(f16_of_f32(first)) | u32(f16_of_f32(second)) << 16; }
inline u32 bf16x2_of_f32(f32 first, f32 second) { return u32(bf16_of_f32(first)) | u32(bf16_of_f32(second)) << 16; }

template <> inline f32 emulate::operand<bf16>(u16 bits) { return f32_of_bits(u32(bits) << 16); }
template <> inline f32 emulate::operand<f16>(u16 bits) { return f32_of_f16(bits); }
