//! Dequantisation against a slow twin, and against the values that ggml's Python package gives.

use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::*;
use crate::cpu::int8::QuantRow;

/// Value number `at` of a block, written from the description of the format: every number is taken out of the block bit by bit, and the
/// arithmetic is in f64, where nothing is rounded.
fn value(kind: GgmlType, block: &[u8], at: usize) -> f32 {
    let f16_at =
        |byte: usize| f64::from(f16::from_bits(u16::from(block[byte]) | u16::from(block[byte + 1]) << 8));
    // `count` bits from bit `from` of a byte.
    let bits =
        |byte: usize, from: usize, count: u32| f64::from(u32::from(block[byte]) >> from & ((1 << count) - 1));
    let signed =
        |byte: usize| if block[byte] > 127 { f64::from(block[byte]) - 256.0 } else { f64::from(block[byte]) };
    let nibble = |first: usize| bits(first + at % 16, if at < 16 { 0 } else { 4 }, 4);
    let value = match kind {
        GgmlType::F32 => {
            return f32::from_bits(block.iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte)));
        }
        GgmlType::F16 => f16_at(0),
        GgmlType::Bf16 => return bf16::from_bits(u16::from(block[0]) | u16::from(block[1]) << 8).to_f32(),
        GgmlType::Q4_0 => f16_at(0) * (nibble(2) - 8.0),
        GgmlType::Q4_1 => f16_at(0) * nibble(4) + f16_at(2),
        GgmlType::Q8_0 => f16_at(0) * signed(2 + at),
        GgmlType::Q4K => {
            let group = at / 32;
            let (scale, minimum) = if group < 4 {
                (bits(4 + group, 0, 6), bits(8 + group, 0, 6))
            } else {
                let low = 12 + group - 4;
                (bits(low, 0, 4) + 16.0 * bits(group, 6, 2), bits(low, 4, 4) + 16.0 * bits(4 + group, 6, 2))
            };
            let q = bits(16 + group / 2 * 32 + at % 32, group % 2 * 4, 4);
            f16_at(0) * scale * q - f16_at(2) * minimum
        }
        GgmlType::Q6K => {
            let (half, within) = (at / 128, at % 128);
            let low = bits(64 * half + within % 64, within / 64 * 4, 4);
            let high = bits(128 + 32 * half + within % 32, within / 32 * 2, 2);
            f16_at(208) * signed(192 + at / 16) * (low + 16.0 * high - 32.0)
        }
    };
    value as f32
}

#[test]
fn every_type_is_dequantised_as_its_slow_twin_does_it() {
    let mut random = Random(7);
    for kind in GgmlType::ALL {
        for round in 0..500 {
            let block = random.bytes(kind.block_bytes());
            let mut fast = vec![0.0; kind.block_len()];
            kind.dequantise(&block, &mut fast);
            for (at, fast) in fast.iter().enumerate() {
                let slow = value(kind, &block, at);
                let same = slow.to_bits() == fast.to_bits() || slow.is_nan() && fast.is_nan();
                // A product with zero has no sign of its own in the twin's sum.
                assert!(same || slow == 0.0 && *fast == 0.0, "{kind} {round} {at}: {slow} {fast} {block:?}");
            }
        }
    }
}

/// 64 blocks of finite numbers of every quantised type, and the first bytes of the SHA-256 of their values in f32 as the package `gguf`
/// 0.19 for Python dequantises them (`gguf.quants.dequantize`).
#[test]
fn blocks_have_the_values_that_ggmls_python_package_gives_them() {
    for (kind, expected) in [
        (GgmlType::Q4_0, "7f19c42aac98b015"),
        (GgmlType::Q4_1, "4db66af5c20e7e2f"),
        (GgmlType::Q8_0, "32d934d2d2368f60"),
        (GgmlType::Q4K, "8ca27986cdfb86f6"),
        (GgmlType::Q6K, "339fc5823d54a0f2"),
    ] {
        let mut random = Random(11);
        // No exponent of an f16 is that of infinity.
        let bytes: Vec<u8> = random.bytes(64 * kind.block_bytes()).iter().map(|byte| byte & 0xbf).collect();
        let mut values = vec![0.0f32; 64 * kind.block_len()];
        kind.dequantise(&bytes, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let hash: String = Sha256::digest(&bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, expected, "{kind}");
    }
}

#[test]
fn rows_that_are_no_whole_number_of_blocks_have_no_length() {
    assert_eq!(GgmlType::Q8_0.row_bytes(64), Some(68));
    assert_eq!(GgmlType::Q8_0.row_bytes(63), None);
    assert_eq!(GgmlType::Q4K.row_bytes(128), None);
    assert_eq!(GgmlType::F32.row_bytes(usize::MAX), None);
    assert_eq!(GgmlType::Q6K.to_string(), "Q6_K");
}

#[test]
fn rows_that_products_take_as_they_are_stand_for_the_dequantised_values() {
    let mut random = Random(13);
    for kind in GgmlType::ALL {
        // Scales below 2: none is infinite.
        let bytes: Vec<u8> = random.bytes(64 * kind.block_bytes()).iter().map(|byte| byte & 0xbf).collect();
        let mut row = QuantRow::default();
        assert_eq!(kind.take(&bytes, &mut row), kind.format().is_some(), "{kind}");
        if kind.format().is_none() {
            continue;
        }
        let mut expected = vec![0.0f32; 64 * kind.block_len()];
        kind.dequantise(&bytes, &mut expected);
        let mut taken = vec![0.0; expected.len()];
        row.write(&mut taken);
        for (part, (taken, expected)) in taken.chunks(32).zip(expected.chunks(32)).enumerate() {
            // Of Q4_K, scales and least values are rounded to f16: each by one in 2,048 of itself.
            let largest = row.scales()[part].to_f32().abs() * 15.0
                + row.minima().get(part).map_or(0.0, |m| m.to_f32().abs());
            let allowed = if kind == GgmlType::Q4K { largest / 2048.0 } else { 0.0 };
            for (taken, expected) in taken.iter().zip(expected) {
                assert!((taken - expected).abs() <= allowed, "{kind}, part {part}: {taken} for {expected}");
            }
        }
    }
}
