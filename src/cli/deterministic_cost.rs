//! `--deterministic-cost`: runs the batches of a benchmark in both ways in which a GPU can compute, with
//! one engine and one copy of the weights.

use std::time::Duration;

use anyhow::anyhow;
use pagedraft::exit::usage_hint;
use pagedraft::session::{EngineOptions, InstructionSet, Session, SessionInfo, SetupId};
use pagedraft_workloads::latency::Spread;
use serde_json::{Value, json};

use super::step_figures::StepCounts;

/// How a GPU computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A row's bits are a function of the row alone.
    Deterministic,
    /// The GPU's libraries choose by the batch how they compute.
    Free,
}

/// The batches of one way.
#[derive(Clone, Debug)]
struct Batches {
    /// A setup of its own, so that the control that prices drafts does not learn from the other way's
    /// steps.
    setup: SetupId,
    /// The seconds of each timed batch.
    latencies: Vec<f64>,
    /// The seconds of each timed batch in which the device worked.
    device: Vec<f64>,
}

/// Batches that are timed in both ways, side by side.
#[derive(Clone, Debug)]
pub struct DeterministicCost {
    deterministic: Batches,
    free: Batches,
}

impl DeterministicCost {
    /// Prepares a session that was opened with these options. The first batch in the free way captures its
    /// graphs.
    ///
    /// # Errors
    ///
    /// The session runs on the CPU.
    pub fn prepare(session: &mut Session, options: &EngineOptions) -> anyhow::Result<Self> {
        refuse_cpu(session.info())?;
        let mut batches = || {
            let setup = session.prepare(&options.speculation, options.enforce_eager)?;
            anyhow::Ok(Batches { setup, latencies: Vec::new(), device: Vec::new() })
        };
        Ok(Self { deterministic: batches()?, free: batches()? })
    }

    /// The ways in the order in which iteration `i` runs them, so that neither is always first.
    pub fn order(i: u32) -> [Way; 2] {
        if i.is_multiple_of(2) { [Way::Deterministic, Way::Free] } else { [Way::Free, Way::Deterministic] }
    }

    /// Makes the session compute in this way.
    ///
    /// # Errors
    ///
    /// cuBLASLt is not there, or the device has a fault.
    pub fn enter(&self, session: &mut Session, way: Way) -> anyhow::Result<()> {
        session.set_deterministic(way == Way::Deterministic)?;
        Ok(session.switch(self.of(way).setup)?)
    }

    /// Adds a timed batch. It must be called before the session's metrics are taken.
    pub fn add(&mut self, session: &mut Session, way: Way, latency: f64) {
        let (target, draft) = session.run_counts();
        let counts = [Some(StepCounts::from(target)), draft.map(StepCounts::from)];
        let device: Duration = counts.iter().flatten().flat_map(|c| c.stages).map(|s| s.total()).sum();
        let batches = match way {
            Way::Deterministic => &mut self.deterministic,
            Way::Free => &mut self.free,
        };
        batches.latencies.push(latency);
        batches.device.push(device.as_secs_f64());
    }

    fn of(&self, way: Way) -> &Batches {
        match way {
            Way::Deterministic => &self.deterministic,
            Way::Free => &self.free,
        }
    }

    /// The figures; `None` before each way was timed once.
    fn figures(&self) -> Option<Figures> {
        let (own, free) = (&self.deterministic, &self.free);
        let ratios: Vec<f64> =
            own.latencies.iter().zip(&free.latencies).map(|(own, free)| own / free).collect();
        Some(Figures {
            deterministic: Spread::of(&own.latencies)?,
            free: Spread::of(&free.latencies)?,
            paired: Spread::of(&ratios)?.median(),
            deterministic_device: Spread::of(&own.device)?.median(),
            free_device: Spread::of(&free.device)?.median(),
        })
    }

    /// The figures in a line for people.
    pub fn text(&self) -> String {
        let Some(f) = self.figures() else { return String::new() };
        let way = |spread: &Spread, device: f64| {
            format!(
                "{:.3} ms (spread {:.1} %, GPU busy {:.3} ms)",
                spread.median() * 1e3,
                spread.relative_range() * 100.0,
                device * 1e3
            )
        };
        format!(
            "\ndeterminism costs {:+.1} %: a batch takes {} with it and {} without, {:.3} times; medians of {} and {} interleaved \
             batches\n",
            (f.ratio() - 1.0) * 100.0,
            way(&f.deterministic, f.deterministic_device),
            way(&f.free, f.free_device),
            f.ratio(),
            f.deterministic.count(),
            f.free.count(),
        )
    }

    /// The figures for programs.
    pub fn json(&self) -> Value {
        let Some(f) = self.figures() else { return Value::Null };
        json!({
            "deterministic_median_ms": f.deterministic.median() * 1e3,
            "free_median_ms": f.free.median() * 1e3,
            "ratio": f.ratio(),
            "paired_median_ratio": f.paired,
            "deterministic_spread": f.deterministic.relative_range(),
            "free_spread": f.free.relative_range(),
            "deterministic_device_ms": f.deterministic_device * 1e3,
            "free_device_ms": f.free_device * 1e3,
            "deterministic_batches": f.deterministic.count(),
            "free_batches": f.free.count(),
        })
    }
}

struct Figures {
    deterministic: Spread,
    free: Spread,
    /// The median of the ratios of batches that ran side by side.
    paired: f64,
    /// The medians in seconds.
    deterministic_device: f64,
    free_device: f64,
}

impl Figures {
    fn ratio(&self) -> f64 {
        self.deterministic.median() / self.free.median()
    }
}

fn refuse_cpu(info: &SessionInfo) -> anyhow::Result<()> {
    match info.isa {
        InstructionSet::Gpu { .. } => Ok(()),
        InstructionSet::Cpu(_) => Err(usage_hint(
            anyhow!(
                "--deterministic-cost: the engine runs on the CPU, which computes in one way only, the deterministic one"
            ),
            "run on a GPU with --device cuda, or leave the flag out",
        )),
    }
}
