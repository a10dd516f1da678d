//! Computes `exp` and `ln` with additions, multiplications and divisions only.
//!
//! The functions of the standard library call the platform's libm, whose last bit differs from one system to the next,
//! and a token must not differ. IEEE 754 fixes the results of the four operations, and Rust never fuses them, so these
//! functions give the same bits everywhere. On the ranges used here, they are within 1e-15 of the true values,
//! relatively (tested).

/// ln 2 is split into two parts. The upper one has 21 trailing zero bits, so that small multiples of it are exact.
const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);

/// Adding and subtracting 1.5 * 2^52 rounds a number to the nearest whole number.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// e^x for x at most 0. Below -700 it is 0, because the true value is less than a thousandth of the least normal f64.
pub(crate) fn exp(x: f64) -> f64 {
    // There is no branch and no conversion, so that a loop over many numbers vectorises.
    let inside = if x < -700.0 { -700.0 } else { x };
    let rounded = inside * std::f64::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = (inside - k * LN2_HIGH) - k * LN2_LOW;
    // This is Taylor's series. Since |r| <= 0.347, the fourteenth term is below 1e-17.
    let mut sum = 1.0 / 6_227_020_800.0;
    for factorial in [
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
        1.0,
        1.0,
    ] {
        sum = sum * r + 1.0 / factorial;
    }
    // The low bits of `rounded` are those of k, in two's complement.
    let power = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
    if x < -700.0 { 0.0 } else { sum * power }
}

/// The natural logarithm of a normal number above 0.
pub(crate) fn ln(x: f64) -> f64 {
    // The exponent is chosen so that the fraction lies in [sqrt(1/2), sqrt(2)).
    const HALF_ROOT: u64 = 0x3fe6_a09e_667f_3bcd;
    let above = x.to_bits().wrapping_sub(HALF_ROOT) as i64 >> 52;
    let fraction = f64::from_bits(x.to_bits().wrapping_sub((above << 52) as u64));
    let exponent = above as f64;
    // We use ln m = 2 artanh((m - 1) / (m + 1)), where |s| <= 0.172.
    let s = (fraction - 1.0) / (fraction + 1.0);
    let square = s * s;
    let mut sum = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        sum = sum * square + 1.0 / odd;
    }
    let tail = 2.0 * s * square * sum;
    exponent * LN2_HIGH + (2.0 * s + (tail + exponent * LN2_LOW))
}
