// Attention over the paged KV cache, for decode, verify and prefill rows alike.
//
// The keys of a sequence are cut at absolute positions into spans of 256, and spans into tiles of 64. A query's result is
// computed as one tree of operations. The tree does not depend on which item the query is in, or on how many queries and
// items there are:
//
//   1. The scores of a tile: matrix multiplications over 16 values of the head dimension at a time, in ascending order, starting from
//      0. The sums are multiplied by the scale.
//   2. The greatest score so far. A key's weight is 2^(score - greatest). When the greatest score rises, what was summed before is
//      multiplied by 2^(before - greatest). The sum of a span's weights is kept in 16 parts: each of 4 warps has 16 keys of a tile,
//      and 4 lanes share them. A lane adds its 4 weights as (0 + 1) + (2 + 3). The parts are joined at the span's end: first lanes
//      1 apart, then lanes 2 apart, then the warps as (0 + 1) + (2 + 3).
//   3. The sums of values: matrix multiplications over 16 keys of the tile at a time, in ascending order, with weights rounded to ACT.
//   4. Spans are joined in order, starting from an empty part (softmax.cuh). At the end the values are divided by the sum of weights.
//
// A row is one query token in one head of the group. Its tree takes nothing from other rows: a key that the row does not
// see has a weight of exactly 0, and a tile or span of such keys changes no bit of the result. The V of keys behind the
// item's last key is not read. Infinities and NaNs are removed from the V of keys that some rows see and others do not,
// because 0 times those is not 0. All rows are computed by the same instructions.
//
// q, out: [rows][HEADS HEAD_DIM]; cache: the layer's part of block 0; tables: block ids; items: see `Item`; partial:
// [slots][KV_HEADS][R][HEAD_DIM + 2]; arrived: [groups][KV_HEADS], zeroes before and after the launch.
// Grid (any, KV_HEADS), block 128. The dynamic shared memory extends up to 32 bytes beyond `Shared<R>::BLOCKS`.
#include <kv_layout.cuh>
#include <reduce.cuh>
#include <softmax.cuh>
#include <tile.cuh>

namespace {

constexpr u32 THREADS = 128, WARPS = 4;
constexpr u32 TILE = 64, SPAN = 256;
constexpr u32 KEYS = TILE / WARPS;
constexpr u32 STAGES = 2;
constexpr u32 CHUNKS = HEAD_DIM / 8;
constexpr u32 STEPS = HEAD_DIM / 16;
// The number of columns, each of 8 values of the head dimension. A warp has OWN of them.
constexpr u32 COLUMNS = HEAD_DIM / 8;
constexpr u32 OWN = (COLUMNS + WARPS - 1) / WARPS;
constexpr u32 ENTRIES = TILE / BLOCK_SIZE;
constexpr u32 NO_PARTIAL = 0xffffffffu;

using Rows = Tile<CHUNKS>;
using Weights = Tile<TILE / 8>;

// Some consecutive queries of one sequence, and some spans of its keys.
struct Item {
    // The row in q and out of the first query token.
    u32 token;
    u32 queries;
    // The number of keys that the first query sees, and how many more each following query sees: 1 or 0.
    u32 first_visible, visible_step;
    // The index in `tables` where the sequence's blocks begin.
    u32 table;
    u32 span_begin, span_end;
    // The first slot of the group, or NO_PARTIAL if the item has all spans and writes the output itself.
    u32 partial;
    // The items that have the same queries form a group: the index of its counter, and the number of its items.
    u32 group, parts;
    // The number of spans that one item joins, so that they share the first slot; and the number of all spans. Each span
    // after the first `prefix` ones has a slot of its own.
    u32 prefix, spans;

    __device__ __forceinline__ u32 last_visible() const { return first_visible + (queries - 1) * visible_step; }
    __device__ __forceinline__ u32 slot(u32 span) const { return partial + (span < prefix ? 0 : 1 + span - prefix); }
};

template <u32 R> struct Shared {
    static constexpr u32 Q = 0;
    static constexpr u32 Q_BYTES = R * Rows::row_bytes;
    static constexpr u32 TILE_BYTES = TILE * Rows::row_bytes;
    // [stages][K, V]: tiles as they are multiplied. With fp8 there is one stage of these, and RAW has the stages as they
    // are stored.
    static constexpr u32 KV_TILES = Q + Q_BYTES;
    static constexpr u32 RAW = KV_TILES + 2 * TILE_BYTES * (IS_FP8 ? 1 : STAGES);
    static constexpr u32 RAW_BYTES = IS_FP8 ? TILE * HEAD_DIM : 0;
    // [stages][K, V][TILE]: the scales of fp8.
    static constexpr u32 SCALES = RAW + 2 * STAGES * RAW_BYTES;
    static constexpr u32 WEIGHTS = SCALES + (IS_FP8 ? 2 * STAGES * TILE * 4 : 0);
    static constexpr u32 GREATEST = WEIGHTS + R * Weights::row_bytes;
    static constexpr u32 SUMS = GREATEST + WARPS * R * 4;
    static constexpr u32 BLOCKS = SUMS + WARPS * R * 4;
    // The block ids of two tiles follow.
};

// The part of the cache that a block of threads works on.
struct Context {
    const u8 *head;
    const u32 *table;
    u64 block_stride;
    // The position of the first key of the first tile, and the end of the last tile's keys.
    u32 begin, end;
    u32 first_visible;
};

// Starts copying a tile whose KV blocks are `blocks`. Keys from `c.end` on become 0.
template <u32 R> __device__ __forceinline__ void load_tile(const Context &c, u32 tile, const u32 *blocks) {
    u8 *shared = shared_memory();
    u32 first = c.begin + tile * TILE, stage = tile % STAGES;
    constexpr u32 WIDTH = ROW_BYTES / 16;
#pragma unroll
    for (u32 n = 0; n < (TILE * WIDTH + THREADS - 1) / THREADS; n++) {
        u32 i = n * THREADS + threadIdx.x;
        if (TILE * WIDTH % THREADS != 0 && i >= TILE * WIDTH) {
            break;
        }
        u32 row = i / WIDTH, chunk = i % WIDTH, key = first + row;
        bool valid = key < c.end;
        const u8 *from = c.head;
        if (valid) {
            from += u64(blocks[row / BLOCK_SIZE]) * c.block_stride + row % BLOCK_SIZE * ROW_BYTES + chunk * 16;
        }
        u8 *k, *v;
        if (IS_FP8) {
            k = shared + Shared<R>::RAW + 2 * stage * Shared<R>::RAW_BYTES + i * 16;
            v = k + Shared<R>::RAW_BYTES;
        } else {
            k = shared + Shared<R>::KV_TILES + 2 * stage * Shared<R>::TILE_BYTES + Rows::at(row, chunk);
            v = k + Shared<R>::TILE_BYTES;
        }
        copy_async(k, from, valid);
        copy_async(v, from + V_OFFSET, valid);
    }
    if (IS_FP8 && threadIdx.x < 2 * TILE / 4) {
        // A thread copies the scales of four keys: the first 16 threads those of K, the next 16 those of V.
        u32 row = threadIdx.x % (TILE / 4) * 4;
        bool valid = first + row < c.end;
        const u8 *from = c.head;
        if (valid) {
            from += u64(blocks[row / BLOCK_SIZE]) * c.block_stride + row % BLOCK_SIZE * 4;
        }
        u32 offset = threadIdx.x < TILE / 4 ? K_SCALES : V_SCALES;
        copy_async(shared + Shared<R>::SCALES + (2 * stage * TILE + threadIdx.x * 4) * 4, from + offset, valid);
    }
}

// Replaces infinities and NaNs by 0 in the V that this thread has copied, for keys that not all rows see.
template <u32 R> __device__ __forceinline__ void clean_values(const Context &c, u32 tile) {
    u8 *v = shared_memory() + Shared<R>::KV_TILES + (2 * (tile % STAGES) + 1) * Shared<R>::TILE_BYTES;
    for (u32 i = threadIdx.x; i < TILE * CHUNKS; i += THREADS) {
        if (c.begin + tile * TILE + i / CHUNKS >= c.first_visible) {
            Chunk *chunk = (Chunk *)(v + Rows::at(i / CHUNKS, i % CHUNKS));
#pragma unroll
            for (u32 word = 0; word < 4; word++) {
                chunk->words[word] = keep_finite(chunk->words[word], ACT{});
            }
        }
    }
}

// Widens a tile of fp8 to ACT, and replaces infinities and NaNs in V as `clean_values` does.
template <u32 R> __device__ __forceinline__ void widen_tile(const Context &c, u32 tile) {
    u8 *shared = shared_memory();
    for (u32 i = threadIdx.x; i < 2 * TILE * CHUNKS; i += THREADS) {
        u32 half = i / (TILE * CHUNKS), row = i / CHUNKS % TILE, chunk = i % CHUNKS;
        const u8 *from = shared + Shared<R>::RAW + (2 * (tile % STAGES) + half) * Shared<R>::RAW_BYTES + row * HEAD_DIM;
        Pair raw = *(const Pair *)(from + chunk * 8);
        u32 words[2] = {bits_of(raw.x), bits_of(raw.y)};
        Chunk out;
#pragma unroll
        for (u32 word = 0; word < 4; word++) {
            u32 two = words[word / 2] >> (word % 2 * 16);
            fp8 low{u8(two)}, high{u8(two >> 8)};
            out.words[word] = pack(widen(low), widen(high), ACT{});
            if (half == 1 && c.begin + tile * TILE + row >= c.first_visible) {
                out.words[word] = keep_finite(out.words[word], ACT{});
            }
        }
        *(Chunk *)(shared + Shared<R>::KV_TILES + half * Shared<R>::TILE_BYTES + Rows::at(row, chunk)) = out;
    }
}

// A thread's share of 16 rows. It has the rows lane / 4 and lane / 4 + 8, and the columns of its warp.
struct Sixteen {
    // Of the present span.
    f32 greatest[2], weights[2];
    f32 values[OWN][4];
    // Of the spans before it.
    Part total[2];
    f32 total_values[OWN][4];
};

// Computes the scores of the warp's 16 keys: s[tile of 16 rows][group of 8 keys][value].
template <u32 R> __device__ __forceinline__ void score(f32 (&s)[R / 16][2][4], const u8 *q, const u8 *k) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (u32 t = 0; t < R / 16; t++) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                s[t][j][e] = 0.0f;
            }
        }
    }
#pragma unroll(R == 64 ? 1 : STEPS)
    for (u32 step = 0; step < STEPS; step++) {
        // Keys 0 to 7 and 8 to 15, two chunks of each.
        u32 b[4];
        u32 key = warp * KEYS + lane / 16 * 8 + lane % 8;
        load_matrices(b, k + Rows::at(key, 2 * step + lane / 8 % 2));
#pragma unroll
        for (u32 t = 0; t < R / 16; t++) {
            u32 a[4];
            load_matrices(a, q + Rows::at(t * 16 + left_row(), 2 * step + left_chunk()));
            multiply(s[t][0], a, b[0], b[1], (ACT *)nullptr);
            multiply(s[t][1], a, b[2], b[3], (ACT *)nullptr);
        }
    }
}

// Adds a tile's weighted values.
template <u32 R> __device__ __forceinline__ void add_values(Sixteen (&rows)[R / 16], const u8 *p, const u8 *v) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll(R == 64 ? 1 : 4)
    for (u32 step = 0; step < TILE / 16; step++) {
        u32 a[R / 16][4];
#pragma unroll
        for (u32 t = 0; t < R / 16; t++) {
            load_matrices(a[t], p + Weights::at(t * 16 + left_row(), 2 * step + left_chunk()));
        }
#pragma unroll
        for (u32 i = 0; i < OWN; i += 2) {
            // Two columns are loaded at once. The second one may not exist.
            u32 column = warp * OWN + i, mine = column + lane / 16;
            u32 b[4];
            load_transposed(b, v + Rows::at(step * 16 + lane % 16, mine < COLUMNS ? mine : COLUMNS - 1));
#pragma unroll
            for (u32 j = 0; j < 2 && i + j < OWN; j++) {
                if (COLUMNS % WARPS == 0 || column + j < COLUMNS) {
#pragma unroll
                    for (u32 t = 0; t < R / 16; t++) {
                        multiply(rows[t].values[i + j], a[t], b[2 * j], b[2 * j + 1], (ACT *)nullptr);
                    }
                }
            }
        }
    }
}

__device__ __forceinline__ f32 quad_sum(f32 x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}
__device__ __forceinline__ f32 quad_max(f32 x) {
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}

// The sum of the four warps' sums for row `row`.
template <u32 R> __device__ __forceinline__ f32 four_sum(const f32 *sums, u32 row) {
    return (sums[row] + sums[R + row]) + (sums[2 * R + row] + sums[3 * R + row]);
}

// Where the partial result of a row lies: HEAD_DIM values, the greatest score, and the sum of weights.
template <u32 R> __device__ __forceinline__ f32 *partial_row(f32 *partial, u32 slot, u32 row) {
    return partial + ((u64(slot) * KV_HEADS + blockIdx.y) * R + row) * (HEAD_DIM + 2);
}

__device__ __forceinline__ ACT *out_row(ACT *out, const Item &item, u32 row) {
    return out + (u64(item.token + row / GROUP) * HEADS + blockIdx.y * GROUP + row % GROUP) * HEAD_DIM;
}

// Joins the parts of a group in order, and writes the output.
template <u32 R> __device__ __forceinline__ void join_parts(const Item &item, f32 *partial, ACT *out) {
    u32 slots = 1 + item.spans - item.prefix;
    for (u32 i = threadIdx.x; i < item.queries * GROUP * (HEAD_DIM / 2); i += THREADS) {
        u32 row = i / (HEAD_DIM / 2), d = i % (HEAD_DIM / 2) * 2;
        Part total = nothing();
        f32 low = 0.0f, high = 0.0f;
#pragma unroll 4
        for (u32 n = 0; n < slots; n++) {
            const f32 *from = partial_row<R>(partial, item.partial + n, row);
            Pair values = *(const Pair *)(from + d), rest = *(const Pair *)(from + HEAD_DIM);
            // The row sees no key of the span.
            if (rest.x == MINUS_INFINITY) {
                continue;
            }
            Factors factors = join(total, Part{rest.x, rest.y});
            low = join(low, values.x, factors);
            high = join(high, values.y, factors);
        }
        u32 word = pack(mean(low, total.weights), mean(high, total.weights), ACT{});
        *(u32 *)(out_row(out, item, row) + d) = word;
    }
}

template <u32 R>
__device__ __forceinline__ void attend(const ACT *q, ACT *out, const u8 *cache, const u32 *tables, const Item &item,
                                       f32 *partial, u32 *arrived, u64 block_stride, f32 scale) {
    constexpr u32 TILES = R / 16;
    u8 *shared = shared_memory();
    f32 *greatest = (f32 *)(shared + Shared<R>::GREATEST), *sums = (f32 *)(shared + Shared<R>::SUMS);
    u32 *blocks = (u32 *)(shared + Shared<R>::BLOCKS);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 live = item.queries * GROUP;

    Context c;
    c.head = cache + u64(blockIdx.y) * HEAD_BYTES;
    c.block_stride = block_stride;
    c.begin = item.span_begin * SPAN;
    u32 last = item.last_visible();
    c.end = last < item.span_end * SPAN ? last : item.span_end * SPAN;
    c.first_visible = item.first_visible;
    c.table = tables + item.table;
    u32 tiles = (c.end - c.begin + TILE - 1) / TILE;
    auto block_at = [&](u32 tile) {
        u32 entry = (c.begin + tile * TILE) / BLOCK_SIZE + threadIdx.x;
        return entry * BLOCK_SIZE < c.end ? c.table[entry] : 0u;
    };

    if (threadIdx.x < ENTRIES) {
        blocks[threadIdx.x] = block_at(0);
        blocks[4 + threadIdx.x] = block_at(1);
    }
    for (u32 i = threadIdx.x; i < R * CHUNKS; i += THREADS) {
        u32 row = i / CHUNKS, chunk = i % CHUNKS;
        bool valid = row < live;
        u64 from = u64(item.token + row / GROUP) * HEADS + blockIdx.y * GROUP + row % GROUP;
        copy_async(shared + Shared<R>::Q + Rows::at(row, chunk), valid ? q + from * HEAD_DIM + chunk * 8 : q, valid);
    }
    __syncthreads();
    load_tile<R>(c, 0, blocks);
    copy_commit();

    Sixteen rows[TILES];
    // The number of keys that a row sees. It is 0 for rows behind the item's last one.
    auto visible = [&](u32 row) { return row < live ? item.first_visible + row / GROUP * item.visible_step : 0; };
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            rows[t].total[h] = nothing();
            rows[t].greatest[h] = MINUS_INFINITY;
            rows[t].weights[h] = 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                rows[t].values[i][e] = rows[t].total_values[i][e] = 0.0f;
            }
        }
    }
    // Weights are powers of two, so scores are multiplied by log2(e) as well.
    f32 factor_of_scores = scale * 1.44269504f;

    for (u32 tile = 0; tile < tiles; tile++) {
        u32 first = c.begin + tile * TILE;
        bool mixed = item.visible_step > 0 && first + TILE > c.first_visible;
        copy_wait<0>();
        if (!IS_FP8 && mixed) {
            clean_values<R>(c, tile);
        }
        // The tile has arrived, and all threads have finished with the tile before.
        __syncthreads();
        u32 next_block = 0;
        if (tile + 1 < tiles) {
            load_tile<R>(c, tile + 1, blocks + (tile + 1) % 2 * 4);
        }
        copy_commit();
        if (threadIdx.x < ENTRIES) {
            next_block = block_at(tile + 2);
        }
        if (IS_FP8) {
            widen_tile<R>(c, tile);
            __syncthreads();
        }
        const u8 *k = shared + Shared<R>::KV_TILES + (IS_FP8 ? 0 : 2 * (tile % STAGES) * Shared<R>::TILE_BYTES);
        const u8 *v = k + Shared<R>::TILE_BYTES;
        const f32 *scales = (const f32 *)(shared + Shared<R>::SCALES) + 2 * (tile % STAGES) * TILE;

        f32 s[TILES][2][4];
        score<R>(s, shared + Shared<R>::Q, k);
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 row = t * 16 + h * 8 + lane / 4, end = visible(row);
                f32 most = MINUS_INFINITY;
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
#pragma unroll
                    for (u32 e = 0; e < 2; e++) {
                        u32 at = warp * KEYS + j * 8 + lane % 4 * 2 + e;
                        f32 &x = s[t][j][h * 2 + e];
                        if (IS_FP8) {
                            x *= scales[at];
                        }
                        x = first + at < end ? x * factor_of_scores : MINUS_INFINITY;
                        most = fmaxf(most, x);
                    }
                }
                most = quad_max(most);
                if (lane % 4 == 0) {
                    greatest[warp * R + row] = most;
                }
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            f32 fallen[2];
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 row = t * 16 + h * 8 + lane / 4;
                f32 most = rows[t].greatest[h];
#pragma unroll
                for (u32 w = 0; w < WARPS; w++) {
                    most = fmaxf(most, greatest[w * R + row]);
                }
                // If the row has seen no key yet, any finite number will do.
                f32 against = most == MINUS_INFINITY ? 0.0f : most;
                fallen[h] = power_of_two(rows[t].greatest[h] - against);
                rows[t].greatest[h] = most;
                f32 p[2][2];
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
#pragma unroll
                    for (u32 e = 0; e < 2; e++) {
                        p[j][e] = power_of_two(s[t][j][h * 2 + e] - against);
                    }
                }
                f32 added = (p[0][0] + p[0][1]) + (p[1][0] + p[1][1]);
                rows[t].weights[h] = fmaf(rows[t].weights[h], fallen[h], added);
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    u32 at = warp * KEYS + j * 8 + lane % 4 * 2;
                    f32 low = p[j][0], high = p[j][1];
                    if (IS_FP8) {
                        low = first + at < visible(row) ? low * scales[TILE + at] : 0.0f;
                        high = first + at + 1 < visible(row) ? high * scales[TILE + at + 1] : 0.0f;
                    }
                    u8 *to = shared + Shared<R>::WEIGHTS + Weights::at(row, at / 8) + at % 8 * 2;
                    *(u32 *)to = pack(low, high, ACT{});
                }
            }
#pragma unroll
            for (u32 i = 0; i < OWN; i++) {
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    rows[t].values[i][e] *= fallen[e / 2];
                }
            }
        }
        __syncthreads();
        add_values<R>(rows, shared + Shared<R>::WEIGHTS, v);

        if (threadIdx.x < ENTRIES) {
            blocks[tile % 2 * 4 + threadIdx.x] = next_block;
        }
        u32 span = first / SPAN;
        if (tile + 1 < tiles && (first + TILE) % SPAN != 0) {
            continue;
        }
        // This is the end of a span.
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                f32 sum = quad_sum(rows[t].weights[h]);
                if (lane % 4 == 0) {
                    sums[warp * R + t * 16 + h * 8 + lane / 4] = sum;
                }
            }
        }
        __syncthreads();
        bool joined = item.partial == NO_PARTIAL || span < item.prefix;
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                Part part{rows[t].greatest[h], four_sum<R>(sums, t * 16 + h * 8 + lane / 4)};
                // A span of which the row sees no key does not change the row's total.
                if (part.greatest != MINUS_INFINITY) {
                    Factors factors = join(rows[t].total[h], part);
#pragma unroll
                    for (u32 i = 0; i < OWN; i++) {
#pragma unroll
                        for (u32 e = 0; e < 2; e++) {
                            f32 &total = rows[t].total_values[i][h * 2 + e];
                            total = join(total, rows[t].values[i][h * 2 + e], factors);
                        }
                    }
                }
                rows[t].greatest[h] = MINUS_INFINITY;
                rows[t].weights[h] = 0.0f;
#pragma unroll
                for (u32 i = 0; i < OWN; i++) {
#pragma unroll
                    for (u32 e = 0; e < 2; e++) {
                        rows[t].values[i][h * 2 + e] = 0.0f;
                    }
                }
            }
        }
        // The slot is full: after the last span of the prefix, or after any span behind it.
        if (item.partial != NO_PARTIAL && (!joined || tile + 1 == tiles)) {
            u32 slot = item.slot(span);
#pragma unroll
            for (u32 t = 0; t < TILES; t++) {
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    u32 row = t * 16 + h * 8 + lane / 4;
                    if (row < live) {
                        f32 *to = partial_row<R>(partial, slot, row);
#pragma unroll
                        for (u32 i = 0; i < OWN; i++) {
                            u32 column = warp * OWN + i;
                            if (COLUMNS % WARPS == 0 || column < COLUMNS) {
                                const f32 *from = rows[t].total_values[i] + h * 2;
                                *(Pair *)(to + column * 8 + lane % 4 * 2) = Pair{from[0], from[1]};
                            }
                        }
                        if (warp == 0 && lane % 4 == 0) {
                            *(Pair *)(to + HEAD_DIM) = Pair{rows[t].total[h].greatest, rows[t].total[h].weights};
                        }
                    }
                    rows[t].total[h] = nothing();
#pragma unroll
                    for (u32 i = 0; i < OWN; i++) {
                        rows[t].total_values[i][h * 2] = rows[t].total_values[i][h * 2 + 1] = 0.0f;
                    }
                }
            }
        }
    }

    if (item.partial == NO_PARTIAL) {
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 row = t * 16 + h * 8 + lane / 4;
                if (row < live) {
                    ACT *to = out_row(out, item, row);
#pragma unroll
                    for (u32 i = 0; i < OWN; i++) {
                        u32 column = warp * OWN + i;
                        if (COLUMNS % WARPS == 0 || column < COLUMNS) {
                            const f32 *from = rows[t].total_values[i] + h * 2;
                            f32 weights = rows[t].total[h].weights;
                            u32 word = pack(mean(from[0], weights), mean(from[1], weights), ACT{});
                            *(u32 *)(to + column * 8 + lane % 4 * 2) = word;
                        }
                    }
                }
            }
        }
    } else if (last_to_arrive(arrived + u64(item.group) * KV_HEADS + blockIdx.y, item.parts)) {
        join_parts<R>(item, partial, out);
    }
}

template <u32 R>
__device__ __forceinline__ void attend_all(const ACT *q, ACT *out, const u8 *cache, const u32 *tables, const u32 *items,
                                           const u32 *num_items, f32 *partial, u32 *arrived, u64 block_stride, f32 scale) {
    wait_for_previous();
    let_next_start();
    u32 count = *num_items;
    for (u32 i = blockIdx.x; i < count; i += gridDim.x) {
        Item item = ((const Item *)items)[i];
        attend<R>(q, out, cache, tables, item, partial, arrived, block_stride, scale);
        __syncthreads();
    }
}

} // namespace

#define ATTENTION(R, BLOCKS)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                              \
        attention_##R(const ACT *q, ACT *out, const u8 *cache, const u32 *tables, const u32 *items, const u32 *num_items,      \
                      f32 *partial, u32 *arrived, u64 block_stride, f32 scale) {                                               \
        attend_all<R>(q, out, cache, tables, items, num_items, partial, arrived, block_stride, scale);                         \
    }

ATTENTION(16, 3)
ATTENTION(32, 2)
ATTENTION(64, 2)
