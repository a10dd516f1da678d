// Tiles of 16-bit values in shared memory, laid out so that the eight rows of a matrix load lie in different banks.
#pragma once
#include <types.cuh>

// Rows of CHUNKS chunks, each of 16 bytes.
template <u32 CHUNKS> struct Tile {
    static constexpr bool POWER = (CHUNKS & (CHUNKS - 1)) == 0;
    // If chunks are not permuted, rows are an odd number of chunks apart.
    static constexpr u32 STRIDE = POWER ? CHUNKS : (CHUNKS | 1);
    static constexpr u32 row_bytes = STRIDE * 16;

    // The byte at which a chunk begins.
    static __device__ __forceinline__ u32 at(u32 row, u32 chunk) {
        if constexpr (!POWER) {
            return (row * STRIDE + chunk) * 16;
        } else if constexpr (CHUNKS >= 8) {
            return (row * CHUNKS + (chunk ^ (row % 8))) * 16;
        } else {
            return (row * CHUNKS + (chunk ^ (row / (8 / CHUNKS) % CHUNKS))) * 16;
        }
    }
};

// The row and the chunk whose address this lane gives for the left operand (16 x 16) of a multiplication.
__device__ __forceinline__ u32 left_row() { return threadIdx.x % 16; }
__device__ __forceinline__ u32 left_chunk() { return threadIdx.x % 32 / 16; }
