//! The products of one row of activations with the rows of a small matrix, outside of a step's operations.

use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};

/// Writes to `out` the product of `x` with each row of `matrix`, which has as many rows as `out` has values. A product is a chain of
/// multiply-adds in each of 16 lanes over ascending values, then the sum of the lanes by a fixed tree, then the values behind the last whole
/// group of 16 in order. It depends on its two rows alone.
///
/// # Panics
///
/// If the matrix has other sizes, or this machine lacks the instruction set.
pub fn products(isa: Isa, matrix: &[f32], x: &[f32], out: &mut [f32]) {
    assert_eq!(matrix.len(), x.len() * out.len(), "a matrix of other sizes");
    isa.run(Products { matrix, x, out });
}

/// Rows that are multiplied side by side, so that each value of `x` is loaded once for all of them.
const TOGETHER: usize = 4;

struct Products<'a> {
    matrix: &'a [f32],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.x.len();
        let mut rows = 0;
        while rows < self.out.len() {
            let here = &self.matrix[rows * width..];
            // SAFETY: the caller has the features.
            unsafe {
                if self.out.len() - rows >= TOGETHER {
                    group::<L, TOGETHER>(here, self.x, &mut self.out[rows..rows + TOGETHER]);
                    rows += TOGETHER;
                } else {
                    group::<L, 1>(here, self.x, &mut self.out[rows..rows + 1]);
                    rows += 1;
                }
            }
        }
    }
}

/// The products of the first N rows.
#[inline(always)]
unsafe fn group<L: Lanes, const N: usize>(matrix: &[f32], x: &[f32], out: &mut [f32]) {
    let width = x.len();
    let whole = width / LANES * LANES;
    assert!(matrix.len() >= N * width, "fewer than {N} rows");
    // SAFETY: the caller has the features, and all loads lie within the rows.
    unsafe {
        let mut sums = [L::splat(0.0); N];
        for d in (0..whole).step_by(LANES) {
            let values = L::load(x.as_ptr().add(d));
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(matrix.as_ptr().add(row * width + d)).mul_add(values, *sum);
            }
        }
        for (row, (sum, out)) in sums.into_iter().zip(out).enumerate() {
            let rest = matrix[row * width + whole..(row + 1) * width].iter().zip(&x[whole..]);
            *out = rest.fold(sum.sum(), |sum, (a, b)| sum + a * b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_f64_and_do_not_depend_on_the_other_rows() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            for (width, rows) in [(1, 1), (16, 3), (31, 4), (64, 9), (100, 6)] {
                let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
                let matrix: Vec<f32> = (0..width * rows).map(value).collect();
                let x: Vec<f32> = (0..width).map(|i| value(i + 77)).collect();
                let mut out = vec![0.0; rows];
                products(isa, &matrix, &x, &mut out);
                for (row, &found) in matrix.chunks_exact(width).zip(&out) {
                    let want: f64 = row.iter().zip(&x).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    assert!((f64::from(found) - want).abs() < 1e-5, "{isa}: {found}, {want}");
                    let mut alone = [0.0];
                    products(isa, row, &x, &mut alone);
                    assert_eq!(alone[0].to_bits(), found.to_bits(), "{isa}, {width} values");
                }
            }
        }
    }
}
