//! Which experts a token has: `noaux_tc` of DeepSeek-V3.

use std::cell::RefCell;

use super::row_kernels::sigmoid;
use crate::cpu::device::CpuDevice;
use crate::device::BufferId;
use crate::dsa::Router;

/// Working memory of a thread.
#[derive(Default)]
pub(super) struct RouteRoom {
    scores: Vec<f32>,
    choice: Vec<f32>,
    groups: Vec<f32>,
    kept: Vec<u32>,
    order: Vec<u32>,
}

thread_local! {
    static ROOM: RefCell<RouteRoom> = RefCell::default();
}

impl CpuDevice {
    pub(super) fn route(
        &self,
        logits: BufferId,
        bias: BufferId,
        router: &Router,
        (out, weights): (BufferId, BufferId),
        rows: usize,
    ) {
        let rows = rows.min(self.sparse.rows());
        let (logits, bias) = (self.rows(logits), self.buffer(bias).vector());
        let (choices, weights) = (self.buffer(out).choices().view(), self.rows_mut(weights));
        self.for_rows(rows, router.experts * 8, |r| {
            ROOM.with_borrow_mut(|room| {
                room.scores.resize(router.experts, 0.0);
                sigmoid(self.isa, logits.row(r), &mut room.scores);
                // SAFETY: each row is written by one thread.
                let row = unsafe { weights.row(r) };
                choose(router, bias, room, row);
                // SAFETY: as above.
                unsafe { choices.write(r, room.order.iter().copied()) };
            });
        });
    }
}

/// Puts the `k` greatest of `values` among `among` into `out`, ascending; of equal values the first. A NaN is below every
/// number.
fn greatest(values: &[f32], among: impl Iterator<Item = u32>, k: usize, out: &mut Vec<u32>) {
    let value = |i: u32| match values[i as usize] {
        nan if nan.is_nan() => f32::NEG_INFINITY,
        value => value,
    };
    out.clear();
    out.extend(among);
    // The sort is stable, so that equal values stay in the order of their indices.
    out.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
    out.truncate(k);
    out.sort_unstable();
}

/// Chooses experts (into `room.order`, ascending) and writes their weights.
fn choose(router: &Router, bias: &[f32], room: &mut RouteRoom, weights: &mut [f32]) {
    let RouteRoom { scores, choice, groups, kept, order } = room;
    choice.clear();
    // Negative and positive zero are one value.
    choice.extend(scores.iter().zip(bias).map(|(score, bias)| score + bias + 0.0));
    let size = router.experts / router.groups;
    groups.clear();
    if router.groups > 1 {
        groups.extend(choice.chunks_exact(size).map(|group| {
            let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for &c in group {
                if c > first {
                    (first, second) = (c, first);
                } else if c > second {
                    second = c;
                }
            }
            first + second
        }));
        greatest(groups, 0..router.groups as u32, router.groups_kept, kept);
        let members = kept.iter().flat_map(|&group| (group * size as u32..).take(size));
        greatest(choice, members, router.per_token, order);
    } else {
        greatest(choice, 0..router.experts as u32, router.per_token, order);
    }
    let sum = order.iter().fold(0.0, |sum, &expert| sum + scores[expert as usize]);
    let divisor = if router.normalised { sum + 1e-20 } else { 1.0 };
    for (weight, &expert) in weights.iter_mut().zip(&*order) {
        *weight = scores[expert as usize] / divisor * router.scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(experts: usize, per_token: usize, groups: usize, groups_kept: usize) -> Router {
        Router { experts, per_token, groups, groups_kept, normalised: true, scale: 2.0 }
    }

    fn chosen(router: &Router, scores: &[f32], bias: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let mut room = RouteRoom { scores: scores.to_vec(), ..RouteRoom::default() };
        let mut weights = vec![0.0; router.per_token];
        choose(router, bias, &mut room, &mut weights);
        (room.order, weights)
    }

    #[test]
    fn ties_go_to_the_lowest_expert_and_the_lowest_group() {
        let none = [0.0; 8];
        assert_eq!(chosen(&router(8, 3, 1, 1), &[0.5; 8], &none).0, [0, 1, 2]);
        assert_eq!(chosen(&router(8, 3, 4, 2), &[0.5; 8], &none).0, [0, 1, 2]);
        let scores = [0.1, 0.9, 0.2, 0.9, 0.3, 0.9, 0.4, 0.9];
        assert_eq!(chosen(&router(8, 2, 1, 1), &scores, &none).0, [1, 3]);
    }

    #[test]
    fn a_group_is_judged_by_the_sum_of_its_two_best() {
        let scores = [0.9, 0.0, 0.5, 0.5, 0.1, 0.2, 0.1, 0.1];
        let (experts, weights) = chosen(&router(8, 2, 4, 1), &scores, &[0.0; 8]);
        assert_eq!(experts, [2, 3]);
        assert_eq!(weights, [1.0, 1.0]);
    }

    #[test]
    fn the_bias_chooses_and_does_not_weigh() {
        let bias = [0.0, 0.0, 5.0, 0.0];
        let (experts, weights) = chosen(&router(4, 2, 1, 1), &[0.6, 0.5, 0.2, 0.1], &bias);
        assert_eq!(experts, [0, 2]);
        assert!((weights[0] - 1.5).abs() < 1e-6 && (weights[1] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn a_row_of_nan_still_has_its_number_of_experts() {
        assert_eq!(chosen(&router(4, 2, 2, 1), &[f32::NAN; 4], &[0.0; 4]).0, [0, 1]);
    }
}
