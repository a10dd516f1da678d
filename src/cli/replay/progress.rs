//! How a run goes on, on standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pagedraft_workloads::replay::StepReport;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How often a bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// A bar on a terminal, a line now and then elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    items: u64,
    /// Requests that were done with before this part of the run.
    before: u64,
    started: Instant,
    told: Instant,
    tokens: u64,
    /// Tokens when it was told last.
    tokens_told: u64,
}

impl Progress {
    /// Of a run of `items` requests of which `before` are done with.
    pub fn new(items: u64, before: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(items), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg} {eta:>4}") {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self { bar, items, before, started: now, told: now, tokens: 0, tokens_told: 0 }
    }

    /// A step was made; `done` requests are done with.
    pub fn step(&mut self, report: &StepReport, done: u64) {
        self.tokens += report.rows.iter().map(|row| u64::from(row.new_tokens)).sum::<u64>();
        let every = if self.bar.is_some() { DRAW_EVERY } else { LINE_EVERY };
        let since = self.told.elapsed();
        if since < every {
            return;
        }
        let rate = (self.tokens - self.tokens_told) as f64 / since.as_secs_f64();
        (self.told, self.tokens_told) = (Instant::now(), self.tokens);
        let at = report.end_ns as f64 / 1e9;
        let message = format!(
            "{} running, {} waiting, {rate:.0} tokens/s, at {at:.1} s",
            report.running, report.waiting
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(message);
            }
            None => {
                let left =
                    self.left(done).map_or_else(String::new, |left| format!(", about {left:.0} s left"));
                // A closed standard error is nobody's loss.
                let _ = writeln!(std::io::stderr(), "{done}/{} requests, {message}{left}", self.items);
            }
        }
    }

    /// Seconds that are left, if it goes on as it went.
    fn left(&self, done: u64) -> Option<f64> {
        let here = done.checked_sub(self.before).filter(|&here| here > 0)?;
        let each = self.started.elapsed().as_secs_f64() / here as f64;
        Some(each * self.items.saturating_sub(done) as f64)
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
