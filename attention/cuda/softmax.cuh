// Softmax over a context that is taken in parts. Exponents are of two.
#pragma once
#include <types.cuh>

// What a part of the keys amounts to for one query, beside its sums of weighted values: the greatest score, and the sum of weights
// 2^(score - greatest).
struct Part {
    f32 greatest, weights;
};

// How much two parts count, each against the greater of their greatest scores.
struct Factors {
    f32 left, right;
};

__device__ __forceinline__ Part nothing() { return Part{MINUS_INFINITY, 0.0f}; }

// Takes `right` into `left`, and gives the factors by which their sums of values are to be joined.
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

// The sum of 0 makes a negative zero positive, however it came about.
__device__ __forceinline__ f32 mean(f32 values, f32 weights) { return values / weights + 0.0f; }
