//! Scales of axes: where a value lies, and which values are marked.

/// Maps values to pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    log: bool,
    /// The pixels of the two ends.
    start: f64,
    end: f64,
}

impl Scale {
    /// A linear scale for the values `from..=to` (widened if they are the same) on the pixels from `start`
    /// to `end`.
    pub(super) fn linear(from: f64, to: f64, start: f64, end: f64) -> Self {
        let to = if to > from { to } else { from + 1.0 };
        Self { from, to, log: false, start, end }
    }

    /// A logarithmic scale for positive values.
    pub(super) fn log(from: f64, to: f64, start: f64, end: f64) -> Self {
        let from = if from > 0.0 { from } else { 1e-3 };
        let to = if to > from * 1.1 { to } else { from * 10.0 };
        Self { from, to, log: true, start, end }
    }

    /// The pixel of a value. Values outside the scale lie on its ends.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }

    /// Round values within the scale, about `most` at most.
    pub(super) fn ticks(&self, most: usize) -> Vec<f64> {
        if self.log { self.log_ticks(most) } else { self.linear_ticks(most) }
    }

    fn linear_ticks(&self, most: usize) -> Vec<f64> {
        let rough = (self.to - self.from) / most.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let Some(step) = [1.0, 2.0, 5.0, 10.0].iter().map(|f| f * power).find(|step| *step >= rough) else {
            return Vec::new();
        };
        let first = (self.from / step).ceil();
        (0..=most)
            .map(|i| (first + i as f64) * step)
            .take_while(|tick| *tick <= self.to * (1.0 + 1e-12) + 1e-300)
            .collect()
    }

    fn log_ticks(&self, most: usize) -> Vec<f64> {
        let (low, high) = (self.from.log10().floor() as i32, self.to.log10().ceil() as i32);
        let within = |tick: &f64| (self.from * 0.999..=self.to * 1.001).contains(tick);
        let of = |digits: &[f64]| -> Vec<f64> {
            (low..=high)
                .flat_map(|power| digits.iter().map(move |d| d * 10f64.powi(power)))
                .filter(within)
                .collect()
        };
        let [rich, plain] = [of(&[1.0, 2.0, 5.0]), of(&[1.0])];
        if rich.len() < 2 {
            // The values are so close together that fewer than two of these numbers lie between them.
            return self.linear_ticks(most);
        }
        if rich.len() <= most {
            return rich;
        }
        let every = plain.len().div_ceil(most.max(1)).max(1);
        plain.into_iter().step_by(every).collect()
    }
}

/// A number for people: three or four significant digits, with separators between thousands.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        _ if !value.is_finite() => return "–".to_owned(),
        0.0 => return "0".to_owned(),
        _ if size >= 1e15 => return format!("{value:.3e}"),
        _ if size >= 1000.0 => format!("{value:.0}"),
        _ if size >= 100.0 => format!("{value:.1}"),
        _ if size >= 10.0 => format!("{value:.2}"),
        _ if size >= 0.01 => format!("{value:.3}"),
        _ => return format!("{value:.2e}"),
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let (whole, rest) = text.split_once('.').map_or((text, ""), |(whole, rest)| (whole, rest));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut apart = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    if rest.is_empty() { format!("{sign}{apart}") } else { format!("{sign}{apart}.{rest}") }
}

/// The label of a tick, as short as possible.
pub(super) fn label(value: f64) -> String {
    let short = |value: f64, unit: &str| {
        let text = format!("{value:.3}");
        format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match value.abs() {
        v if v >= 1e9 => short(value / 1e9, "G"),
        v if v >= 1e6 => short(value / 1e6, "M"),
        v if v >= 1e4 => short(value / 1e3, "k"),
        v if v >= 0.001 || v == 0.0 => short(value, ""),
        _ => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(Scale::linear(0.0, 10.0, 0.0, 1.0).ticks(5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(Scale::log(0.5, 300.0, 0.0, 1.0).ticks(4), [1.0, 10.0, 100.0]);
        assert_eq!(Scale::log(3.0, 30.0, 0.0, 1.0).ticks(4), [5.0, 10.0, 20.0]);
        for (from, to) in [(0.0, 0.0), (-5.0, 1e18), (1e-9, 2e-9), (7.0, 7.0)] {
            for scale in [Scale::linear(from, to, 0.0, 100.0), Scale::log(from, to, 0.0, 100.0)] {
                let ticks = scale.ticks(6);
                assert!(ticks.len() <= 7, "{from} {to}: {ticks:?}");
                assert!(ticks.iter().all(|tick| (0.0..=100.0).contains(&scale.at(*tick))));
            }
        }
    }

    #[test]
    fn values_close_together_have_ticks_too() {
        for (from, to) in [(52.0, 58.0), (2100.0, 4900.0), (510.0, 990.0), (0.061, 0.069)] {
            let scale = Scale::log(from, to, 0.0, 100.0);
            let ticks = scale.ticks(7);
            assert!((2..=8).contains(&ticks.len()), "{from} {to}: {ticks:?}");
            assert!(ticks.iter().all(|tick| (from..=to).contains(tick)), "{from} {to}: {ticks:?}");
        }
    }

    #[test]
    fn numbers_are_for_people() {
        let is = [0.0, 1234567.0, 0.12345, 12.5, -1234.4, f64::NAN, 0.00012, 100.04].map(number);
        assert_eq!(is, ["0", "1,234,567", "0.123", "12.5", "-1,234", "–", "1.20e-4", "100"]);
        assert_eq!([0.0, 20000.0, 2.5e6, 0.25].map(label), ["0", "20k", "2.5M", "0.25"]);
    }
}
