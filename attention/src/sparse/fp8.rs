//! Vectors in fp8 (e4m3) with one scale, and the Hadamard transform that spreads outliers before: the indexer's keys and queries
//! of DeepSeek-V3.2-Exp (`inference/kernel.py`, `act_quant`; `inference/model.py`, `rotate_activation`).

/// The greatest e4m3 value.
const GREATEST: f32 = 448.0;

/// The scale of a vector: its greatest absolute value (at least 1e-4) over 448, as a power of two if so wanted, which is not
/// less. NaN if a value is.
#[must_use]
pub fn scale_of(x: &[f32], power_of_two: bool) -> f32 {
    if x.iter().any(|x| x.is_nan()) {
        return f32::NAN;
    }
    let scale = x.iter().fold(1e-4f32, |most, x| x.abs().max(most)) / GREATEST;
    match power_of_two && scale.is_finite() {
        true => f32::from_bits((scale.to_bits() + 0x7f_ffff) & !0x7f_ffff),
        false => scale,
    }
}

/// The bits of the nearest e4m3 value, of two equally near ones the even one; 448 is the greatest, and NaN stays NaN.
#[must_use]
pub fn to_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let (sign, size) = ((x.to_bits() >> 24) as u8 & 0x80, x.abs().min(GREATEST));
    // Below 2^-6 values are 2^-9 apart. Above, three bits follow the first one.
    let rest = match size < 0.015_625 {
        true => (size * 512.0).round_ties_even() as u32,
        false => {
            let bits = size.to_bits();
            ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)
        }
    };
    sign | rest as u8
}

/// `x H / sqrt(n)` in place, H being the Hadamard matrix of n values. For each width 1, 2, 4, .. in turn, values that far apart
/// become their sum and their difference; in the end each is multiplied with the rounded `1 / sqrt(n)`.
///
/// # Panics
///
/// If n is not a power of two.
pub fn hadamard(x: &mut [f32]) {
    assert!(x.len().is_power_of_two(), "{} values", x.len());
    let mut width = 1;
    while width < x.len() {
        for pair in x.chunks_exact_mut(2 * width) {
            let (low, high) = pair.split_at_mut(width);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        width *= 2;
    }
    let norm = (1.0 / (x.len() as f64).sqrt()) as f32;
    x.iter_mut().for_each(|x| *x *= norm);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bits: u8) -> f64 {
        let (exponent, fraction) = (i32::from(bits >> 3 & 15), f64::from(bits & 7) / 8.0);
        let size = if exponent == 0 { fraction / 64.0 } else { (1.0 + fraction) * 2f64.powi(exponent - 7) };
        if bits >> 7 == 1 { -size } else { size }
    }

    /// The nearest value of all, the even one of two.
    fn nearest(x: f32) -> u8 {
        let x = f64::from(x);
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let off = |bits: &u8| (value(*bits) - x.abs()).abs();
        sign | (0..=0x7eu8)
            .min_by(|a, b| off(a).total_cmp(&off(b)).then((a & 1).cmp(&(b & 1))))
            .unwrap_or_default()
    }

    #[test]
    fn every_number_is_rounded_to_the_nearest_e4m3() {
        let mut state = 20_261_130u64;
        println!("seed {state}");
        let check = |x: f32| assert_eq!(to_e4m3(x), nearest(x), "{x:e}");
        for bits in 0..=0x7eu8 {
            let (here, next) = (value(bits) as f32, value(bits + 1) as f32);
            let middle = (here + next) / 2.0;
            for x in [here, middle, middle.next_down(), middle.next_up()] {
                check(x);
                check(-x);
            }
        }
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let exponent = 2f32.powi((state >> 60) as i32 - 10);
            check(exponent * ((state >> 20) as u32 as f32 / 2f32.powi(31) - 1.0));
        }
        check(470.0);
        check(1e5);
        assert_eq!((to_e4m3(f32::INFINITY), to_e4m3(f32::NAN)), (0x7e, 0x7f));
    }

    #[test]
    fn a_scale_fits_the_greatest_value_and_a_power_of_two_is_not_less() {
        for x in [[1.0, -448.0], [0.0, 0.0], [3e-5, -1e-5], [7.0, 0.3]] {
            let (plain, power) = (scale_of(&x, false), scale_of(&x, true));
            let greatest = x.iter().fold(1e-4f32, |most, x| most.max(x.abs()));
            assert_eq!(plain, greatest / 448.0);
            assert!(power >= plain && power < 2.0 * plain && power.log2().fract() == 0.0, "{plain} {power}");
        }
        assert!(scale_of(&[1.0, f32::NAN, 2.0], true).is_nan());
    }

    #[test]
    fn the_hadamard_transform_is_that_of_its_matrix_and_its_own_inverse() {
        let x: Vec<f32> = (0..32).map(|i| ((i * 37) % 19) as f32 / 7.0 - 1.0).collect();
        let mut out = x.clone();
        hadamard(&mut out);
        for (i, found) in out.iter().enumerate() {
            let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let sum: f64 = x.iter().enumerate().map(|(j, &x)| sign(j) * f64::from(x)).sum();
            assert!((f64::from(*found) - sum / 32f64.sqrt()).abs() < 1e-5);
        }
        hadamard(&mut out);
        assert!(out.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
