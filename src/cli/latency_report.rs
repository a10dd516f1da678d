//! Prints and writes the results of `bench latency`.

use std::fmt::Write;

use pagedraft::session::{Session, SessionInfo};
use pagedraft_workloads::latency::{PERCENTILES, Spread};
use serde_json::{Value, json};

use super::batch_header::{BatchShape, header};
use super::deterministic_cost::DeterministicCost;
use super::latency_flags::Latency;
use super::machine;
use super::step_figures::StepFigures;

/// One timed batch.
#[derive(Clone, Debug, Default)]
pub struct Iteration {
    /// The seconds from submission to the last token.
    pub latency: f64,
    /// The seconds of steps with prompt tokens.
    pub prefill_seconds: f64,
    /// The seconds of each step without prompt tokens.
    pub decode_steps: Vec<f64>,
    /// Of canvases: the seconds from submission to each request's first block, and those between its blocks.
    pub blocks: (Vec<f64>, Vec<f64>),
}

/// The batches timed so far, and what they were timed on.
pub struct Report<'a> {
    flags: &'a Latency,
    info: SessionInfo,
    iterations: Vec<Iteration>,
    steps: StepFigures,
    cost: Option<DeterministicCost>,
}

impl<'a> Report<'a> {
    pub fn new(flags: &'a Latency, info: &SessionInfo) -> Self {
        let speculation = &flags.engine.speculation;
        let steps = StepFigures::new(speculation.num_speculative_tokens, speculation.draft.clone());
        Self { flags, info: info.clone(), iterations: Vec::new(), steps, cost: None }
    }

    /// Adds a timed batch, and what the session counted in it.
    pub fn add(&mut self, iteration: Iteration, session: &mut Session) {
        self.iterations.push(iteration);
        self.steps.take(session);
    }

    /// Adds the cost of determinism, if it was measured.
    pub fn set_cost(&mut self, cost: Option<DeterministicCost>) {
        self.cost = cost;
    }

    pub fn len(&self) -> usize {
        self.iterations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.iterations.is_empty()
    }

    /// The text that says what is about to be measured.
    pub fn header(&self) -> String {
        let flags = self.flags;
        let shape = BatchShape {
            batch_size: flags.batch_size,
            input_len: flags.input_len,
            output_len: flags.output_len,
            num_iters_warmup: flags.num_iters_warmup,
            num_iters: flags.num_iters,
            seed: flags.engine.seed,
        };
        header(&self.info, shape)
    }

    /// How the steps went, if there is a proposer.
    fn speculating(&self) -> Option<&StepFigures> {
        Some(&self.steps).filter(|steps| steps.is_speculating())
    }

    fn spread(&self, of: impl Fn(&Iteration) -> f64) -> Option<Spread> {
        Spread::of(&self.iterations.iter().map(of).collect::<Vec<_>>())
    }

    fn decode_steps(&self) -> Option<Spread> {
        Spread::of(&self.iterations.iter().flat_map(|i| i.decode_steps.iter().copied()).collect::<Vec<_>>())
    }

    /// The times to first blocks, and those between blocks, of canvases.
    fn blocks(&self) -> (Option<Spread>, Option<Spread>) {
        let all = |of: fn(&Iteration) -> &Vec<f64>| {
            Spread::of(&self.iterations.iter().flat_map(of).copied().collect::<Vec<_>>())
        };
        (all(|i| &i.blocks.0), all(|i| &i.blocks.1))
    }

    fn tokens(&self) -> f64 {
        f64::from(self.flags.batch_size) * f64::from(self.flags.output_len)
    }

    /// The figures for people, then the lines that `vllm bench latency` prints.
    pub fn table(&self) -> String {
        let (Some(latency), Some(prefill)) = (self.spread(|i| i.latency), self.spread(|i| i.prefill_seconds))
        else {
            return "\nstopped before the first timed batch was done\n".to_owned();
        };
        let mut text = String::new();
        if self.len() < self.flags.num_iters as usize {
            let _ = writeln!(
                text,
                "\npartial: stopped after {} of {} timed batches",
                self.len(),
                self.flags.num_iters
            );
        }
        let _ = writeln!(
            text,
            "\n{:<26}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "", "median", "mean", "min", "max", "p99"
        );
        let mut row = |name: &str, s: &Spread, scale: f64, digits: usize| {
            let _ = write!(text, "{name:<26}");
            for value in [s.median(), s.mean(), s.min(), s.max(), s.percentile(99.0)] {
                let _ = write!(text, "{:>10.digits$}", value * scale);
            }
            text.push('\n');
        };
        row("batch latency (s)", &latency, 1.0, 4);
        row("prefill (s)", &prefill, 1.0, 4);
        if let Some(steps) = self.decode_steps() {
            row("decode step (ms)", &steps, 1e3, 3);
        }
        let (first, between) = self.blocks();
        for (name, spread) in [("first block (ms)", first), ("between blocks (ms)", between)] {
            if let Some(spread) = spread {
                row(name, &spread, 1e3, 3);
            }
        }
        if let Some(rate) = self.spread(|i| self.tokens() / i.latency) {
            row("output tokens/s", &rate, 1.0, 1);
            row("output tokens/s a request", &rate, 1.0 / f64::from(self.flags.batch_size), 1);
        }
        let _ = writeln!(
            text,
            "spread of the latency: {:.1} % of its median over {} batches\n",
            latency.relative_range() * 100.0,
            latency.count()
        );
        let _ = writeln!(text, "Avg latency: {} seconds", latency.mean());
        for p in PERCENTILES {
            let _ = writeln!(text, "{p}% percentile latency: {} seconds", latency.percentile(f64::from(p)));
        }
        if let Some(steps) = self.speculating() {
            text.push_str(&steps.text());
        }
        text.push_str(&self.cost.as_ref().map(DeterministicCost::text).unwrap_or_default());
        text
    }

    /// The figures for programs.
    pub fn json(&self) -> Value {
        let (flags, info) = (self.flags, &self.info);
        let latency = self.spread(|i| i.latency);
        let percentiles: serde_json::Map<String, Value> = latency
            .iter()
            .flat_map(|s| PERCENTILES.map(|p| (p.to_string(), s.percentile(f64::from(p)).into())))
            .collect();
        let seconds = |s: Spread| json!({"p50": s.median(), "p99": s.percentile(99.0), "mean": s.mean()});
        let (first_block, between_blocks) = self.blocks();
        json!({
            "model_id": info.model_id,
            "avg_latency": latency.as_ref().map(Spread::mean),
            "latencies": self.iterations.iter().map(|i| i.latency).collect::<Vec<_>>(),
            "percentiles": percentiles,
            "output_tokens_per_second": latency.as_ref().map(|s| self.tokens() / s.mean()),
            "prefill_seconds": self.spread(|i| i.prefill_seconds).map(|s| s.median()),
            "decode_step_seconds": self.decode_steps().map(seconds),
            "first_block_seconds": first_block.map(seconds),
            "inter_block_seconds": between_blocks.map(seconds),
            "seed": flags.engine.seed,
            "threads": info.threads,
            "instruction_set": info.isa.to_string(),
            "deterministic": info.deterministic,
            "deterministic_cost": self.cost.as_ref().map(DeterministicCost::json),
            "revision": pagedraft::REVISION,
            "dtype": info.dtype.to_string(),
            "quantization": info.quantization.to_string(),
            "parameters": info.parameters,
            "dummy_weights": info.dummy_weights,
            "input_len": flags.input_len,
            "output_len": flags.output_len,
            "batch_size": flags.batch_size,
            "num_iters_warmup": flags.num_iters_warmup,
            "num_iters": flags.num_iters,
            "partial": self.len() < flags.num_iters as usize,
            "block_size": info.block_size,
            "num_blocks": info.num_blocks,
            "machine": machine::name(),
            "draft": flags.engine.speculation.draft.as_ref().map(ToString::to_string),
            "speculation": self.speculating().and_then(StepFigures::speculation),
            "graph": self.steps.graph(info),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}
