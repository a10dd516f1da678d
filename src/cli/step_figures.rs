//! Shows how the steps of a run went: replays and fallbacks, drafts and acceptance.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use pagedraft::session::{DraftLength, DraftRef, Session, SessionInfo};
use pagedraft_model::{DeviceTimes, RunCounts};
use pagedraft_spec_decode::metrics::SpeculationMetrics;
use serde_json::{Value, json};

/// Counts of how steps ran, summed over runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    pub replays: u64,
    pub eager: u64,
    /// How many eager steps looked for a graph in vain, by reason.
    pub fallbacks: BTreeMap<String, u64>,
    /// The time that the device spent on operations. On a GPU it is measured by events; in eager steps it
    /// includes the gaps between launches.
    pub device: Duration,
    /// The time of each stage by the device's own events; `None` if it has none.
    pub stages: Option<DeviceTimes>,
}

impl StepCounts {
    pub fn add(&mut self, other: &Self) {
        self.replays += other.replays;
        self.eager += other.eager;
        self.device += other.device;
        if let Some(stages) = &other.stages {
            self.stages.get_or_insert_default().merge(stages);
        }
        for (why, count) in &other.fallbacks {
            *self.fallbacks.entry(why.clone()).or_default() += count;
        }
    }

    fn text(&self) -> String {
        let why: Vec<_> = self.fallbacks.iter().map(|(why, n)| format!("{why} {n}")).collect();
        let why = if why.is_empty() { String::new() } else { format!(", no graph for: {}", why.join(", ")) };
        format!("{} steps replayed, {} eager{why}", self.replays, self.eager)
    }

    fn json(&self) -> Value {
        json!({
            "replays": self.replays,
            "eager": self.eager,
            "fallbacks": self.fallbacks,
            "device_seconds": self.device.as_secs_f64(),
        })
    }
}

impl From<&RunCounts> for StepCounts {
    fn from(counts: &RunCounts) -> Self {
        let fallbacks = counts.fallbacks.iter().map(|(why, &count)| (why.to_string(), count)).collect();
        let (device, stages) = (counts.in_kernels, counts.device);
        Self { replays: counts.replays, eager: counts.eager, fallbacks, device, stages }
    }
}

/// What capturing graphs took, for programs.
pub fn capture(info: &SessionInfo) -> Value {
    info.capture.as_ref().map_or(Value::Null, |capture| {
        json!({
            "graphs": capture.graphs,
            "elapsed_seconds": capture.elapsed.as_secs_f64(),
            "bytes": capture.bytes,
            "token_rows": info.graph_sizes,
        })
    })
}

/// A number of a table; `-` if there is none.
pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Why a run had no drafts, as far as its options tell.
pub fn no_drafts(length: DraftLength, draft: Option<&DraftRef>) -> &'static str {
    match (length, draft) {
        (DraftLength::Fixed(0), _) => "no drafts: none were asked for",
        // A look-up may find nothing. Every other proposer always has an answer.
        (DraftLength::Auto, Some(DraftRef::Ngram | DraftRef::Suffix { .. })) => {
            "no drafts: none were found, or they did not pay"
        }
        (DraftLength::Auto, _) => "no drafts: they did not pay",
        (DraftLength::Fixed(_), _) => "no drafts were found",
    }
}

/// The timed steps of a session, summed.
#[derive(Clone, Debug)]
pub struct StepFigures {
    metrics: SpeculationMetrics,
    target: StepCounts,
    /// The draft model's own steps, if there is one.
    draft: Option<StepCounts>,
    length: DraftLength,
    proposer: Option<DraftRef>,
}

impl StepFigures {
    /// No steps yet. Drafts have this length and come from this proposer.
    pub fn new(length: DraftLength, proposer: Option<DraftRef>) -> Self {
        let (metrics, target) = (SpeculationMetrics::default(), StepCounts::default());
        Self { metrics, target, draft: None, length, proposer }
    }

    /// Adds the steps since the session's metrics were last taken.
    pub fn take(&mut self, session: &mut Session) {
        let (target, draft) = session.run_counts();
        self.target.add(&target.into());
        if let Some(draft) = draft {
            self.draft.get_or_insert_default().add(&draft.into());
        }
        self.metrics.merge(&session.take_metrics());
    }

    /// Whether there is a proposer.
    pub fn is_speculating(&self) -> bool {
        self.proposer.is_some()
    }

    /// The figures for people. vLLM's two lines come last, if there were drafts.
    pub fn text(&self) -> String {
        let metrics = &self.metrics;
        let by_position: Vec<_> = metrics.rate_by_position().iter().map(|&rate| number(rate, 3)).collect();
        let mut text = String::from("\n");
        for (name, value) in [
            ("drafts", format!("{} in {} verify rows", metrics.num_draft_tokens, metrics.num_verify_rows)),
            ("accepted / drafted", number(metrics.draft_acceptance_rate(), 3)),
            ("right alone / drafted", number(metrics.draft_acceptance_rate_noncausal(), 3)),
            (
                "  accepted by position",
                if by_position.is_empty() { "-".to_owned() } else { by_position.join(" ") },
            ),
            ("system efficiency", number(metrics.system_efficiency(), 3)),
            ("tokens a verify row", number(metrics.mean_acceptance_length(), 2)),
            ("proposing a token (ms)", number(metrics.average_time_per_proposal_tok_ms(), 3)),
            ("scoring (ms)", number(metrics.scoring_time_ms(), 3)),
            ("verification (ms)", number(metrics.verification_time_ms(), 3)),
            ("target", self.target.text()),
        ] {
            let _ = writeln!(text, "{name:<26}{value}");
        }
        if let Some(draft) = &self.draft {
            let _ = writeln!(text, "{:<26}{}", "draft model", draft.text());
        }
        if metrics.num_draft_tokens == 0 {
            let _ = writeln!(text, "{}", no_drafts(self.length, self.proposer.as_ref()));
            return text;
        }
        for line in metrics.log_lines(usize::from(self.length.most())) {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// The figures of speculation for programs.
    pub fn speculation(&self) -> Option<Value> {
        let mut json = serde_json::to_value(self.metrics.summary()).ok()?;
        let fields = json.as_object_mut()?;
        fields.insert("num_speculative_tokens".to_owned(), self.length.to_string().into());
        fields.insert("num_verify_rows".to_owned(), self.metrics.num_verify_rows.into());
        fields.insert("num_verify_steps".to_owned(), self.metrics.num_steps.into());
        Some(json)
    }

    /// How the steps of the target and of the draft model ran, and what capturing graphs took.
    pub fn graph(&self, info: &SessionInfo) -> Value {
        let mut json = self.target.json();
        if let Some(fields) = json.as_object_mut() {
            fields.insert("draft".to_owned(), self.draft.as_ref().map_or(Value::Null, StepCounts::json));
            fields.insert("capture".to_owned(), capture(info));
        }
        json
    }
}
