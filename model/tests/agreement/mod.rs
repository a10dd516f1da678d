//! How far a row of logits is from the reference's, and which token either chooses.

/// The greatest difference, as a share of the greatest magnitude of `expected`.
pub fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let greatest = expected.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
    let differences = found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    // NaN must not slip through a fold by max.
    differences.fold(0.0f64, |m, d| if d > m || d.is_nan() { d } else { m }) / greatest
}

/// The first index of the greatest value.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &v) in row.iter().enumerate() {
        if v > row[best] {
            best = i;
        }
    }
    best as u32
}
