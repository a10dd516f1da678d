//! What an engine has done so far. The names of the fields are those of vLLM's metrics.

use std::sync::LazyLock;
use std::time::Duration;

use pagedraft_block_manager::PoolStats;
use pagedraft_scheduler::{DraftReport, FinishReason};
use pagedraft_spec_decode::StageTimes;
use pagedraft_spec_decode::metrics::SpeculationMetrics;

use super::histogram::Histogram;
use crate::session::RequestOutput;

/// vLLM's bounds of the time to first token, in seconds.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's bounds of the time between tokens, in seconds.
const BETWEEN_TOKENS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// vLLM's bounds of the parts of a request's time, in seconds.
const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// vLLM's bounds of the tokens of a step.
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const SAMPLES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
/// The bounds of a step's time, in seconds: steps of small models take less than a millisecond.
const STEP_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The series 1, 2, 5, 10, ... up to the greatest length of a sequence. It lives as long as the process, as every histogram's bounds do.
fn token_bounds(max_model_len: u32) -> &'static [f64] {
    static ALL: LazyLock<Vec<f64>> = LazyLock::new(|| {
        let decades = (0..9).map(|power| 10f64.powi(power));
        decades.flat_map(|decade| [decade, 2.0 * decade, 5.0 * decade]).collect()
    });
    let up_to = ALL.partition_point(|&bound| bound <= f64::from(max_model_len));
    &ALL[..up_to]
}

/// When a request passed the stations of its way through the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stations {
    /// From its arrival until a step first ran it.
    pub queued: Duration,
    /// From then until its first token.
    pub prefill: Duration,
    /// From then until its last token.
    pub decode: Duration,
}

/// Counters, gauges and histograms of an engine, brought up to date after each step. Times are in seconds.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Samples that are admitted.
    pub running: usize,
    /// Samples that wait to be admitted, or admitted again.
    pub waiting: usize,
    /// Those of them that wait for another sample of their prompt, and not for room.
    pub deferred: usize,
    /// The KV pool after the last step.
    pub pool: PoolStats,
    /// Steps that were made.
    pub steps: u64,
    /// Steps that were replayed from a graph.
    pub replayed_steps: u64,
    /// Steps that failed, each with the requests that it computed.
    pub failed_steps: u64,
    /// How often a sample's blocks were taken back.
    pub preemptions: u64,
    /// Prompt tokens of samples whose first token is there.
    pub prompt_tokens: u64,
    /// Those of them that were found in the prefix cache.
    pub prompt_tokens_cached: u64,
    /// Tokens that were generated.
    pub generation_tokens: u64,
    /// Samples that ended: at a stop, at their length, aborted, and failed.
    pub ended: [u64; 4],
    /// Requests that were refused because too many waited.
    pub refused: u64,
    /// Samples that were aborted because nobody read what they generated.
    pub too_slow: u64,
    /// What speculation gained.
    pub speculation: SpeculationMetrics,
    /// How drafts are priced, if their numbers are chosen by price.
    pub drafting: Option<DraftReport>,
    /// Microseconds of the stages of all steps.
    pub stages: StageTimes,
    /// From a request's arrival to its first token.
    pub time_to_first_token: Histogram,
    /// Between the tokens of a sample. Tokens of one step came at once: the first counts the time, the others 0.
    pub inter_token_latency: Histogram,
    /// Of a sample that ended, the mean time of its tokens behind the first.
    pub time_per_output_token: Histogram,
    /// From a request's arrival to the last token of a sample.
    pub e2e_request_latency: Histogram,
    /// From a request's arrival until a step first ran a sample.
    pub request_queue_time: Histogram,
    /// From then to the last token.
    pub request_inference_time: Histogram,
    /// From the step that first ran a sample to its first token.
    pub request_prefill_time: Histogram,
    /// From the first token to the last.
    pub request_decode_time: Histogram,
    /// The prompt tokens of a sample that ended.
    pub request_prompt_tokens: Histogram,
    /// The tokens that it generated.
    pub request_generation_tokens: Histogram,
    /// The prompt tokens that were computed for it, and not found in the prefix cache.
    pub request_prefill_kv_computed_tokens: Histogram,
    /// The tokens of a step: those of prompts and those that it emitted.
    pub iteration_tokens: Histogram,
    /// The samples that a request asks for.
    pub request_params_n: Histogram,
    /// The tokens that a request asks for at most.
    pub request_params_max_tokens: Histogram,
    /// How often the blocks of a sample that ended were taken back.
    pub request_num_preemptions: Histogram,
    /// The wall time of a step.
    pub step_time: Histogram,
}

impl Stats {
    /// Nothing was done yet, by an engine whose sequences have so many tokens at most.
    pub(super) fn new(max_model_len: u32) -> Self {
        let tokens = || Histogram::new(token_bounds(max_model_len));
        let latency = || Histogram::new(LATENCY);
        Self {
            running: 0,
            waiting: 0,
            deferred: 0,
            pool: PoolStats::default(),
            steps: 0,
            replayed_steps: 0,
            failed_steps: 0,
            preemptions: 0,
            prompt_tokens: 0,
            prompt_tokens_cached: 0,
            generation_tokens: 0,
            ended: [0; 4],
            refused: 0,
            too_slow: 0,
            speculation: SpeculationMetrics::default(),
            drafting: None,
            stages: StageTimes::default(),
            time_to_first_token: Histogram::new(FIRST_TOKEN),
            inter_token_latency: Histogram::new(BETWEEN_TOKENS),
            time_per_output_token: Histogram::new(BETWEEN_TOKENS),
            e2e_request_latency: latency(),
            request_queue_time: latency(),
            request_inference_time: latency(),
            request_prefill_time: latency(),
            request_decode_time: latency(),
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            request_prefill_kv_computed_tokens: tokens(),
            iteration_tokens: Histogram::new(STEP_TOKENS),
            request_params_n: Histogram::new(SAMPLES),
            request_params_max_tokens: tokens(),
            request_num_preemptions: Histogram::new(PREEMPTIONS),
            step_time: Histogram::new(STEP_SECONDS),
        }
    }

    /// How many samples ended for a reason.
    #[must_use]
    pub fn ended_by(&self, reason: FinishReason) -> u64 {
        self.ended[reason_index(reason)]
    }

    /// Counts a sample that came to its end.
    pub(super) fn end(&mut self, output: &RequestOutput, stations: Option<Stations>) {
        if let Some(reason) = output.finish_reason {
            self.ended[reason_index(reason)] += 1;
        }
        let (prompt, generated) = (output.prompt_token_ids.len(), output.token_ids.len());
        self.request_prompt_tokens.record(prompt as f64);
        self.request_generation_tokens.record(generated as f64);
        self.request_num_preemptions.record(f64::from(output.num_preemptions));
        let computed = (prompt as u32).saturating_sub(output.num_cached_tokens);
        self.request_prefill_kv_computed_tokens.record(f64::from(computed));
        let Some(Stations { queued, prefill, decode }) = stations else { return };
        self.e2e_request_latency.record((queued + prefill + decode).as_secs_f64());
        self.request_queue_time.record(queued.as_secs_f64());
        self.request_inference_time.record((prefill + decode).as_secs_f64());
        self.request_prefill_time.record(prefill.as_secs_f64());
        self.request_decode_time.record(decode.as_secs_f64());
        if generated > 1 {
            self.time_per_output_token.record(decode.as_secs_f64() / (generated - 1) as f64);
        }
    }
}

fn reason_index(reason: FinishReason) -> usize {
    match reason {
        FinishReason::Stop => 0,
        FinishReason::Length => 1,
        FinishReason::Abort => 2,
        FinishReason::Failed => 3,
    }
}
