//! The statistics of a tensor, in one pass.

/// Values that are summed at the same time, so that the compiler can use vector instructions.
const LANES: usize = 8;

/// What is known of the values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorStats {
    /// The type that the values are stored in.
    pub dtype: &'static str,
    /// The least value that is a number.
    pub min: f32,
    /// The greatest value that is a number.
    pub max: f32,
    /// The mean; NaN if any value is.
    pub mean: f64,
    /// The standard deviation of the values themselves (not an estimate from a sample).
    pub std: f64,
}

impl TensorStats {
    /// The statistics of all values of some rows.
    #[must_use]
    pub fn of<'a>(dtype: &'static str, rows: impl Iterator<Item = &'a [f32]>) -> Self {
        let (mut least, mut greatest) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        let (mut sums, mut squares) = ([0f64; LANES], [0f64; LANES]);
        let mut count = 0;
        for row in rows {
            count += row.len();
            let (groups, rest) = row.as_chunks::<LANES>();
            for group in groups {
                for i in 0..LANES {
                    // What is no number is neither less nor greater. `f32::min` says the same in more instructions.
                    least[i] = if group[i] < least[i] { group[i] } else { least[i] };
                    greatest[i] = if group[i] > greatest[i] { group[i] } else { greatest[i] };
                    let value = f64::from(group[i]);
                    sums[i] += value;
                    squares[i] += value * value;
                }
            }
            for &value in rest {
                least[0] = least[0].min(value);
                greatest[0] = greatest[0].max(value);
                sums[0] += f64::from(value);
                squares[0] += f64::from(value) * f64::from(value);
            }
        }
        let n = count.max(1) as f64;
        let mean = sums.iter().sum::<f64>() / n;
        let variance = squares.iter().sum::<f64>() / n - mean * mean;
        Self {
            dtype,
            min: least.into_iter().fold(f32::INFINITY, f32::min),
            max: greatest.into_iter().fold(f32::NEG_INFINITY, f32::max),
            mean,
            // Rounding may leave a constant tensor with a variance just below 0. NaN stays NaN.
            std: if variance < 0.0 { 0.0 } else { variance.sqrt() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_all_values_and_nan_shows_in_the_mean() {
        let rows = [[1.0f32, 2.0, 3.0].as_slice(), &[-4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]];
        let stats = TensorStats::of("f32", rows.into_iter());
        assert_eq!((stats.min, stats.max), (-4.0, 12.0));
        let values: Vec<f64> = rows.iter().flat_map(|row| row.iter().map(|&x| f64::from(x))).collect();
        let mean = values.iter().sum::<f64>() / 12.0;
        let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 12.0;
        assert!((stats.mean - mean).abs() < 1e-12 && (stats.std - variance.sqrt()).abs() < 1e-12);
        let broken = TensorStats::of("f32", [[1.0, f32::NAN].as_slice()].into_iter());
        assert!(broken.mean.is_nan() && (broken.min, broken.max) == (1.0, 1.0));
        assert_eq!(TensorStats::of("f32", [[0.1f32; 9].as_slice()].into_iter()).std, 0.0);
    }
}
