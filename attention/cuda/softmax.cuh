// Softmax over a context that is processed in parts. Weights are powers of two.
#pragma once
#include <types.cuh>

// The result of some keys for one query, apart from the sums of weighted values: the greatest score, and the sum of the
// weights 2^(score - greatest).
struct Part {
    f32 greatest, weights;
};

// The factors of two parts when they are joined: each part's weights count relative to the greater of the two greatest
// scores.
struct Factors {
    f32 left, right;
};

__device__ __forceinline__ Part nothing() { return Part{MINUS_INFINITY, 0.0f}; }

// Joins `right` into `left`. Returns the factors by which their sums of values have to be joined.
__device__ __forceinline__ Factors join(Part &left, Part right) {
    f32 greatest = fmaxf(left.greatest, right.greatest);
    Factors factors{power_of_two(left.greatest - greatest), power_of_two(right.greatest - greatest)};
    left.weights = fmaf(right.weights, factors.right, left.weights * factors.left);
    left.greatest = greatest;
    return factors;
}

__device__ __forceinline__ f32 join(f32 left, f32 right, Factors factors) {
    return fmaf(right, factors.right, left * factors.left);
}

// Adding 0 turns a negative zero into a positive one, whatever produced it.
__device__ __forceinline__ f32 mean(f32 values, f32 weights) { return values / weights + 0.0f; }
