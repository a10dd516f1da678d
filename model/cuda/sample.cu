// The coupled choice. At a temperature T of 0 it is the token with the greatest logit. Otherwise it is the kept token with
// the greatest logit / T + Gumbel noise, where the noise is a function of (seed, sample, position, token).
//
// Kept are the tokens that remain after min-p, then top-k, then top-p, as in the CPU sampler. The numbers are also the same
// as there, so the same logits give the same token. The weights of top-p are whole multiples of 2^-44, so that their sum
// does not depend on the order. The sum fits into 64 bits for a vocabulary of up to 2^18 tokens, which must not be
// exceeded.
//
// logits: [rows][vocab]; temperature, top_k (0: off), top_p, min_p, seed, sample, position, chosen: [rows]. chosen is
// NO_TOKEN in the same cases as in argmax.
// Grid (rows), block 1024.
#include <choice.cuh>
#include <noise.cuh>
#include <reduce.cuh>
#include <select.cuh>

namespace {

constexpr u32 THREADS = 1024;
// The Gumbel noise of a token is below this.
constexpr f64 MOST_NOISE = 23.0;

// A token that competes for the greatest score: its logit / T plus its noise.
struct Runner {
    f64 score;
    u32 token;
};

__device__ __forceinline__ bool beats(Runner a, Runner b) {
    return a.score > b.score || (a.score == b.score && a.token < b.token);
}

__device__ __forceinline__ Runner shuffle_xor(Runner a, u32 mask) {
    return Runner{double_of(::shuffle_xor(bits_of(a.score), mask)), ::shuffle_xor(a.token, mask)};
}

// The token with the best score over the block. Only thread 0 gets it.
__device__ __forceinline__ Runner block_best(Runner best) {
    __shared__ Runner leaders[THREADS / 32];
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        Runner other = shuffle_xor(best, mask);
        best = beats(other, best) ? other : best;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        leaders[threadIdx.x / 32] = best;
    }
    __syncthreads();
    for (u32 warp = 0; warp < THREADS / 32; warp++) {
        best = beats(leaders[warp], best) ? leaders[warp] : best;
    }
    return best;
}

struct Sampling {
    f64 temperature;
    u32 top_k;
    f32 top_p, min_p;
    u64 seed;
    u32 sample, position;
};

__device__ __forceinline__ f64 noise(const Sampling &s, u32 token) {
    Words four = philox(token / 4, s.position, s.sample, 0, s.seed);
    return gumbel(four.words[token % 4]);
}

// The least logit that min-p keeps.
__device__ __forceinline__ f64 min_p_floor(const Sampling &s, f64 max) {
    if (s.min_p <= 0.0f) {
        return double_of(0xfff0000000000000ull);
    }
    f64 floor = max + s.temperature * logarithm(f64(s.min_p));
    return floor < max ? floor : max;
}

// The weight of a token in top-p: e^((logit - max) / T), as a multiple of 2^-44.
__device__ __forceinline__ u64 weight(f64 max, f32 logit, f64 inverse_temperature) {
    f64 nats = (max - f64(logit)) * inverse_temperature;
    return u64(exponential(-nats) * 17592186044416.0 + 0.5);
}

__device__ __forceinline__ u64 block_sum_exact(u64 x, u64 *sum) {
    __syncthreads();
    if (threadIdx.x == 0) {
        *sum = 0;
    }
    __syncthreads();
    atomicAdd(sum, x);
    __syncthreads();
    return *sum;
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS)
    sample(const f32 *logits, const f32 *temperature, const u32 *top_k, const f32 *top_p, const f32 *min_p, const u64 *seed,
           const u32 *sample, const u32 *position, u32 *chosen, u32 vocab) {
    __shared__ Bins bins;
    __shared__ u64 sum;
    wait_for_previous();
    let_next_start();
    u32 row = blockIdx.x;
    const f32 *own = logits + u64(row) * vocab;
    Sampling s{f64(temperature[row]), top_k[row], top_p[row], min_p[row], seed[row], sample[row], position[row]};

    u64 greatest = 0;
    for (u32 token = threadIdx.x; token < vocab; token += THREADS) {
        u64 rank = rank_of(own[token], token);
        greatest = rank > greatest ? rank : greatest;
    }
    greatest = block_max<THREADS>(greatest);
    u32 best = token_of(greatest);
    if (best == NO_TOKEN || s.temperature == 0.0) {
        if (threadIdx.x == 0) {
            chosen[row] = best;
        }
        return;
    }

    f64 max = f64(own[best]), floor = min_p_floor(s, max);
    // Candidates are the tokens whose rank is at least `least` and whose logit reaches the floor.
    u64 least = 1;
    auto rank = [&](u32 token) -> u64 {
        f32 logit = own[token];
        u64 r = rank_of(logit, token);
        return r >= least && f64(logit) >= floor ? r : 0;
    };
    if (s.top_k > 0 && s.top_k < vocab) {
        u64 wanted = s.top_k;
        u32 passing = 0;
        for (u32 token = threadIdx.x; token < vocab; token += THREADS) {
            passing += rank(token) != 0;
        }
        if (block_sum_exact(passing, &sum) > wanted) {
            least = select(
                bins, vocab, rank, [](u32) { return 1ull; }, [&](u64 count) { return count >= wanted; });
        }
    }
    if (s.top_p < 1.0f) {
        f64 inverse_temperature = 1.0 / s.temperature;
        auto mass = [&](u32 token) { return weight(max, own[token], inverse_temperature); };
        u64 total = 0;
        for (u32 token = threadIdx.x; token < vocab; token += THREADS) {
            total += rank(token) != 0 ? mass(token) : 0;
        }
        f64 target = f64(s.top_p) * f64(block_sum_exact(total, &sum));
        u64 reached = select(bins, vocab, rank, mass, [&](u64 sum) { return f64(sum) >= target; });
        // `select` may round a rank down, if that lets in no other candidate. It must not go below `least`, which would let
        // in tokens that top-k has excluded.
        least = reached > least ? reached : least;
    }

    Runner leader{max / s.temperature + noise(s, best), best};
    for (u32 four = threadIdx.x; four * 4 < vocab; four += THREADS) {
        bool ahead = false;
        for (u32 token = four * 4; token < four * 4 + 4 && token < vocab; token++) {
            ahead |= f64(own[token]) / s.temperature + MOST_NOISE >= leader.score && rank(token) != 0;
        }
        if (!ahead) {
            continue;
        }
        Words words = philox(four, s.position, s.sample, 0, s.seed);
        for (u32 i = 0; i < 4 && four * 4 + i < vocab; i++) {
            u32 token = four * 4 + i;
            if (rank(token) == 0) {
                continue;
            }
            Runner runner{f64(own[token]) / s.temperature + gumbel(words.words[i]), token};
            leader = beats(runner, leader) ? runner : leader;
        }
    }
    leader = block_best(leader);
    if (threadIdx.x == 0) {
        chosen[row] = leader.token;
    }
}
