//! Writes the comparison for programs.

use pagedraft::session::{DraftLength, SessionInfo, SpeculationOptions};
use pagedraft_spec_decode::canary::CanaryReport;
use pagedraft_workloads::latency::{PERCENTILES, Spread};
use serde_json::{Map, Value, json};

use super::measured::Measured;
use super::parity::Difference;
use super::runs::{RUNS, Run};
use crate::cli::batch_header::BatchShape;
use crate::cli::machine;
use crate::cli::step_figures::capture;

/// What was measured so far, and on what.
pub struct Report<'a> {
    pub info: &'a SessionInfo,
    pub shape: BatchShape,
    pub speculation: &'a SpeculationOptions,
    /// The runs in the order of [`RUNS`].
    pub runs: &'a [Measured],
    pub canary: Option<CanaryReport>,
    pub shadow_rate: f64,
    /// Whether a fault was injected on purpose.
    pub fault: bool,
}

impl Report<'_> {
    /// The number of iterations in which every run was timed.
    pub fn iterations(&self) -> usize {
        self.runs.iter().map(|run| run.latencies.len()).min().unwrap_or(0)
    }

    /// The most drafts of a row.
    pub fn k(&self) -> usize {
        usize::from(self.speculation.length.most())
    }

    /// Whether every run gave what the plain eager run gave, and no canary raised an alarm.
    pub fn is_equal(&self) -> bool {
        self.runs.iter().all(|run| run.parity.is_equal())
            && self.canary.as_ref().is_none_or(|canary| canary.alarms == 0)
    }

    pub fn json(&self) -> Value {
        let mut json = self.config();
        let fields = json!({
            "iterations": self.iterations(),
            "partial": self.iterations() < self.shape.num_iters as usize,
            "equal": self.is_equal(),
            "runs": (0..self.runs.len()).map(|i| self.run(i)).collect::<Vec<_>>(),
        });
        if let (Value::Object(json), Value::Object(fields)) = (&mut json, fields) {
            json.extend(fields);
            if let Some(canary) = &self.canary {
                json.insert("canary".to_owned(), json!(canary));
            }
        }
        json
    }

    /// The configuration: what was to be measured, and on what.
    pub fn config(&self) -> Value {
        let (info, shape, speculation) = (self.info, self.shape, self.speculation);
        json!({
            "command": "bench compare",
            "model_id": info.model_id,
            "parameters": info.parameters,
            "dummy_weights": info.dummy_weights,
            "dtype": info.dtype.to_string(),
            "quantization": info.quantization.to_string(),
            "machine": machine::name(),
            "instruction_set": info.isa.to_string(),
            "deterministic": info.deterministic,
            "threads": info.threads,
            "revision": pagedraft::REVISION,
            "version": env!("CARGO_PKG_VERSION"),
            "seed": shape.seed,
            "batch": shape.batch_size,
            "input_len": shape.input_len,
            "output_len": shape.output_len,
            "num_iters": shape.num_iters,
            "warmup": shape.num_iters_warmup,
            "block_size": info.block_size,
            "num_blocks": info.num_blocks,
            "max_model_len": info.max_model_len,
            "draft": speculation.draft.as_ref().map(ToString::to_string),
            "k": match speculation.length {
                DraftLength::Auto => json!("auto"),
                DraftLength::Fixed(k) => json!(k),
            },
            "speculation": {
                "draft_cost": speculation.draft_cost,
                "ngram_min": speculation.ngram.0,
                "ngram_max": speculation.ngram.1,
                "ngram_scorer": speculation.scorer,
                "max_num_speculative_tokens": speculation.length.most(),
                "acceptance": speculation.acceptance.to_string(),
                "shadow_rate": self.shadow_rate,
                "injected_fault": self.fault.then_some("decode-graph-for-verify"),
            },
            "capture": capture(info),
        })
    }

    fn run(&self, i: usize) -> Value {
        let (run, measured) = (RUNS[i], &self.runs[i]);
        let spread = measured.spread();
        let percentiles: Map<String, Value> = spread
            .iter()
            .flat_map(|s| PERCENTILES.map(|p| (p.to_string(), s.percentile(f64::from(p)).into())))
            .collect();
        let plain = &self.runs[run.plain()];
        let twin = Run::eager_twin(i);
        let over_eager = measured.speedup_over(&self.runs[twin]).filter(|_| twin != i);
        let counts = &measured.target;
        let mut json = json!({
            "proposer": run.proposer(self.speculation),
            "scorer": run.scorer(self.speculation),
            "mode": run.mode(),
            "name": run.name(self.speculation),
            "avg_latency": spread.as_ref().map(Spread::mean),
            "median_latency": spread.as_ref().map(Spread::median),
            "latencies": measured.latencies,
            "percentiles": percentiles,
            "speedup_vs_no_spec": measured.speedup_over(plain),
            "paired_median_speedup_vs_no_spec": measured.paired_speedup_over(plain),
            "graph_vs_eager": over_eager,
            "mean_drafts_per_verify_row": measured.drafts_per_row(),
            "num_verify_rows": measured.metrics.num_verify_rows,
            "num_verify_steps": measured.metrics.num_steps,
            "num_preemptions": measured.preemptions,
            "share_outside_model": measured.share_outside_model(),
            "graph_replays": counts.replays,
            "eager_steps": counts.eager,
            "graph_fallbacks": counts.fallbacks,
            "device_seconds": counts.device.as_secs_f64(),
            "wall_ms_per_step": measured.stage_ms(),
            "device_ms_per_step": measured.device_ms(),
            "draft_graph_replays": measured.draft.replays,
            "draft_eager_steps": measured.draft.eager,
            "draft_graph_fallbacks": measured.draft.fallbacks,
            "parity": self.parity(measured),
        });
        let summary = serde_json::to_value(measured.metrics.summary()).unwrap_or_default();
        if let (Value::Object(json), Value::Object(summary)) = (&mut json, summary) {
            json.extend(summary);
        }
        json
    }

    fn parity(&self, measured: &Measured) -> Value {
        let parity = &measured.parity;
        let place = |first: Difference| {
            json!({
                "request_id": first.row.to_string(),
                "position": self.shape.input_len as usize + first.output_index,
                "output_index": first.output_index,
                "what": first.what,
            })
        };
        json!({
            "requests": parity.requests(),
            "requests_equal": parity.requests_equal(),
            "tokens": parity.tokens(),
            "first_difference": parity.first_difference().map(place),
            "row_differences": parity.row_differences().map(place).collect::<Vec<_>>(),
            "max_abs_hidden_diff": parity.max_abs_hidden_diff(),
            "max_abs_logit_diff": parity.max_abs_logit_diff(),
            "rows_different": parity.rows_different(),
            "timed_batches": parity.timed,
            "timed_batches_different": parity.timed_different,
        })
    }
}
