//! Which masks a pass fills.

use super::candidate::Candidate;

/// How many masks the pass `step` of a block fills that began with `masks` of them and is to be full after `passes`: equal shares, and what is left
/// over goes to the first passes. It is at least 1.
pub(super) fn scheduled(masks: u32, passes: u32, step: u32) -> usize {
    let passes = passes.max(1);
    let more = u32::from(step < masks % passes);
    (masks / passes + more).max(1) as usize
}

/// Sorts `candidates` by their confidence, greatest first and equal ones by position, and keeps those that are filled: the first `count`, or with a
/// threshold the first one and all that reach it. They are then in the order of their positions.
pub(super) fn transfer(candidates: &mut Vec<Candidate>, count: usize, threshold: Option<f64>) {
    candidates.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then(a.position.cmp(&b.position)));
    let filled = match threshold {
        None => count,
        Some(threshold) => candidates.iter().skip(1).take_while(|c| c.confidence >= threshold).count() + 1,
    };
    candidates.truncate(filled);
    candidates.sort_by_key(|candidate| candidate.position);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(confidences: &[f64], count: usize, threshold: Option<f64>) -> Vec<u32> {
        let candidate = |(position, &confidence)| Candidate { position, token: 0, confidence };
        let mut candidates = (0..).zip(confidences).map(candidate).collect();
        transfer(&mut candidates, count, threshold);
        candidates.iter().map(|candidate| candidate.position).collect()
    }

    #[test]
    fn the_most_certain_are_filled_and_with_a_threshold_one_at_least() {
        let confidences = [0.2, 0.9, 0.5, 0.9];
        assert_eq!(filled(&confidences, 3, None), [1, 2, 3]);
        assert_eq!(filled(&confidences, 1, None), [1]);
        assert_eq!(filled(&confidences, 1, Some(0.5)), [1, 2, 3]);
        assert_eq!(filled(&confidences, 1, Some(0.95)), [1]);
        assert_eq!(filled(&[], 2, Some(0.95)), [] as [u32; 0]);
    }

    #[test]
    fn a_schedule_fills_a_block_in_its_passes() {
        for (masks, passes) in [(16, 4), (16, 16), (7, 3), (3, 5), (1, 1)] {
            let fills: Vec<usize> = (0..passes).map(|step| scheduled(masks, passes, step)).collect();
            assert!(fills.is_sorted_by(|a, b| a >= b));
            assert!(fills.iter().sum::<usize>() >= masks as usize);
        }
        assert_eq!((0..3).map(|step| scheduled(7, 3, step)).collect::<Vec<_>>(), [3, 2, 2]);
    }
}
