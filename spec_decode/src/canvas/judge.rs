//! Decides which tokens of a block are stable because their states hardly changed since the pass before.

/// The states of a block's tokens in one pass: `[compared layers, tokens, hidden]`.
#[derive(Debug, Default)]
pub(super) struct States {
    pub values: Vec<f32>,
    pub tokens: usize,
    pub hidden: usize,
}

impl States {
    pub fn layers(&self) -> usize {
        self.values.len() / (self.tokens * self.hidden).max(1)
    }

    pub fn of(&self, layer: usize, token: usize) -> &[f32] {
        &self.values[(layer * self.tokens + token) * self.hidden..][..self.hidden]
    }

    /// Gives a token the states that it has in `before`.
    pub fn keep(&mut self, token: usize, before: &Self) {
        for layer in 0..self.layers() {
            let at = (layer * self.tokens + token) * self.hidden;
            self.values[at..at + self.hidden].copy_from_slice(before.of(layer, token));
        }
    }
}

/// For each token whether its state hardly turned: its cosines between the two passes are `outlier` at least in every layer, and above
/// `threshold` on average. The states of the two passes have the same shape, with one layer at least.
pub(super) fn hardly_turned((threshold, outlier): (f64, f64), before: &States, now: &States) -> Vec<bool> {
    let layers = now.layers();
    let hardly = |token: usize| {
        let cosines = (0..layers).map(|layer| cosine(before.of(layer, token), now.of(layer, token)));
        let (least, sum) = cosines
            .fold((f64::INFINITY, 0.0), |(least, sum): (f64, f64), cosine| (least.min(cosine), sum + cosine));
        least >= outlier && sum / layers as f64 > threshold
    };
    (0..now.tokens).map(hardly).collect()
}

/// For each token whether it is in this share (rounded down) of the tokens whose states changed the least, summed over the layers. The states
/// of the two passes have the same shape.
pub(super) fn least_moved(share: f64, before: &States, now: &States) -> Vec<bool> {
    let moved = |token: usize| -> f64 {
        (0..now.layers()).map(|layer| change(before.of(layer, token), now.of(layer, token))).sum()
    };
    let mut order: Vec<(f64, usize)> = (0..now.tokens).map(|token| (moved(token), token)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut stable = vec![false; now.tokens];
    let count = (now.tokens as f64 * share).floor() as usize;
    order.iter().take(count).for_each(|&(_, token)| stable[token] = true);
    stable
}

/// The cosine of the angle between two states, at most 1. A state of zeros has cosine 0 with every other.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f64; 3];
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        sums[0] += x * y;
        sums[1] += x * x;
        sums[2] += y * y;
    }
    let length = (sums[1] * sums[2]).sqrt();
    if length > 0.0 { (sums[0] / length).min(1.0) } else { 0.0 }
}

/// The length of the difference of two states, relative to that of the first.
fn change(before: &[f32], now: &[f32]) -> f64 {
    let (mut difference, mut length) = (0f64, 0f64);
    for (&x, &y) in before.iter().zip(now) {
        let (x, y) = (f64::from(x), f64::from(y));
        difference += (x - y) * (x - y);
        length += x * x;
    }
    (difference / length.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(values: &[f32]) -> States {
        States { values: values.to_vec(), tokens: 3, hidden: 2 }
    }

    #[test]
    fn a_token_is_stable_if_no_layer_changed_much_and_on_average_little_changed() {
        // Two layers; token 0 stays, token 1 turns by 90 degrees in the second, token 2 turns a little in both.
        let before = states(&[1., 0., 1., 0., 1., 0., 0., 2., 0., 2., 0., 2.]);
        let now = states(&[2., 0., 1., 0., 1., 0.1, 0., 2., 2., 0., 0.2, 2.]);
        let turned = |threshold, outlier| hardly_turned((threshold, outlier), &before, &now);
        assert_eq!(turned(0.98, 0.9), [true, false, true]);
        assert_eq!(turned(0.999, 0.9), [true, false, false]);
        assert_eq!(turned(0.4, 0.0), [true, true, true]);
        assert_eq!(turned(1.0, 0.0), [false; 3]);
        // Of the least moved two thirds, token 2 is one: token 0 doubled in the first layer.
        assert_eq!(least_moved(0.67, &before, &now), [true, false, true]);
        assert_eq!(least_moved(0.34, &before, &now), [false, false, true]);
        assert_eq!(least_moved(1.0, &before, &now), [true; 3]);
    }
}
