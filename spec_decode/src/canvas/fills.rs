//! What was filled around the tokens of a block since they last ran through all layers.

/// For each token of a block, how much was filled around it since it last ran: the sum of 1 / distance over the fills; infinite for a
/// token that was filled itself.
#[derive(Debug, Default)]
pub(super) struct Fills {
    around: Vec<f64>,
}

impl Fills {
    /// Of a block of `tokens`, nothing of which was filled yet.
    pub fn none(tokens: usize) -> Self {
        Self { around: vec![0.0; tokens] }
    }

    /// A token of the block was filled.
    pub fn filled(&mut self, token: usize) {
        for (other, around) in self.around.iter_mut().enumerate() {
            *around += 1.0 / other.abs_diff(token) as f64;
        }
    }

    /// A token ran through all layers.
    pub fn ran(&mut self, token: usize) {
        self.around[token] = 0.0;
    }

    /// For each token whether it is stable: this share (rounded down) of those that are no masks, around which the least was filled. One that
    /// was itself filled since it last ran never is.
    pub fn stable(&self, share: f64, is_mask: impl Fn(usize) -> bool) -> Vec<bool> {
        let mut order: Vec<usize> = (0..self.around.len()).filter(|&token| !is_mask(token)).collect();
        let count = (order.len() as f64 * share).floor() as usize;
        order.sort_by(|&a, &b| self.around[a].total_cmp(&self.around[b]).then(a.cmp(&b)));
        let mut stable = vec![false; self.around.len()];
        let seen = order.into_iter().take(count).filter(|&token| self.around[token].is_finite());
        seen.for_each(|token| stable[token] = true);
        stable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_far_from_what_was_filled_are_stable_and_masks_and_new_ones_are_not() {
        let mut fills = Fills::none(6);
        let mask = |token| token == 5;
        assert_eq!(fills.stable(0.4, mask), [true, true, false, false, false, false]);
        fills.filled(1);
        // Token 4 is three away, then 3; tokens 0 and 2 are beside it.
        assert_eq!(fills.stable(0.4, mask), [false, false, false, true, true, false]);
        assert_eq!(fills.stable(1.0, mask), [true, false, true, true, true, false]);
        (0..3).for_each(|token| fills.ran(token));
        assert_eq!(fills.stable(0.6, mask), [true, true, true, false, false, false]);
        assert_eq!(fills.stable(0.0, mask), [false; 6]);
    }
}
