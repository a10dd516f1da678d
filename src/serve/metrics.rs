//! `GET /metrics`: what the engine counts, in Prometheus' text format. What vLLM counts has vLLM's names, so that boards made for it
//! show this server too; the rest begins with `pagedraft:`.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use pagedraft_engine::handle::{Histogram, Stats};
use pagedraft_scheduler::FinishReason;

use super::app::App;

/// The metrics of a server.
pub async fn text(State(app): State<Arc<App>>) -> Response {
    let mut page = Page::new(app.name());
    page.engine(&app.engine.stats());
    page.build(&app);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], page.text).into_response()
}

/// A page of metrics that grows.
struct Page {
    text: String,
    /// The labels that every sample has.
    labels: String,
}

impl Page {
    fn new(model: &str) -> Self {
        Self { text: String::new(), labels: format!("model_name=\"{}\",engine=\"0\"", escaped(model)) }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text does not fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A line with more labels, each as `,name="value"`.
    fn sample(&mut self, name: &str, more: &str, value: impl Display) {
        let _ = writeln!(self.text, "{name}{{{}{more}}} {value}", self.labels);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.sample(name, "", value);
    }

    /// A counter with a sample for each value of a label.
    fn counters<V: Display>(
        &mut self,
        (name, help): (&str, &str),
        label: &str,
        values: impl IntoIterator<Item = (impl Display, V)>,
    ) {
        self.head(name, "counter", help);
        for (of, value) in values {
            self.sample(name, &format!(",{label}=\"{of}\""), value);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, values: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound, count) in values.cumulative() {
            // Bounds are written as Python writes floats, because a bucket is found by its text.
            self.sample(&bucket, &format!(",le=\"{bound:?}\""), count);
        }
        self.sample(&bucket, ",le=\"+Inf\"", values.count());
        self.sample(&format!("{name}_sum"), "", values.sum());
        self.sample(&format!("{name}_count"), "", values.count());
    }

    fn engine(&mut self, stats: &Stats) {
        self.queues(stats);
        self.tokens(stats);
        self.requests(stats);
        self.speculation(stats);
        self.prices(stats);
        self.steps(stats);
    }

    fn queues(&mut self, stats: &Stats) {
        let pool = &stats.pool;
        let used = pool.bytes_used as f64 / (pool.bytes_total as f64).max(1.0);
        self.gauge("vllm:num_requests_running", "Samples that are admitted.", stats.running);
        self.gauge("vllm:num_requests_waiting", "Samples that wait to be admitted.", stats.waiting);
        let waiting = "vllm:num_requests_waiting_by_reason";
        self.head(waiting, "gauge", "Samples that wait for room, or for another sample of their prompt.");
        self.sample(waiting, ",reason=\"capacity\"", stats.waiting.saturating_sub(stats.deferred));
        self.sample(waiting, ",reason=\"deferred\"", stats.deferred);
        self.gauge("vllm:kv_cache_usage_perc", "Share of the KV pool that requests hold, from 0 to 1.", used);
        self.counter(
            "vllm:num_preemptions_total",
            "How often a sample's blocks were taken back.",
            stats.preemptions,
        );
        let rejections = ("vllm:admission_rejections_total", "Requests that were refused.");
        self.counters(rejections, "reason", [("queue_full", stats.refused)]);
        let cached = "KV blocks that no request holds, and whose contents can still be hit.";
        self.gauge("pagedraft:kv_blocks_cached", cached, pool.cached);
        self.gauge("pagedraft:kv_bytes_used", "Bytes of the KV pool that requests hold.", pool.bytes_used);
        self.gauge("pagedraft:kv_pool_bytes", "Bytes of the KV pool.", pool.bytes_total);
    }

    fn tokens(&mut self, stats: &Stats) {
        let (prompt, cached) = (stats.prompt_tokens, stats.prompt_tokens_cached);
        self.counter(
            "vllm:prefix_cache_queries_total",
            "Prompt tokens that were looked for in the prefix cache.",
            prompt,
        );
        self.counter("vllm:prefix_cache_hits_total", "Prompt tokens that were found there.", cached);
        self.counter("vllm:prompt_tokens_total", "Prompt tokens of samples with a first token.", prompt);
        self.counter(
            "vllm:prompt_tokens_cached_total",
            "Those of them that were found in the prefix cache.",
            cached,
        );
        self.counter("vllm:generation_tokens_total", "Tokens that were generated.", stats.generation_tokens);
        let step = "Tokens of a step: of prompts, and those it emitted.";
        self.histogram("vllm:iteration_tokens_total", step, &stats.iteration_tokens);
    }

    fn requests(&mut self, stats: &Stats) {
        let reasons = [
            ("stop", FinishReason::Stop),
            ("length", FinishReason::Length),
            ("abort", FinishReason::Abort),
            ("error", FinishReason::Failed),
        ];
        let ended = reasons.map(|(name, reason)| (name, stats.ended_by(reason)));
        self.counters(("vllm:request_success_total", "Samples that ended."), "finished_reason", ended);
        let too_slow = "Samples that were given up because they were read too slowly.";
        self.counter("pagedraft:readers_too_slow_total", too_slow, stats.too_slow);
        for (name, help, values) in [
            (
                "time_to_first_token_seconds",
                "From a request's arrival to a first token.",
                &stats.time_to_first_token,
            ),
            ("inter_token_latency_seconds", "Between two tokens of a sample.", &stats.inter_token_latency),
            (
                "request_time_per_output_token_seconds",
                "Mean time of a sample's tokens behind the first.",
                &stats.time_per_output_token,
            ),
            (
                "e2e_request_latency_seconds",
                "From a request's arrival to a last token.",
                &stats.e2e_request_latency,
            ),
            (
                "request_queue_time_seconds",
                "From a request's arrival to its first step.",
                &stats.request_queue_time,
            ),
            (
                "request_inference_time_seconds",
                "From a first step to a last token.",
                &stats.request_inference_time,
            ),
            (
                "request_prefill_time_seconds",
                "From a first step to a first token.",
                &stats.request_prefill_time,
            ),
            ("request_decode_time_seconds", "From a first token to a last.", &stats.request_decode_time),
            ("request_prompt_tokens", "Prompt tokens of samples that ended.", &stats.request_prompt_tokens),
            ("request_generation_tokens", "Tokens that they generated.", &stats.request_generation_tokens),
            (
                "request_max_num_generation_tokens",
                "The same, for boards that look for it by this name: each sample counts for itself.",
                &stats.request_generation_tokens,
            ),
            (
                "request_prefill_kv_computed_tokens",
                "Prompt tokens that were computed for them.",
                &stats.request_prefill_kv_computed_tokens,
            ),
            ("request_params_n", "Samples that requests ask for.", &stats.request_params_n),
            (
                "request_params_max_tokens",
                "Tokens that requests ask for at most.",
                &stats.request_params_max_tokens,
            ),
            (
                "request_num_preemptions",
                "How often the blocks of samples that ended were taken back.",
                &stats.request_num_preemptions,
            ),
        ] {
            self.histogram(&format!("vllm:{name}"), help, values);
        }
    }

    fn speculation(&mut self, stats: &Stats) {
        let gains = &stats.speculation;
        let rows = "Rows that had drafts.";
        self.counter("vllm:spec_decode_num_drafts_total", rows, gains.num_verify_rows);
        let drafts = "Drafts that were verified.";
        self.counter("vllm:spec_decode_num_draft_tokens_total", drafts, gains.num_draft_tokens);
        let accepted = "Drafts that were accepted.";
        self.counter("vllm:spec_decode_num_accepted_tokens_total", accepted, gains.num_accepted_tokens);
        let places = ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "Drafts accepted at a position.");
        self.counters(places, "position", gains.accepted_by_position.iter().enumerate());
        let places =
            ("pagedraft:spec_decode_num_draft_tokens_per_pos_total", "Drafts verified at a position.");
        self.counters(places, "position", gains.drafted_by_position.iter().enumerate());
    }

    /// How the numbers of drafts are priced, if they are.
    fn prices(&mut self, stats: &Stats) {
        let Some(prices) = &stats.drafting else { return };
        let lengths = ("pagedraft:draft_length_total", "How often a decode row was given so many drafts.");
        self.counters(lengths, "drafts", prices.chosen.iter().enumerate());
        self.counter("pagedraft:draft_probes_total", "Probes made while drafts were off.", prices.probes);
        for (name, help, value) in [
            ("acceptance", "The estimated probability that a draft is accepted.", prices.acceptance),
            (
                "target_scale",
                "The target's forward takes this many times its calibrated time.",
                prices.target_scale,
            ),
            (
                "proposer_scale",
                "The proposer's forward takes this many times its calibrated time.",
                prices.draft_scale,
            ),
            ("overhead_seconds", "The time of a step outside both.", prices.overhead_us * 1e-6),
        ] {
            self.gauge(&format!("pagedraft:draft_price_{name}"), help, value);
        }
    }

    fn steps(&mut self, stats: &Stats) {
        self.counter("pagedraft:steps_total", "Steps that were made.", stats.steps);
        self.counter(
            "pagedraft:steps_replayed_total",
            "Steps that were replayed from a graph.",
            stats.replayed_steps,
        );
        self.counter("pagedraft:steps_failed_total", "Steps that failed.", stats.failed_steps);
        self.histogram("pagedraft:step_seconds", "The wall time of a step.", &stats.step_time);
        let stages = &stats.stages;
        let stages = [
            ("metadata", stages.metadata),
            ("propose", stages.propose),
            ("execute", stages.execute),
            ("sample", stages.sample),
        ];
        let seconds = stages.map(|(stage, microseconds)| (stage, microseconds * 1e-6));
        self.counters(
            ("pagedraft:step_stage_seconds_total", "The time that steps spent in a stage."),
            "stage",
            seconds,
        );
    }

    fn build(&mut self, app: &App) {
        let info = app.engine.info();
        self.head("vllm:cache_config_info", "gauge", "How the KV pool was made.");
        let more = format!(",block_size=\"{}\",num_gpu_blocks=\"{}\"", info.block_size, info.num_blocks);
        self.sample("vllm:cache_config_info", &more, 1);
    }
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
