// Where K and V of a token lie in the KV cache (see README.md), and the shape of the heads.
#pragma once
#include <types.cuh>

constexpr u32 GROUP = HEADS / KV_HEADS;
constexpr bool IS_FP8 = sizeof(KV) == 1;
// The bytes of one head of a token's K, or of its V.
constexpr u32 ROW_BYTES = HEAD_DIM * sizeof(KV);
constexpr u32 V_OFFSET = BLOCK_SIZE * ROW_BYTES;
constexpr u32 K_SCALES = 2 * V_OFFSET;
constexpr u32 V_SCALES = K_SCALES + BLOCK_SIZE * 4;
// The bytes of one head's part of a block.
constexpr u32 HEAD_BYTES = 2 * V_OFFSET + (IS_FP8 ? BLOCK_SIZE * 8 : 0);

static_assert(HEADS % KV_HEADS == 0 && GROUP <= 16, "1 to 16 query heads a key head");
static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM <= 128, "head dimensions are multiples of 16 up to 128");
static_assert(BLOCK_SIZE == 16 || BLOCK_SIZE == 32 || BLOCK_SIZE == 64, "blocks of 16, 32 or 64 tokens");
