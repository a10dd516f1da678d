//! Lists of positions, written as ranges.

/// Ascending positions as ranges `[first, end)`: 3, 4, 5 and 9 are `[[3, 6], [9, 10]]`.
#[must_use]
pub fn position_ranges(positions: &[u32]) -> Vec<[u32; 2]> {
    let mut ranges: Vec<[u32; 2]> = Vec::new();
    for &position in positions {
        match ranges.last_mut() {
            Some(last) if last[1] == position => last[1] += 1,
            _ => ranges.push([position, position + 1]),
        }
    }
    ranges
}

/// The positions of some ranges.
#[must_use]
pub fn position_list(ranges: &[[u32; 2]]) -> Vec<u32> {
    ranges.iter().flat_map(|&[first, end]| first..end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_the_same_after_they_were_ranges() {
        for list in [&[][..], &[7], &[0, 1, 2], &[3, 4, 5, 9, 11, 12]] {
            assert_eq!(position_list(&position_ranges(list)), list);
        }
        assert_eq!(position_ranges(&[3, 4, 5, 9]), [[3, 6], [9, 10]]);
    }
}
