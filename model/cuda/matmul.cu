// Matrix products: out[r] (+)= x[r] W^T (+ bias), with the same bits for any number of rows.
//
// The rows of W are the left operand of the multiplications, and token rows are the right one, so that a single token row
// costs no more than a tile of 8. An element of the result is a chain of multiplications over 16 values of k at a time, in
// ascending order, starting from 0. If the weight is split along k, there is a chain for each split, and the chains are
// added in order; a split consists of whole groups of 64 values. Neither the tile size, nor whether the splits of a tile
// are done by blocks of their own or one after the other by the same block, changes a bit. `splits` does change bits, so it
// is a function of the weight's shape alone.
//
// x: [rows][k]; w: [n][k]; bias: [n] or null; out: [rows][n], f32 or ACT as `mode` says (0: store f32, 1: add to f32, 2:
// store ACT); partial: [tiles][splits][T][N], where tile = blockIdx.y * gridDim.x + blockIdx.x; arrived: [tiles], zeroes
// before and after the launch.
// k is a multiple of 8, and n of 4. Grid (ceil(rows / T), ceil(n / N), splits; 1 for a serial kernel), block 32 WARPS,
// dynamic shared memory of STAGES (N + T) 128 bytes.
#include <reduce.cuh>
#include <tile.cuh>

namespace {

// The number of values of k in a stage: 128 bytes of each row.
constexpr u32 DEPTH = 64;
using Lines = Tile<DEPTH / 8>;

enum Mode : u32 { STORE_F32 = 0, ADD_F32 = 1, STORE_ACT = 2 };

struct Product {
    const ACT *x;
    const ACT *w;
    const f32 *bias;
    void *out;
    f32 *partial;
    u32 *arrived;
    u32 rows, n, k, splits, mode;
};

// A tile of N weight rows by T token rows, computed by WN x WT warps.
template <u32 N_, u32 T_, u32 WN_, u32 WT_, u32 STAGES_, bool SERIAL_> struct Shape {
    static constexpr u32 N = N_, T = T_, WN = WN_, WT = WT_, STAGES = STAGES_;
    static constexpr bool SERIAL = SERIAL_;
    static constexpr u32 THREADS = 32 * WN * WT;
    // How many multiplications a warp has along weight rows (16 each) and along token rows (8 each).
    static constexpr u32 NN = N / WN / 16, NT = T / WT / 8;
    static constexpr u32 STAGE = (N + T) * Lines::row_bytes;
    // The number of values from one token row of the finished tile to the next.
    static constexpr u32 PITCH = N + 4;
    static_assert(NT == 1 || NT % 2 == 0, "two tiles of 8 token rows are loaded at once");
    static_assert(T * PITCH * 4 <= STAGES * STAGE, "the finished tile takes the place of the stages");
};

// Starts copying ROWS lines: of rows from `first` on, the values from `at` on. Values behind the end of the rows or of k
// become zeroes.
template <u32 ROWS, u32 THREADS>
__device__ __forceinline__ void load_lines(u8 *to, const ACT *from, u32 first, u32 end, u32 at, u32 k) {
    constexpr u32 AT_ONCE = THREADS / 8;
    u32 row = threadIdx.x / 8, chunk = threadIdx.x % 8;
    u64 start = u64(first + row) * k + at + chunk * 8;
    bool inside = at + chunk * 8 < k;
    to += Lines::at(row, chunk);
#pragma unroll
    for (u32 n = 0; n < ROWS; n += AT_ONCE) {
        if (ROWS % AT_ONCE != 0 && n + row >= ROWS) {
            break;
        }
        bool valid = inside && first + row + n < end;
        copy_async(to + n * Lines::row_bytes, valid ? from + start + u64(n) * k : from, valid);
    }
}

// Multiplies a stage and adds it to the warp's tile.
template <class S> __device__ __forceinline__ void multiply_stage(f32 (&acc)[S::NN][S::NT][4], const u8 *stage) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 n = warp % S::WN * (S::N / S::WN), t = warp / S::WN * (S::T / S::WT);
    const u8 *w = stage, *x = stage + S::N * Lines::row_bytes;
#pragma unroll
    for (u32 step = 0; step < DEPTH / 16; step++) {
        u32 b[S::NT][2];
        if constexpr (S::NT == 1) {
            load_matrices(b[0], x + Lines::at(t + lane % 8, 2 * step + lane / 8 % 2));
        } else {
#pragma unroll
            for (u32 j = 0; j < S::NT; j += 2) {
                u32 two[4];
                load_matrices(two, x + Lines::at(t + j * 8 + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
                b[j][0] = two[0], b[j][1] = two[1], b[j + 1][0] = two[2], b[j + 1][1] = two[3];
            }
        }
#pragma unroll
        for (u32 i = 0; i < S::NN; i++) {
            u32 a[4];
            load_matrices(a, w + Lines::at(n + i * 16 + left_row(), 2 * step + left_chunk()));
#pragma unroll
            for (u32 j = 0; j < S::NT; j++) {
                multiply(acc[i][j], a, b[j][0], b[j][1], (ACT *)nullptr);
            }
        }
    }
}

__device__ __forceinline__ Four add(Four a, Four b) { return Four{a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Writes four adjacent values of an output row.
__device__ __forceinline__ void store(const Product &p, u32 row, u32 n, Four sum) {
    if (p.bias) {
        sum = add(sum, *(const Four *)(p.bias + n));
    }
    u64 at = u64(row) * p.n + n;
    if (p.mode == STORE_ACT) {
        u32 words[2] = {pack(sum.x, sum.y, ACT{}), pack(sum.z, sum.w, ACT{})};
        *(Pair *)((ACT *)p.out + at) = Pair{float_of(words[0]), float_of(words[1])};
    } else {
        Four *to = (Four *)((f32 *)p.out + at);
        *to = p.mode == ADD_F32 ? add(*to, sum) : sum;
    }
}

template <class S> __device__ __forceinline__ void run(const Product p) {
    u8 *shared = shared_memory();
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 first_t = blockIdx.x * S::T, first_n = blockIdx.y * S::N;
    u32 depths = (p.k + DEPTH - 1) / DEPTH;
    u32 per_split = (depths + p.splits - 1) / p.splits;
    u32 begin = S::SERIAL ? 0 : blockIdx.z * per_split;
    u32 end = S::SERIAL ? depths : begin + per_split;
    end = end < depths ? end : depths;
    u32 steps = begin < end ? end - begin : 0;

    auto load_w = [&](u32 step) {
        u8 *to = shared + step % S::STAGES * S::STAGE;
        load_lines<S::N, S::THREADS>(to, p.w, first_n, p.n, (begin + step) * DEPTH, p.k);
    };
    auto load_x = [&](u32 step) {
        u8 *to = shared + step % S::STAGES * S::STAGE + S::N * Lines::row_bytes;
        load_lines<S::T, S::THREADS>(to, p.x, first_t, p.rows, (begin + step) * DEPTH, p.k);
    };

    // The weights do not depend on the kernel before, so they are loaded before waiting for it.
#pragma unroll
    for (u32 step = 0; step < S::STAGES - 1; step++) {
        if (step < steps) {
            load_w(step);
        }
    }
    wait_for_previous();
    let_next_start();
#pragma unroll
    for (u32 step = 0; step < S::STAGES - 1; step++) {
        if (step < steps) {
            load_x(step);
        }
        copy_commit();
    }

    f32 acc[S::NN][S::NT][4], total[S::SERIAL ? S::NN : 1][S::SERIAL ? S::NT : 1][4];
#pragma unroll
    for (u32 i = 0; i < S::NN; i++) {
#pragma unroll
        for (u32 j = 0; j < S::NT; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                acc[i][j][e] = 0.0f;
            }
        }
    }

    // A serial kernel does every split, any other kernel only that of this block.
    for (u32 split = 0; split < steps; split += per_split) {
        u32 stop = split + per_split < steps ? split + per_split : steps;
        for (u32 step = split; step < stop; step++) {
            copy_wait<S::STAGES - 2>();
            // The stage has arrived, and all threads have finished with the stage that is overwritten next.
            __syncthreads();
            if (step + S::STAGES - 1 < steps) {
                load_w(step + S::STAGES - 1);
                load_x(step + S::STAGES - 1);
            }
            copy_commit();
            multiply_stage<S>(acc, shared + step % S::STAGES * S::STAGE);
        }
        if constexpr (S::SERIAL) {
#pragma unroll
            for (u32 i = 0; i < S::NN; i++) {
#pragma unroll
                for (u32 j = 0; j < S::NT; j++) {
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        total[i][j][e] = split == 0 ? acc[i][j][e] : total[i][j][e] + acc[i][j][e];
                        acc[i][j][e] = 0.0f;
                    }
                }
            }
        }
    }
    copy_wait<0>();
    __syncthreads();

    // The finished tile, one token row after the other.
    f32 *tile = (f32 *)shared;
#pragma unroll
    for (u32 i = 0; i < S::NN; i++) {
#pragma unroll
        for (u32 j = 0; j < S::NT; j++) {
            u32 n = warp % S::WN * (S::N / S::WN) + i * 16 + lane / 4;
            u32 t = warp / S::WN * (S::T / S::WT) + j * 8 + lane % 4 * 2;
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                f32 sum = S::SERIAL ? total[S::SERIAL ? i : 0][S::SERIAL ? j : 0][e] : acc[i][j][e];
                tile[(t + e % 2) * S::PITCH + n + e / 2 * 8] = sum;
            }
        }
    }
    __syncthreads();

    u32 rows = p.rows - first_t < S::T ? p.rows - first_t : S::T;
    u32 own = blockIdx.y * gridDim.x + blockIdx.x;
    f32 *partial = p.partial + u64(own) * p.splits * S::T * S::N;
    bool split = !S::SERIAL && p.splits > 1;
    if (split) {
        f32 *to = partial + u64(blockIdx.z) * S::T * S::N;
        for (u32 i = threadIdx.x; i < rows * (S::N / 4); i += S::THREADS) {
            u32 t = i / (S::N / 4), n = i % (S::N / 4) * 4;
            *(Four *)(to + t * S::N + n) = *(const Four *)(tile + t * S::PITCH + n);
        }
        if (!last_to_arrive(p.arrived + own, p.splits)) {
            return;
        }
    }
    // Splits for which no values of k are left are not added.
    u32 used = (depths + per_split - 1) / per_split;
    for (u32 i = threadIdx.x; i < rows * (S::N / 4); i += S::THREADS) {
        u32 t = i / (S::N / 4), n = i % (S::N / 4) * 4;
        Four sum;
        if (split) {
            const f32 *from = partial + t * S::N + n;
            sum = *(const Four *)from;
#pragma unroll 4
            for (u32 s = 1; s < used; s++) {
                sum = add(sum, *(const Four *)(from + u64(s) * S::T * S::N));
            }
        } else {
            sum = *(const Four *)(tile + t * S::PITCH + n);
        }
        if (first_n + n < p.n) {
            store(p, first_t + t, first_n + n, sum);
        }
    }
}

} // namespace

#define MATMUL(NAME, N, T, WN, WT, STAGES, SERIAL, BLOCKS)                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * WN * WT, BLOCKS)                                                         \
        NAME(const ACT *x, const ACT *w, const f32 *bias, void *out, f32 *partial, u32 *arrived, u32 rows, u32 n, u32 k,       \
             u32 splits, u32 mode) {                                                                                           \
        run<Shape<N, T, WN, WT, STAGES, SERIAL>>(Product{x, w, bias, out, partial, arrived, rows, n, k, splits, mode});        \
    }

MATMUL(matmul_8, 64, 8, 4, 1, 6, false, 4)
MATMUL(matmul_16, 64, 16, 4, 1, 5, false, 4)
MATMUL(matmul_32, 128, 32, 4, 1, 4, false, 2)
MATMUL(matmul_64, 128, 64, 4, 1, 4, false, 2)
MATMUL(matmul_128, 128, 128, 2, 4, 3, false, 1)
MATMUL(matmul_128_serial, 128, 128, 2, 4, 3, true, 1)
