//! Makes the summary of a recorder.

use std::collections::BTreeMap;

use super::{Mark, Recorder};
use crate::measures::latencies::LatencySet;
use crate::measures::speculation::DraftTotals;
use crate::measures::timeline::ratio;
use crate::measures::totals::Totals;
use crate::measures::{EngineUse, KvUse, LatencyMs, PrefixCache, RequestRate, Serving, Steady, Summary};

impl Recorder {
    pub(super) fn result(&self) -> Summary {
        let [edges, middle] = &self.latencies;
        let mut all = edges.clone();
        all.add(middle);
        let mut totals = self.totals[0].clone();
        totals.merge(&self.totals[1]);
        let mut drafts = self.drafts[0].clone();
        drafts.merge(&self.drafts[1]);

        let duration = self.end_ns as f64 / 1e9;
        let rate = |n: u64| if duration > 0.0 { n as f64 / duration } else { 0.0 };
        let latencies = all.latencies();
        let goodput = totals.goodput(&self.options.slo, rate(totals.completed));
        let sent_for = self.sent.last_ns.saturating_sub(self.sent.first_ns) as f64 / 1e9;
        Summary {
            schema_version: 1,
            num_prompts: self.options.items,
            request_rate: self.options.rate_asked.map(RequestRate::PerSecond),
            burstiness: None,
            duration,
            completed: totals.completed,
            failed: totals.failed,
            skipped: totals.skipped.clone(),
            restored: self.restored,
            total_input_tokens: totals.input_tokens,
            total_output_tokens: totals.output_tokens,
            request_throughput: rate(totals.completed),
            request_goodput: goodput.map(|g| g.request_goodput),
            output_throughput: rate(totals.output_tokens),
            total_token_throughput: rate(totals.input_tokens.saturating_add(totals.output_tokens)),
            max_output_tokens_per_s: self.tokens_per_second.greatest(),
            max_concurrent_requests: self.sent.most_in_flight as u64,
            latencies,
            speculation: drafts.speculation(),
            rate_asked: self.options.rate_asked,
            rate_sent: (sent_for > 0.0).then(|| self.sent.requests.saturating_sub(1) as f64 / sent_for),
            send_lateness_ms: self.lateness.figures(),
            itl: all.inter_token(),
            goodput,
            prefix_cache: self.prefix_cache(&totals),
            engine: (!self.options.server).then(|| self.engine_use()),
            errors: totals.errors.clone(),
            retries: self.options.server.then_some(totals.retries),
            counted_by: totals.counted_by.clone(),
            score: totals.scores(),
            steady: self.steady(middle, &self.totals[1], &self.drafts[1]),
            timeline: match self.options.server {
                false => self.bins.timeline(self.end_ns),
                true => self.bins.timeline(self.end_ns).of_server(),
            },
            histograms: all.histograms(),
            serving: Serving {
                requests: totals.completed,
                latency_ms: LatencyMs {
                    p50: latencies.e2el.median,
                    p95: latencies.e2el.p95,
                    p99: latencies.e2el.p99,
                    max: latencies.e2el.max,
                },
                batch_size: (!self.options.server)
                    .then(|| u32::try_from(self.steps.most_rows).unwrap_or(u32::MAX)),
                max_new_tokens_cap: None,
            },
            ..Summary::default()
        }
    }

    fn steady(&self, latencies: &LatencySet, totals: &Totals, drafts: &DraftTotals) -> Steady {
        let [from, to] = self.marks;
        let between = |of: fn(&Mark) -> u64| {
            let (from, to) = from.zip(to)?;
            let passed = to.at_ns.saturating_sub(from.at_ns) as f64 / 1e9;
            (passed > 0.0).then(|| of(&to).saturating_sub(of(&from)) as f64 / passed)
        };
        let request_throughput = between(|m| m.completed);
        let tenth = self.options.items / 10;
        Steady {
            from_request: tenth,
            to_request: self.options.items - tenth,
            completed: totals.completed,
            failed: totals.failed,
            total_input_tokens: totals.input_tokens,
            total_output_tokens: totals.output_tokens,
            from_s: from.map(|m| m.at_ns as f64 / 1e9),
            to_s: to.map(|m| m.at_ns as f64 / 1e9),
            request_throughput,
            output_throughput: between(|m| m.output_tokens),
            total_token_throughput: between(|m| m.output_tokens.saturating_add(m.input_tokens)),
            latencies: latencies.latencies(),
            speculation: drafts.speculation(),
            itl: latencies.inter_token(),
            goodput: totals.goodput(&self.options.slo, request_throughput.unwrap_or(0.0)),
            prefix_cache: self.prefix_cache(totals),
            score: totals.scores(),
            histograms: latencies.histograms(),
        }
    }

    /// What the prefix cache saved. `None` if a server told nothing of it.
    fn prefix_cache(&self, totals: &Totals) -> Option<PrefixCache> {
        let server = self.options.server;
        (!server || totals.cache_told > 0).then(|| PrefixCache {
            prompt_tokens: totals.cache_told,
            cached_tokens: totals.cached_tokens,
            hit_rate: ratio(totals.cached_tokens, totals.cache_told),
            cached_blocks: (!server).then_some(totals.cached_blocks),
        })
    }

    fn engine_use(&self) -> EngineUse {
        let num_blocks = self.bins.num_blocks();
        let mut touches = self.touches.clone();
        for request in self.in_flight.each() {
            let mut reading = request.reading;
            touches.end(&mut reading, request.prefix_blocks);
        }

        EngineUse {
            kv: KvUse {
                num_blocks,
                peak_used: self.bins.peak_kv_used,
                peak_share: self.bins.peak_kv_share,
                bytes_total: self.bins.bytes_total(),
                peak_bytes_used: self.bins.bytes_total().map(|_| self.bins.peak_kv_bytes),
                mean_share: if num_blocks == 0 {
                    0.0
                } else {
                    self.bins.mean_kv_used(self.end_ns) / num_blocks as f64
                },
            },
            preemptions: self.steps.preempted,
            steps: self.steps.steps,
            graph_replays: self.steps.replayed,
            prefill_tokens: self.steps.prefill_tokens,
            decode_rows: self.steps.decode_rows,
            unique_blocks: touches.unique_blocks(),
            tokens_per_touched_block: touches.tokens_per_touched_block(),
            offsets: None,
            prefix_intersection_ratio: touches.prefix_share(),
            prefix_hot_blocks: BTreeMap::from([("0".to_owned(), touches.hottest())]),
        }
    }
}
