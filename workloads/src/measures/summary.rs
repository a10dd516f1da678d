use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Figures, HotBlock, InterToken, Latencies, Slo, Speculation, Tally, Timeline};
use crate::arrivals::Arrivals;
use crate::dataset::SkipReason;

/// `summary.json`: what a replay came to. Keys that `vllm bench serve` has are under its names and mean the same, unless said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Summary {
    /// Of this form: 1.
    pub schema_version: u32,
    /// What the run was, as its caller told it.
    #[serde(flatten)]
    pub facts: RunFacts,
    /// Records of the workload, skipped ones included.
    pub num_prompts: u64,
    /// Requests a second that were asked for; `"inf"` for all at once, `null` for a trace's own times.
    pub request_rate: Option<RequestRate>,
    /// Shape of the gaps between arrivals; `null` where they are not drawn from a gamma distribution.
    pub burstiness: Option<f64>,
    /// Seconds from the run's beginning to the end of its last step.
    pub duration: f64,
    /// Requests that gave their whole output.
    pub completed: u64,
    /// Requests that were refused, failed or aborted.
    pub failed: u64,
    /// Records that were not run, by reason.
    pub skipped: BTreeMap<SkipReason, u64>,
    /// Of all these, those that an earlier, stopped part of the run had done. They are in counts, totals and in `ttft`, `tpot`,
    /// `e2el` and `queue`; but not in anything that is counted by step: `itl`, blocks, steps, tokens of the timeline. What is a mean
    /// or a peak over time (`kv`, the timeline) is that of the part since the run was last resumed: from its first step
    /// (`timeline.observed_from_s`) on.
    pub restored: u64,
    /// Prompt tokens of completed requests.
    pub total_input_tokens: u64,
    /// Tokens that completed requests gave.
    pub total_output_tokens: u64,
    /// Completed requests a second of `duration`.
    pub request_throughput: f64,
    /// Completed requests that met all goals, a second; `null` without `--slo`.
    pub request_goodput: Option<f64>,
    /// Output tokens a second.
    pub output_throughput: f64,
    /// Input and output tokens a second.
    pub total_token_throughput: f64,
    /// Most output tokens in a second, seconds counted from the run's beginning.
    pub max_output_tokens_per_s: u64,
    /// Most requests in flight at one moment, from sent to ended. (vLLM counts those that touch the same second.)
    pub max_concurrent_requests: u64,
    /// Latencies of completed requests; `itl` also has the gaps of requests that failed or were stopped, as the key `itl` says.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// Drafts; without speculation these keys are left out.
    #[serde(flatten)]
    pub speculation: Option<Speculation>,
    /// Requests a second that were asked for, where they were.
    pub rate_asked: Option<f64>,
    /// Requests a second that were sent, by when the engine took them: one less than were sent, by the seconds between the first and the last. Drawn arrivals
    /// have as many gaps before them as there are requests, so that of few requests it may differ from `rate_asked` by about one
    /// part in as many. With fewer than two, or all at one moment, `null`.
    pub rate_sent: Option<f64>,
    /// How late the engine was given requests, in milliseconds behind their intended arrival: a live one takes them between two steps, a
    /// simulated one at once; or because of `--max-concurrency`.
    pub send_lateness_ms: Figures,
    /// The three readings of inter-token latency, in milliseconds. Unlike the other latencies, gaps are counted as they come: those of
    /// requests that failed or were stopped later are among them, up to that moment.
    pub itl: InterToken,
    /// Who met the goals; `null` without `--slo`.
    pub goodput: Option<Goodput>,
    /// Prompt tokens that were there already.
    pub prefix_cache: PrefixCache,
    /// The KV pool.
    pub kv: KvUse,
    /// How often a request's blocks were taken back.
    pub preemptions: u64,
    /// Steps of all engines.
    pub steps: u64,
    /// Of these, such as replayed a graph.
    pub graph_replays: u64,
    /// Prompt tokens computed, those computed again after a preemption too.
    pub prefill_tokens: u64,
    /// Rows that decoded, drafts or none.
    pub decode_rows: u64,
    /// Scores of completed requests by category (`all` for such as have none; after 256 categories, `others`).
    pub score: BTreeMap<String, Score>,
    /// The middle of the run, without its ramp up and its tail.
    pub steady: Steady,
    /// The run over time.
    pub timeline: Timeline,
    /// For pictures, by `ttft, tpot, itl, e2el, queue`: `[upper bound in ms, count]` in ascending order, at most 80 buckets,
    /// 10 to a power of ten (fewer where that would be more than 80).
    pub histograms: BTreeMap<String, Vec<(f64, u64)>>,
    /// The run as a service, in the form of the DSA traces.
    pub serving: Serving,
    /// Blocks that a decode row read: dense attention reads all of its context, drafts included. Of all
    /// rows that gave tokens behind a request's first.
    pub unique_blocks: Tally,
    /// Tokens that were read of each block that a decode row read: all are full but the last.
    pub tokens_per_touched_block: Tally,
    /// The share of a decode row's blocks that are its cached prefix, 0 to 1, counted in parts of 1/4096.
    pub prefix_intersection_ratio: Tally,
    /// Cached blocks by the decode steps of requests that held them, at most 16, most first. Dense attention reads the same blocks
    /// in every layer: the one key `"0"` stands for all.
    pub prefix_hot_blocks: BTreeMap<String, Vec<HotBlock>>,
}

/// What only the caller of a replay knows of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct RunFacts {
    /// When it began: `YYYYmmdd-HHMMSS`. Left out by runs in virtual time, which are the same every time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// `pagedraft`.
    pub endpoint_type: String,
    /// `pagedraft`.
    pub backend: String,
    /// The run's name.
    pub label: Option<String>,
    /// The model, as it was named; `null` in a simulation.
    pub model_id: Option<String>,
    /// The tokenizer: the model's.
    pub tokenizer_id: Option<String>,
    /// Requests in flight at most; `null` without a limit.
    pub max_concurrency: Option<u32>,
    /// The kind of dataset.
    pub workload: Option<String>,
    /// `real` or `sim`.
    pub executor: Option<String>,
    /// What was drawn was drawn from this.
    pub seed: Option<u64>,
    /// Version and commit of this program.
    pub revision: Option<String>,
    /// The cost model of a simulation.
    pub cost_model: Option<String>,
    /// SHA-256 of a simulation's event log.
    pub event_log_sha256: Option<String>,
    /// Engines.
    pub replicas: Option<u32>,
    /// Who gave requests to them.
    pub router: Option<String>,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// How requests arrived.
    pub arrivals: Option<Arrivals>,
    /// Requests a step at most.
    pub max_num_seqs: Option<u32>,
    /// The cap on output tokens that the run was given.
    pub max_new_tokens: Option<u32>,
}

/// Requests a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum RequestRate {
    /// So many.
    PerSecond(f64),
    /// `"inf"`: all at once.
    Word(String),
}

/// Completed requests that met their goals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Goodput {
    /// The goals.
    pub slo: Slo,
    /// Requests whose first token came in time; one that ended without a token did not.
    pub met_ttft: Option<u64>,
    /// Requests whose tokens behind the first came fast enough; with one token, any is.
    pub met_tpot: Option<u64>,
    /// Requests that ended in time; one that ended without a token did not.
    pub met_e2el: Option<u64>,
    /// Requests that met all goals that there are.
    pub met_all: u64,
    /// These, as a share of completed requests, 0 to 1.
    pub share: f64,
    /// These, a second of the run.
    pub request_goodput: f64,
}

/// What the prefix cache saved completed requests, at their first admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PrefixCache {
    /// Their prompt tokens.
    pub prompt_tokens: u64,
    /// Of these, such as were cached.
    pub cached_tokens: u64,
    /// The share of these, 0 to 1.
    pub hit_rate: f64,
    /// Whole blocks of cached tokens.
    pub cached_blocks: u64,
}

/// How full the KV pool was. Counted as each step runs, when its blocks are taken and what ends with it is not yet given back;
/// between steps, as the last one left it. Time before a resumed run's first step is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct KvUse {
    /// Blocks of all engines. Where several KV groups share a pool, the smallest block of a group is counted here and below.
    pub num_blocks: u64,
    /// Most blocks in use at once, of all engines together: those of a step, and those of the others in their last step where
    /// that overlapped it, or after it.
    pub peak_used: u64,
    /// The greatest share of one engine's blocks, 0 to 1.
    pub peak_share: f64,
    /// Bytes of the pool of one engine; told where several KV groups share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Most bytes of it in use in one engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes_used: Option<u64>,
    /// Blocks in use over blocks, mean over the run's time (of a resumed run, that since its first step).
    pub mean_share: f64,
}

/// Scores of a category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Score {
    /// Requests.
    pub count: u64,
    /// Their mean score, 0 to 1.
    pub mean: f64,
}

/// The run without its first and last tenth, under the same keys. Latencies, goodput, scores and token totals are those of the
/// requests at the middle eight tenths of the workload's places. Throughput is what *all* requests gave between two moments: when a
/// tenth of the workload was done with, and when nine tenths were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Steady {
    /// The first place in it, from 0.
    pub from_request: u64,
    /// The first place behind it.
    pub to_request: u64,
    /// Requests in it that gave their whole output.
    pub completed: u64,
    /// Requests in it that failed.
    pub failed: u64,
    /// Prompt tokens of its completed requests.
    pub total_input_tokens: u64,
    /// Output tokens of its completed requests.
    pub total_output_tokens: u64,
    /// Seconds into the run when a tenth of the workload was done with; `null` before that.
    pub from_s: Option<f64>,
    /// Seconds into the run when nine tenths were.
    pub to_s: Option<f64>,
    /// Completed requests a second between these moments; `null` where they are one.
    pub request_throughput: Option<f64>,
    /// Output tokens a second between them, by the step that gave them.
    pub output_throughput: Option<f64>,
    /// Output tokens, and prompt tokens of the requests completed, a second between them.
    pub total_token_throughput: Option<f64>,
    /// Its requests' latencies.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// Its requests' drafts.
    #[serde(flatten)]
    pub speculation: Option<Speculation>,
    /// Its requests' inter-token latencies, of those that failed or were stopped too.
    pub itl: InterToken,
    /// Which of its requests met the goals; here `request_goodput` is their share of `request_throughput`.
    pub goodput: Option<Goodput>,
    /// What the prefix cache saved its requests.
    pub prefix_cache: PrefixCache,
    /// Its requests' scores.
    pub score: BTreeMap<String, Score>,
    /// As in the whole.
    pub histograms: BTreeMap<String, Vec<(f64, u64)>>,
}

/// The run as a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Serving {
    /// Completed requests.
    pub requests: u64,
    /// End to end.
    pub latency_ms: LatencyMs,
    /// Requests a step at most: what was allowed, or where that was not told, what there was.
    pub batch_size: u32,
    /// The cap on output tokens; `null` without one.
    pub max_new_tokens_cap: Option<u32>,
}

/// Some percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LatencyMs {
    /// Half of the values are not above it (interpolated as [`Figures`] are).
    pub p50: Option<f64>,
    /// 95 % are not above it.
    pub p95: Option<f64>,
    /// 99 % are not above it.
    pub p99: Option<f64>,
    /// The greatest.
    pub max: Option<f64>,
}

impl Summary {
    /// Sets what only the caller knows, and the keys that follow from it.
    pub fn describe(&mut self, facts: RunFacts) {
        self.burstiness = None;
        self.request_rate = self.rate_asked.map(RequestRate::PerSecond);
        match facts.arrivals {
            Some(Arrivals::AtOnce) => self.request_rate = Some(RequestRate::Word("inf".to_owned())),
            Some(Arrivals::Gamma { burstiness, .. }) => self.burstiness = Some(burstiness),
            Some(Arrivals::Ramp { .. }) => self.burstiness = Some(1.0),
            Some(Arrivals::Recorded { .. } | Arrivals::Constant { .. }) | None => {}
        }
        if let Some(most) = facts.max_num_seqs {
            self.serving.batch_size = most;
        }
        self.serving.max_new_tokens_cap = facts.max_new_tokens;
        self.facts = facts;
        "pagedraft".clone_into(&mut self.facts.backend);
        "pagedraft".clone_into(&mut self.facts.endpoint_type);
    }
}
