use std::collections::BTreeMap;

use super::latencies::RequestTimes;
use super::slo::Slo;
use super::summary::{Goodput, Score};
use crate::dataset::SkipReason;
use crate::replay::{RequestLine, Status, TokenCount};

/// The most categories that scores are kept apart by. Scores of further ones are counted together.
const MOST_CATEGORIES: usize = 256;

/// Counts over requests that are finished, skipped or failed, made from their lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub completed: u64,
    pub failed: u64,
    pub skipped: BTreeMap<SkipReason, u64>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_tokens: u64,
    pub cached_blocks: u64,
    /// The number of prompt tokens of the requests of which it is told how many of them were cached.
    pub cache_told: u64,
    /// Failed requests by kind, where the kind is told.
    pub errors: BTreeMap<String, u64>,
    pub retries: u64,
    pub counted_by: BTreeMap<TokenCount, u64>,
    /// The number of requests that met the goal for the first token, for the time per token, for the end,
    /// and all of them.
    met: [u64; 4],
    scores: BTreeMap<String, (u64, f64)>,
}

impl Totals {
    pub(super) fn add(&mut self, line: &RequestLine, times: &RequestTimes, slo: &Slo, block_size: u32) {
        self.retries += u64::from(line.retries);
        match line.status {
            Status::Finished => {}
            Status::Failed => {
                self.failed += 1;
                if let Some(kind) = &line.error_kind {
                    *self.errors.entry(kind.clone()).or_default() += 1;
                }
                return;
            }
            Status::Skipped => {
                if let Some(reason) = line.skip_reason {
                    *self.skipped.entry(reason).or_default() += 1;
                }
                return;
            }
        }
        self.completed += 1;
        self.input_tokens += u64::from(line.prompt_tokens.unwrap_or(0));
        self.output_tokens += u64::from(line.output_tokens);
        if let Some(cached) = line.cached_tokens {
            self.cached_tokens += u64::from(cached);
            self.cached_blocks += u64::from(cached / block_size.max(1));
            self.cache_told += u64::from(line.prompt_tokens.unwrap_or(0));
        }
        if let Some(how) = line.counted_by {
            *self.counted_by.entry(how).or_default() += 1;
        }
        // A request with one token has no time per token and therefore meets any goal for it, as in vLLM. A
        // request without tokens has no first token either, and gave nothing in time.
        let within = |value: Option<u64>, goal: Option<f64>, without| match (value, goal) {
            (_, None) => true,
            (Some(ns), Some(goal)) => ns as f64 / 1e6 <= goal,
            (None, Some(_)) => without,
        };
        let met = [
            within(times.ttft, slo.ttft_ms, false),
            within(times.tpot, slo.tpot_ms, true),
            within(times.e2el, slo.e2el_ms, false),
        ];
        self.met.iter_mut().zip(met).for_each(|(n, met)| *n += u64::from(met));
        self.met[3] += u64::from(met == [true; 3]);
        if let Some(score) = line.score {
            self.score(line.category.as_deref().unwrap_or("all"), score);
        }
    }

    fn score(&mut self, category: &str, score: f64) {
        let known = self.scores.contains_key(category) || self.scores.len() < MOST_CATEGORIES;
        let (count, sum) = self.scores.entry(if known { category } else { "others" }.to_owned()).or_default();
        *count += 1;
        *sum += score;
    }

    /// The number of requests counted.
    pub(super) fn done(&self) -> u64 {
        self.completed + self.failed + self.skipped.values().sum::<u64>()
    }

    /// Adds the counts of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        for (reason, count) in &other.skipped {
            *self.skipped.entry(*reason).or_default() += count;
        }
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cached_tokens += other.cached_tokens;
        self.cached_blocks += other.cached_blocks;
        self.cache_told += other.cache_told;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.retries += other.retries;
        for (how, count) in &other.counted_by {
            *self.counted_by.entry(*how).or_default() += count;
        }
        self.met.iter_mut().zip(other.met).for_each(|(n, more)| *n += more);
        for (category, (count, sum)) in &other.scores {
            let score = self.scores.entry(category.clone()).or_default();
            score.0 += count;
            score.1 += sum;
        }
    }

    /// How many requests met the goals; `None` without goals. `throughput` is the number of completed
    /// requests per second.
    pub(super) fn goodput(&self, slo: &Slo, throughput: f64) -> Option<Goodput> {
        let [ttft, tpot, e2el, all] = self.met;
        let share = super::timeline::ratio(all, self.completed);
        (!slo.is_empty()).then(|| Goodput {
            slo: *slo,
            met_ttft: slo.ttft_ms.map(|_| ttft),
            met_tpot: slo.tpot_ms.map(|_| tpot),
            met_e2el: slo.e2el_ms.map(|_| e2el),
            met_all: all,
            share,
            request_goodput: share * throughput,
        })
    }

    pub(super) fn scores(&self) -> BTreeMap<String, Score> {
        let mean = |(category, (count, sum)): (&String, &(u64, f64))| {
            (category.clone(), Score { count: *count, mean: sum / *count as f64 })
        };
        self.scores.iter().map(mean).collect()
    }
}
