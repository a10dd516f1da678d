//! Pearson's chi-square test.

/// The probability that counts of draws from `expected` (probabilities that sum to 1) differ from it at
/// least as much as these; and the degrees of freedom. Cells in which fewer than 5 draws are expected are
/// merged.
pub fn p_value(expected: &[f64], counts: &[u64]) -> (f64, usize) {
    let draws = counts.iter().sum::<u64>() as f64;
    let (mut statistic, mut cells) = (0.0, 0);
    let mut add = |expect: f64, count: f64| {
        statistic += (count - expect).powi(2) / expect;
        cells += 1;
    };
    let mut rare = (0.0, 0.0);
    for (p, &count) in expected.iter().zip(counts) {
        let (expect, count) = (p * draws, count as f64);
        assert!(*p > 0.0 || count == 0.0, "an outcome of probability 0 was drawn");
        if expect >= 5.0 {
            add(expect, count);
        } else {
            rare = (rare.0 + expect, rare.1 + count);
        }
    }
    if rare.0 >= 5.0 {
        add(rare.0, rare.1);
    }
    assert!(cells > 1, "nothing to compare");
    (tail(statistic, cells - 1), cells - 1)
}

/// P(chi-square with `degrees` degrees of freedom >= x) = Q(degrees / 2, x / 2).
pub fn tail(x: f64, degrees: usize) -> f64 {
    let (a, x) = (degrees as f64 / 2.0, x / 2.0);
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        // The series of P = 1 - Q.
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for n in 1..10_000 {
            term *= x / (a + f64::from(n));
            sum += term;
            if term < sum * 1e-15 {
                break;
            }
        }
        return 1.0 - front * sum;
    }
    // The continued fraction of Q, by Lentz's method.
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1e300, 1.0 / b);
    let mut h = d;
    for i in 1..10_000 {
        let i = f64::from(i);
        let an = -i * (i - a);
        b += 2.0;
        d = 1.0 / (an * d + b);
        c = b + an / c;
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * h
}

/// The logarithm of the gamma function by Stirling's series. The argument is first raised to where the
/// series is exact up to the last bits.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut steps) = (x, 1.0f64);
    while x < 15.0 {
        steps *= x;
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series = (1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - steps.ln()
}

#[test]
fn the_tail_has_the_values_of_the_tables() {
    // The values are from Abramowitz and Stegun, table 26.8; with 2 degrees the tail is e^(-x/2).
    for (x, degrees, p) in [
        (3.841_458_8, 1, 0.05),
        (10.827_566, 1, 0.001),
        (18.307_038, 10, 0.05),
        (23.209_251, 10, 0.01),
        (124.342_11, 100, 0.05),
        (135.806_72, 100, 0.01),
        (61.917_94, 100, 0.999),
    ] {
        assert!((tail(x, degrees) - p).abs() < 2e-5 * p + 1e-8, "{x}, {degrees}: {}", tail(x, degrees));
    }
    for x in [0.1, 1.0, 5.0, 50.0] {
        assert!((tail(x, 2) - (-x / 2.0f64).exp()).abs() < 1e-13);
    }
}
