//! The 8-bit product, one output element at a time. It is slow and obvious, and written from the [rule](super) alone.

use half::f16;

/// The greatest magnitude of some values; infinite where one is not finite.
fn greatest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, x| if x.is_finite() { most.max(x.abs()) } else { f32::INFINITY })
}

/// A block of weights: integers and scale.
pub fn weights(values: &[f32]) -> (Vec<i64>, f32) {
    let most = greatest(values);
    // Every positive f16 in ascending order, up to the first one that is large enough.
    let scale = (0..=0x7bff).map(|bits| f16::from_bits(bits).to_f32()).find(|scale| {
        let limit = f64::from(*scale) * 127.0;
        f64::from(most) <= limit
    });
    match scale {
        None => (vec![0; values.len()], f32::NAN),
        Some(0.0) => (vec![0; values.len()], 0.0),
        Some(scale) => (values.iter().map(|x| (x / scale).round_ties_even() as i64).collect(), scale),
    }
}

/// A block of activations: integers and scale.
pub fn activations(values: &[f32]) -> (Vec<i64>, f32) {
    let most = greatest(values);
    if most == f32::INFINITY {
        return (vec![0; values.len()], f32::NAN);
    }
    if most < 2.0f32.powi(-100) {
        return (vec![0; values.len()], 0.0);
    }
    let times = 127.0 / most;
    (values.iter().map(|x| (x * times).round_ties_even() as i64).collect(), most / 127.0)
}

/// The output for a row of activations and a row of weights.
pub fn dot(x: &[f32], w: &[f32]) -> f32 {
    let mut acc = 0.0f32;
    for (x, w) in x.chunks(64).zip(w.chunks(64)) {
        let ((x, of_x), (w, of_w)) = (activations(x), weights(w));
        let sum: i64 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
        acc = (sum as f32 * of_w).mul_add(of_x, acc);
    }
    acc
}
