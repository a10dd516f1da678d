use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{EngineUse, Figures, InterToken, Latencies, Slo, Speculation, Timeline};
use crate::arrivals::Arrivals;
use crate::dataset::SkipReason;
use crate::replay::TokenCount;

/// `summary.json`: the results of a replay. Keys that `vllm bench serve` has too have its names and mean
/// the same, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Summary {
    /// The version of this form: 1.
    pub schema_version: u32,
    /// What the caller knows of the run.
    #[serde(flatten)]
    pub facts: RunFacts,
    /// The number of records in the workload, skipped ones included.
    pub num_prompts: u64,
    /// The rate asked for, in requests per second; `"inf"` if all come at once, `null` if the trace's own
    /// times are used.
    pub request_rate: Option<RequestRate>,
    /// The shape of the gaps between arrivals; `null` if they are not drawn from a gamma distribution.
    pub burstiness: Option<f64>,
    /// The seconds from the run's beginning to the end of its last step.
    pub duration: f64,
    /// The number of requests that gave their whole output.
    pub completed: u64,
    /// The number of requests that were refused, failed or aborted.
    pub failed: u64,
    /// The number of records that were not run, by reason.
    pub skipped: BTreeMap<SkipReason, u64>,
    /// The number of requests among all these that an earlier, stopped part of the run had done. They are
    /// in the counts, the totals, and in `ttft`, `tpot`, `e2el` and `queue`. They are not in anything that
    /// is counted by step: `itl`, blocks, steps, and the tokens of the timeline. Means and peaks over time
    /// (`kv`, the timeline) cover the part since the run was last resumed, from its first step
    /// (`timeline.observed_from_s`) on.
    pub restored: u64,
    /// The number of prompt tokens of completed requests.
    pub total_input_tokens: u64,
    /// The number of tokens that completed requests gave.
    pub total_output_tokens: u64,
    /// Completed requests per second of `duration`.
    pub request_throughput: f64,
    /// Completed requests that met all goals, per second; `null` without `--slo`.
    pub request_goodput: Option<f64>,
    /// Output tokens per second.
    pub output_throughput: f64,
    /// Input and output tokens per second.
    pub total_token_throughput: f64,
    /// The most output tokens in one second. Seconds are counted from the run's beginning.
    pub max_output_tokens_per_s: u64,
    /// The most requests in flight at one moment, from sent to ended. (vLLM counts those that touch the
    /// same second.)
    pub max_concurrent_requests: u64,
    /// The latencies of completed requests. `itl` also has the gaps of requests that failed or were
    /// stopped, as the key `itl` says.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// How drafts did. Without speculation these keys are left out.
    #[serde(flatten)]
    pub speculation: Option<Speculation>,
    /// The rate that was asked for, in requests per second, if there was one.
    pub rate_asked: Option<f64>,
    /// The rate at which requests were sent, in requests per second, by the times at which the engine took
    /// them: one less than the number of requests, divided by the seconds between the first and the last.
    /// Drawn arrivals have as many gaps as there are requests, so with few requests this may differ from
    /// `rate_asked` by about one part in as many. It is `null` with fewer than two requests, or if all were
    /// sent at one moment.
    pub rate_sent: Option<f64>,
    /// How late the engine was given requests, in milliseconds after their intended arrival. A live engine
    /// takes requests between two steps, a simulated one at once. `--max-concurrency` may delay them too.
    pub send_lateness_ms: Figures,
    /// The three ways to count the inter-token latency, in milliseconds. Unlike the other latencies, gaps
    /// are counted as they come, so those of requests that failed or were stopped later are among them, up
    /// to that moment.
    pub itl: InterToken,
    /// The latencies of blocks, of a model that fills masks; left out for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_latency: Option<BlockLatency>,
    /// How many requests met the goals; `null` without `--slo`.
    pub goodput: Option<Goodput>,
    /// The prompt tokens that were found in the prefix cache; `null` if a server ran the requests that does not tell.
    pub prefix_cache: Option<PrefixCache>,
    /// What the engines did. If a server ran the requests these keys are left out, because it does not tell.
    #[serde(flatten)]
    pub engine: Option<EngineUse>,
    /// The number of requests that a server failed, by kind: the HTTP status that it answered with (`"429"`), `connection` (refused,
    /// reset, not reached), `timeout` (silent for longer than `--endpoint-timeout`), `cut_stream` (the stream ended before its
    /// end was told), `malformed` (something that is no event of a completion), `no_stream` (an answer that is no stream),
    /// `server_error` (an error told in the stream). They are among `failed`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, u64>,
    /// How often requests were sent to a server again after a failure. `null` if no server ran them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u64>,
    /// The number of completed requests of a server by how their tokens were counted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counted_by: BTreeMap<TokenCount, u64>,
    /// The scores of completed requests by category. Requests without a category are in `all`; after 256
    /// categories, further ones are in `others`.
    pub score: BTreeMap<String, Score>,
    /// The middle of the run, without its beginning and its end.
    pub steady: Steady,
    /// The run over time.
    pub timeline: Timeline,
    /// Histograms for charts, for each of `ttft, tpot, itl, e2el, queue`: pairs of `[upper bound in ms,
    /// count]` in ascending order, at most 80, with 10 per power of ten (fewer if that would make more than
    /// 80).
    pub histograms: BTreeMap<String, Vec<(f64, u64)>>,
    /// The run seen as a service, in the form of the DSA traces.
    pub serving: Serving,
}

/// What only the caller of a replay knows about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct RunFacts {
    /// When the run began, as `YYYYmmdd-HHMMSS`. Runs in virtual time leave it out, because they are the
    /// same every time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// `pagedraft`, or `openai` if a server ran the requests.
    pub endpoint_type: String,
    /// The same.
    pub backend: String,
    /// The address of that server, with the path that requests were sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The run's name.
    pub label: Option<String>,
    /// The model, as it was named on the command line, or as the server calls it; `null` in a simulation.
    pub model_id: Option<String>,
    /// The tokenizer, which is the model's.
    pub tokenizer_id: Option<String>,
    /// The most requests in flight; `null` without a limit.
    pub max_concurrency: Option<u32>,
    /// The kind of dataset.
    pub workload: Option<String>,
    /// `real`, `sim`, or `endpoint` if a server ran the requests.
    pub executor: Option<String>,
    /// The seed of everything that was drawn.
    pub seed: Option<u64>,
    /// The version and the commit of this program.
    pub revision: Option<String>,
    /// The cost model of a simulation.
    pub cost_model: Option<String>,
    /// The SHA-256 of a simulation's event log.
    pub event_log_sha256: Option<String>,
    /// The number of engines; `null` if a server ran the requests.
    pub replicas: Option<u32>,
    /// How requests were given to the engines.
    pub router: Option<String>,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// What the KV tiers did, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_tiers: Option<serde_json::Value>,
    /// How requests arrived.
    pub arrivals: Option<Arrivals>,
    /// The most requests in a step.
    pub max_num_seqs: Option<u32>,
    /// The limit on output tokens that the run was given.
    pub max_new_tokens: Option<u32>,
    /// The number of tokens of a block, of a model that fills masks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_length: Option<u32>,
}

/// When the blocks of canvases were final, in milliseconds. Tokens are streamed when their block is final, and not before, so these are the
/// first token's latency and the gaps under the names that fit what a client sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BlockLatency {
    /// The time from the intended arrival to the first block of a request.
    pub ttfb: Figures,
    /// The time between two blocks of a request.
    pub ibl: Figures,
}

/// A rate in requests per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum RequestRate {
    /// This many requests per second.
    PerSecond(f64),
    /// `"inf"`: all at once.
    Word(String),
}

/// How many completed requests met their goals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Goodput {
    /// The goals.
    pub slo: Slo,
    /// The number of requests whose first token came in time. A request that ended without a token is not
    /// among them.
    pub met_ttft: Option<u64>,
    /// The number of requests whose tokens after the first came fast enough. A request with one token
    /// always is among them.
    pub met_tpot: Option<u64>,
    /// The number of requests that ended in time. A request that ended without a token is not among them.
    pub met_e2el: Option<u64>,
    /// The number of requests that met all goals given.
    pub met_all: u64,
    /// `met_all` as a share of completed requests, 0 to 1.
    pub share: f64,
    /// `met_all` per second of the run.
    pub request_goodput: f64,
}

/// What the prefix cache saved completed requests when they were first admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PrefixCache {
    /// The number of their prompt tokens. Requests of which a server did not tell are left out.
    pub prompt_tokens: u64,
    /// The number of those tokens that were cached.
    pub cached_tokens: u64,
    /// The share that was cached, 0 to 1.
    pub hit_rate: f64,
    /// The number of whole blocks of cached tokens; `null` if a server ran the requests, whose blocks are not known.
    pub cached_blocks: Option<u64>,
}

/// The scores of a category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Score {
    /// The number of requests.
    pub count: u64,
    /// Their mean score, 0 to 1.
    pub mean: f64,
}

/// The run without its first and last tenth, under the same keys. Latencies, goodput, scores and token
/// totals are those of the requests in the middle eight tenths of the workload. Throughput is what *all*
/// requests gave between two moments: when a tenth of the workload was done, and when nine tenths were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Steady {
    /// The first request in it, counted from 0.
    pub from_request: u64,
    /// The first request after it.
    pub to_request: u64,
    /// The number of its requests that gave their whole output.
    pub completed: u64,
    /// The number of its requests that failed.
    pub failed: u64,
    /// The number of prompt tokens of its completed requests.
    pub total_input_tokens: u64,
    /// The number of output tokens of its completed requests.
    pub total_output_tokens: u64,
    /// The seconds into the run at which a tenth of the workload was done; `null` before that.
    pub from_s: Option<f64>,
    /// The seconds into the run at which nine tenths were done; `null` before that.
    pub to_s: Option<f64>,
    /// Completed requests per second between these two moments; `null` if they are the same.
    pub request_throughput: Option<f64>,
    /// Output tokens per second between them, by the step that gave each.
    pub output_throughput: Option<f64>,
    /// Output tokens, and prompt tokens of the requests completed, per second between them.
    pub total_token_throughput: Option<f64>,
    /// The latencies of its requests.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// The drafts of its requests.
    #[serde(flatten)]
    pub speculation: Option<Speculation>,
    /// The inter-token latencies of its requests, including those that failed or were stopped.
    pub itl: InterToken,
    /// How many of its requests met the goals. `request_goodput` is here their share times
    /// `request_throughput`.
    pub goodput: Option<Goodput>,
    /// What the prefix cache saved its requests.
    pub prefix_cache: Option<PrefixCache>,
    /// The scores of its requests.
    pub score: BTreeMap<String, Score>,
    /// Histograms of its requests, in the form of those of the whole run.
    pub histograms: BTreeMap<String, Vec<(f64, u64)>>,
}

/// The run seen as a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Serving {
    /// The number of completed requests.
    pub requests: u64,
    /// The end-to-end latency.
    pub latency_ms: LatencyMs,
    /// The most requests in a step: the limit, or if that was not told, the most that there were. `null` if a server ran them.
    pub batch_size: Option<u32>,
    /// The limit on output tokens; `null` without one.
    pub max_new_tokens_cap: Option<u32>,
}

/// Some percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LatencyMs {
    /// Half of the values are not above it (interpolated as in [`Figures`]).
    pub p50: Option<f64>,
    /// 95 % of the values are not above it.
    pub p95: Option<f64>,
    /// 99 % of the values are not above it.
    pub p99: Option<f64>,
    /// The greatest value.
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
            self.serving.batch_size = Some(most);
        }
        self.serving.max_new_tokens_cap = facts.max_new_tokens;
        let blocks = BlockLatency { ttfb: self.latencies.ttft, ibl: self.itl.step };
        self.block_latency = facts.block_length.map(|_| blocks);
        self.facts = facts;
        let backend = if self.facts.endpoint.is_some() { "openai" } else { "pagedraft" };
        backend.clone_into(&mut self.facts.backend);
        backend.clone_into(&mut self.facts.endpoint_type);
    }
}
