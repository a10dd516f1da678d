//! Linear fits whose coefficients are not negative, and that a few wild measurements do not distort.

/// The number of rounds in which measurements are weighed again.
const ROUNDS: usize = 12;
/// The number of last rounds that ignore outliers altogether.
const FORGETTING: usize = 4;
/// The number of standard deviations beyond which a residual counts less (Huber 1964), and beyond which it
/// does not count at all (Tukey's bisquare). Both are 95 % as efficient as least squares if errors are
/// normal.
const HUBER: f64 = 1.345;
const TUKEY: f64 = 4.685;
/// A normal distribution's standard deviation divided by its median absolute deviation.
const DEVIATIONS: f64 = 1.4826;

/// Measurements: for each one a row of figures, and the measured value.
#[derive(Clone, Debug)]
pub(super) struct Measurements {
    columns: usize,
    rows: Vec<f64>,
    values: Vec<f64>,
    weights: Vec<f64>,
}

impl Measurements {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns, rows: Vec::new(), values: Vec::new(), weights: Vec::new() }
    }

    /// Adds a measurement with `columns` figures. Its residual counts as a share of `scale`.
    pub(super) fn push(&mut self, row: impl IntoIterator<Item = f64>, value: f64, scale: f64) {
        let before = self.rows.len();
        self.rows.extend(row.into_iter().take(self.columns));
        self.rows.resize(before + self.columns, 0.0);
        self.values.push(value);
        self.weights.push(1.0 / scale.max(1e-9));
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    fn row(&self, i: usize) -> &[f64] {
        self.rows.get(i * self.columns..(i + 1) * self.columns).unwrap_or_default()
    }

    /// The residuals, as shares of the scales.
    fn residuals(&self, coefficients: &[f64]) -> Vec<f64> {
        let predicted = |i| self.row(i).iter().zip(coefficients).map(|(x, b)| x * b).sum::<f64>();
        (0..self.len()).map(|i| (self.values[i] - predicted(i)) * self.weights[i]).collect()
    }

    /// The coefficients that give the least sum of squares among all that are not negative. Measurements
    /// are weighed by how far they lie from the fit before (iteratively reweighted least squares).
    pub(super) fn fit(&self) -> Vec<f64> {
        let mut shares = vec![1.0; self.len()];
        let mut coefficients = vec![0.0; self.columns];
        for round in 0..ROUNDS {
            coefficients = self.least_squares(&shares);
            let residuals = self.residuals(&coefficients);
            let deviation = deviation(&residuals);
            if deviation <= 0.0 {
                break;
            }
            for (share, residual) in shares.iter_mut().zip(residuals) {
                let far = residual.abs() / deviation;
                *share = if round + 1 + FORGETTING < ROUNDS {
                    (HUBER / far.max(HUBER)).min(1.0)
                } else {
                    let left = 1.0 - (far / TUKEY).powi(2);
                    if left > 0.0 { left * left } else { 0.0 }
                };
            }
        }
        coefficients
    }

    /// The coefficients with all measurements weighed equally, which fit the mean.
    pub(super) fn mean(&self) -> Vec<f64> {
        self.least_squares(&vec![1.0; self.len()])
    }

    /// The coefficients with these weights, by normal equations and the active sets of Lawson and Hanson
    /// ("Solving Least Squares Problems", 1974, chapter 23).
    fn least_squares(&self, shares: &[f64]) -> Vec<f64> {
        let n = self.columns;
        let (mut gram, mut target) = (vec![0.0; n * n], vec![0.0; n]);
        for (i, share) in shares.iter().enumerate() {
            let weight = share * self.weights[i] * self.weights[i];
            let row = self.row(i);
            for (j, &x) in row.iter().enumerate().filter(|(_, x)| **x != 0.0) {
                target[j] += weight * x * self.values[i];
                for (sum, &y) in gram[j * n..(j + 1) * n].iter_mut().zip(row) {
                    *sum += weight * x * y;
                }
            }
        }
        non_negative(n, &gram, &target)
    }
}

fn deviation(residuals: &[f64]) -> f64 {
    let mut sizes: Vec<f64> = residuals.iter().map(|r| r.abs()).collect();
    let middle = sizes.len() / 2;
    if sizes.is_empty() {
        return 0.0;
    }
    let (_, median, _) = sizes.select_nth_unstable_by(middle, f64::total_cmp);
    *median * DEVIATIONS
}

/// The minimum of `b' gram b / 2 - target' b` over `b >= 0`.
fn non_negative(n: usize, gram: &[f64], target: &[f64]) -> Vec<f64> {
    // Columns are scaled to length 1, so that a figure in millions has no more weight than one in ones.
    let length: Vec<f64> = (0..n).map(|j| gram[j * n + j].sqrt()).collect();
    let used: Vec<usize> = (0..n).filter(|&j| length[j] > 0.0).collect();
    let g = |i: usize, j: usize| gram[i * n + j] / (length[i] * length[j]);
    let t = |j: usize| target[j] / length[j];
    let scale = used.iter().map(|&j| t(j).abs()).fold(0.0, f64::max);
    let mut b = vec![0.0; n];
    let mut free: Vec<usize> = Vec::new();
    for _ in 0..3 * n {
        let rise = |j: usize| t(j) - used.iter().map(|&i| g(j, i) * b[i]).sum::<f64>();
        let next = used.iter().copied().filter(|j| !free.contains(j)).map(|j| (j, rise(j)));
        let Some((j, rise)) = next.max_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        if rise <= 1e-10 * scale {
            break;
        }
        free.push(j);
        loop {
            let solved = solve(&free, &g, &t);
            // The step is shortened so that no coefficient becomes negative.
            let mut step = 1.0f64;
            for (&j, &to) in free.iter().zip(&solved) {
                if to <= 0.0 {
                    step = step.min(b[j] / (b[j] - to).max(f64::MIN_POSITIVE));
                }
            }
            for (&j, &to) in free.iter().zip(&solved) {
                b[j] += step * (to - b[j]);
            }
            if step >= 1.0 {
                break;
            }
            let least = free.iter().copied().min_by(|&i, &j| b[i].total_cmp(&b[j]));
            free.retain(|&j| Some(j) != least && b[j] > 0.0);
            (0..n).filter(|j| !free.contains(j)).for_each(|j| b[j] = 0.0);
        }
    }
    (0..n).map(|j| if length[j] > 0.0 { (b[j] / length[j]).max(0.0) } else { 0.0 }).collect()
}

/// Solves for the free coefficients by Cholesky factors.
fn solve(free: &[usize], g: &impl Fn(usize, usize) -> f64, t: &impl Fn(usize) -> f64) -> Vec<f64> {
    let n = free.len();
    let mut l = vec![0.0f64; n * n];
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| l[i * n + k] * l[j * n + k]).sum();
            // The ridge lets columns that carry the same information share their coefficient.
            let ridge = if i == j { 1e-9 } else { 0.0 };
            let rest = g(free[i], free[j]) + ridge - known;
            l[i * n + j] = if i == j { rest.max(1e-12).sqrt() } else { rest / l[j * n + j] };
        }
    }
    let mut x: Vec<f64> = free.iter().map(|&j| t(j)).collect();
    for i in 0..n {
        let known: f64 = (0..i).map(|k| l[i * n + k] * x[k]).sum();
        x[i] = (x[i] - known) / l[i * n + i];
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| l[k * n + i] * x[k]).sum();
        x[i] = (x[i] - known) / l[i * n + i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cost(columns: usize, gram: &[f64], target: &[f64], b: &[f64]) -> f64 {
        let quadratic: f64 = (0..columns)
            .flat_map(|i| (0..columns).map(move |j| (i, j)))
            .map(|(i, j)| b[i] * gram[i * columns + j] * b[j])
            .sum();
        quadratic / 2.0 - target.iter().zip(b).map(|(t, b)| t * b).sum::<f64>()
    }

    /// The same by coordinate descent over very many rounds.
    fn slow(n: usize, gram: &[f64], target: &[f64]) -> Vec<f64> {
        let mut b = vec![0.0; n];
        for _ in 0..200_000 {
            for j in 0..n {
                let rest: f64 = (0..n).filter(|&i| i != j).map(|i| gram[j * n + i] * b[i]).sum();
                b[j] =
                    if gram[j * n + j] > 0.0 { ((target[j] - rest) / gram[j * n + j]).max(0.0) } else { 0.0 };
            }
        }
        b
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn active_sets_find_what_coordinate_descent_finds(
            rows in prop::collection::vec((prop::collection::vec(-1.0f64..1.0, 5), -3.0f64..3.0), 5..30),
        ) {
            let n = 5;
            let (mut gram, mut target) = (vec![0.0; n * n], vec![0.0; n]);
            for (row, value) in &rows {
                for i in 0..n {
                    target[i] += row[i] * value;
                    (0..n).for_each(|j| gram[i * n + j] += row[i] * row[j]);
                }
            }
            let (fast, slow) = (non_negative(n, &gram, &target), slow(n, &gram, &target));
            prop_assert!(fast.iter().all(|b| *b >= 0.0));
            let (fast, slow) = (cost(n, &gram, &target, &fast), cost(n, &gram, &target, &slow));
            prop_assert!(fast <= slow + 1e-6 * (1.0 + slow.abs()), "{} {}", fast, slow);
        }

        #[test]
        fn one_measurement_in_ten_may_be_wild(seed in 0u64..1000, slope in 0.1f64..10.0, base in 0.0f64..100.0) {
            let mut of = Measurements::new(2);
            let mut state = seed;
            let mut draw = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            for i in 0..300 {
                let x = f64::from(i % 60);
                let noise = 1.0 + 0.02 * (draw() - 0.5);
                let wild = if draw() < 0.1 { 1.0 + 9.0 * draw() } else { 1.0 };
                let value = (base + slope * x) * noise * wild;
                of.push([1.0, x], value, value.max(1e-3));
            }
            let found = of.fit();
            for x in [0.0, 10.0, 59.0] {
                let (want, got) = (base + slope * x, found[0] + found[1] * x);
                prop_assert!((got - want).abs() <= 0.02 * want + 0.05, "at {}: {} for {}", x, got, want);
            }
        }
    }

    #[test]
    fn what_would_be_negative_is_nothing() {
        let mut of = Measurements::new(2);
        (0..50).map(f64::from).for_each(|x| of.push([1.0, x], 100.0 - x, 1.0));
        let found = of.fit();
        assert!(found[0] > 0.0 && found[1] == 0.0, "{found:?}");
    }

    #[test]
    fn nothing_measured_is_nothing_found() {
        assert_eq!(Measurements::new(3).fit(), [0.0; 3]);
        let mut of = Measurements::new(2);
        of.push([0.0, 2.0], 8.0, 1.0);
        let found = of.fit();
        assert!(found[0] == 0.0 && (found[1] - 4.0).abs() < 1e-6, "{found:?}");
    }
}
