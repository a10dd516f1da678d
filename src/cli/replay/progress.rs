//! Shows the progress of a run on standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pagedraft_workloads::replay::StepReport;

/// How often a line is written if there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How often the bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// A bar on a terminal; elsewhere a line from time to time.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// The activity, which is put before each line. It is empty for the run itself.
    name: &'static str,
    items: u64,
    /// The number of requests that were done before this part of the run.
    before: u64,
    started: Instant,
    told: Instant,
    tokens: u64,
    /// The number of tokens at the time of the last line.
    tokens_told: u64,
}

impl Progress {
    /// The progress of a run of `items` requests, of which `before` are done. The time that is left is
    /// estimated from the others.
    pub fn new(name: &'static str, items: u64, before: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(items), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{prefix}{pos}/{len} {wide_bar} {msg} {eta:>4}") {
                bar.set_style(style);
            }
            bar.set_prefix(name);
            // The position must be set before the estimate is reset, so that the estimate begins there.
            bar.set_position(before);
            bar.tick();
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self { bar, name, items, before, started: now, told: now, tokens: 0, tokens_told: 0 }
    }

    /// Takes note of a step. `done` requests are done.
    pub fn step(&mut self, report: &StepReport, done: u64) {
        let tokens = report.rows.iter().map(|row| u64::from(row.new_tokens)).sum();
        let requests = || format!("{} running, {} waiting", report.running, report.waiting);
        self.stepped(tokens, requests, report.end_ns as f64 / 1e9, done);
    }

    /// Takes note that `tokens` tokens came until `at` seconds after the beginning. `requests` says how many requests are at
    /// work.
    pub fn stepped(&mut self, tokens: u64, requests: impl Fn() -> String, at: f64, done: u64) {
        self.tokens += tokens;
        let every = if self.bar.is_some() { DRAW_EVERY } else { LINE_EVERY };
        let since = self.told.elapsed();
        if since < every {
            return;
        }
        let rate = (self.tokens - self.tokens_told) as f64 / since.as_secs_f64();
        (self.told, self.tokens_told) = (Instant::now(), self.tokens);
        let message = format!("{}, {rate:.0} tokens/s, at {at:.1} s", requests());
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(message);
            }
            None => {
                let left =
                    self.left(done).map_or_else(String::new, |left| format!(", about {left:.0} s left"));
                // It does no harm if the line is lost because standard error is closed.
                let _ = writeln!(
                    std::io::stderr(),
                    "{}{done}/{} requests, {message}{left}",
                    self.name,
                    self.items
                );
            }
        }
    }

    /// The seconds that are left if the run goes on at the same speed.
    fn left(&self, done: u64) -> Option<f64> {
        let here = done.checked_sub(self.before).filter(|&here| here > 0)?;
        let each = self.started.elapsed().as_secs_f64() / here as f64;
        Some(each * self.items.saturating_sub(done) as f64)
    }

    /// Removes the bar.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
