//! The checksum of what goes down a tier.

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A checksum of 64 bits. It finds faults of storage, and is no defence against somebody who wants to deceive. Four chains run side
/// by side, so that it is about as fast as the copy that it checks.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let mut chains = [1u64, 2, 3, 4];
    let mut groups = bytes.chunks_exact(32);
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let mix = |chain: u64, word: u64| (chain ^ word).wrapping_mul(FACTOR).rotate_left(29);
    for group in &mut groups {
        for (chain, bytes) in chains.iter_mut().zip(group.chunks_exact(8)) {
            *chain = mix(*chain, word(bytes));
        }
    }
    for (i, bytes) in groups.remainder().chunks(8).enumerate() {
        chains[i % 4] = mix(chains[i % 4], word(bytes));
    }
    chains.iter().fold(bytes.len() as u64, |sum, &chain| mix(sum, chain))
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn every_bit_and_the_length_count() {
        let bytes: Vec<u8> = (0..197).map(|i| (i * 7 % 251) as u8).collect();
        let own = checksum(&bytes);
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&other), own, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_ne!(checksum(&bytes[..len]), own, "length {len}");
        }
        assert_ne!(checksum(&[0; 64]), checksum(&[0; 65]));
    }
}
