//! Writes the comparison for people: three tables with one row per run, a fourth if the device has a clock,
//! the log lines, and what differs.

use std::fmt::Write;

use pagedraft_workloads::latency::Spread;

use super::measured::{DeviceMs, Measured, StageMs};
use super::report::Report;
use super::runs::{RUNS, Run};
use crate::cli::step_figures::{no_drafts, number};

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", value * 100.0))
}

fn times(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}x"))
}

/// A table with the run's name and mode on the left, and on the right the results of `cells` under
/// `columns`.
fn stacked(
    report: &Report<'_>,
    title: &str,
    columns: &[(&str, usize)],
    cells: impl Fn(usize) -> Vec<String>,
) -> String {
    let mut text = format!("\n{title:<36}");
    for (name, width) in columns {
        let _ = write!(text, "{name:>width$}");
    }
    for (i, run) in RUNS.iter().enumerate() {
        let _ = write!(text, "\n{:<29}{:<7}", run.name(report.speculation), run.mode());
        for (cell, (_, width)) in cells(i).iter().zip(columns) {
            let _ = write!(text, "{cell:>width$}");
        }
    }
    text.push('\n');
    text
}

/// Everything that is printed once the runs are done.
pub fn text(report: &Report<'_>) -> String {
    let mut text = String::new();
    let done = report.iterations();
    if done == 0 {
        text.push_str("\nstopped before every run was timed once\n");
    } else {
        if done < report.shape.num_iters as usize {
            let wanted = report.shape.num_iters;
            let _ = writeln!(text, "\npartial: stopped after {done} of {wanted} timed iterations");
        }
        text.push_str(&latencies(report));
        text.push_str(&speculation(report));
    }
    let stages = stages(report);
    text.push_str(stages.as_deref().unwrap_or_default());
    text.push_str(&steps(report));
    text.push_str(LEGEND);
    if stages.is_some() {
        text.push_str(DEVICE_LEGEND);
    }
    if done > 0 {
        text.push_str(&log_lines(report));
    }
    text.push_str(&differences(report));
    text
}

fn latencies(report: &Report<'_>) -> String {
    let columns =
        [("avg", 10), ("p50", 10), ("p90", 10), ("p99", 10), ("spread", 9), ("vs none", 9), ("vs eager", 9)];
    stacked(report, "latency of a batch, s", &columns, |i| {
        let (run, all) = (&report.runs[i], report.runs);
        let spread = run.spread();
        let of = |value: fn(&Spread) -> f64| number(spread.as_ref().map(value), 4);
        let twin = Run::eager_twin(i);
        vec![
            of(Spread::mean),
            of(Spread::median),
            of(|s| s.percentile(90.0)),
            of(|s| s.percentile(99.0)),
            percent(spread.as_ref().map(Spread::relative_range)),
            times(run.speedup_over(&all[RUNS[i].plain()])),
            times(run.speedup_over(&all[twin]).filter(|_| twin != i)),
        ]
    })
}

fn speculation(report: &Report<'_>) -> String {
    let columns = [
        ("accepted", 10),
        ("noncausal", 10),
        ("efficiency", 11),
        ("length", 8),
        ("drafts/row", 11),
        ("propose", 9),
        ("scoring", 9),
        ("verify", 9),
    ];
    stacked(report, "drafts; stages in ms", &columns, |i| {
        let metrics = &report.runs[i].metrics;
        vec![
            number(metrics.draft_acceptance_rate(), 3),
            number(metrics.draft_acceptance_rate_noncausal(), 3),
            number(metrics.system_efficiency(), 3),
            number(metrics.mean_acceptance_length(), 2),
            number(report.runs[i].drafts_per_row(), 2),
            number(metrics.average_time_per_proposal_tok_ms(), 3),
            number(metrics.scoring_time_ms(), 3),
            number(metrics.verification_time_ms(), 3),
        ]
    })
}

/// Where the host and the device spent the time of a step; `None` if the device has no clock of its own.
fn stages(report: &Report<'_>) -> Option<String> {
    report.runs.iter().find_map(Measured::device_ms)?;
    let columns = [
        ("metadata", 10),
        ("propose", 9),
        ("execute", 9),
        ("sample", 9),
        ("| inputs", 10),
        ("forward", 9),
        ("choice", 9),
        ("draft", 9),
    ];
    Some(stacked(report, "a step, ms: wall | device busy", &columns, |i| {
        let run = &report.runs[i];
        let wall = run
            .stage_ms()
            .map(|StageMs { metadata, propose, execute, sample }| [metadata, propose, execute, sample]);
        let device = run
            .device_ms()
            .map(|DeviceMs { inputs, forward, choice, draft }| [inputs, forward, choice, draft]);
        let cells = |ms: Option<[f64; 4]>| ms.map_or([None; 4], |ms| ms.map(Some));
        cells(wall).into_iter().chain(cells(device)).map(|ms| number(ms, 3)).collect()
    }))
}

fn steps(report: &Report<'_>) -> String {
    let columns = [("outside", 10), ("replays", 9), ("eager", 8), ("fallbacks", 11), ("", 2), ("parity", 0)];
    stacked(report, "steps; parity with no spec. eager", &columns, |i| {
        let run = &report.runs[i];
        let fallbacks: u64 = run.target.fallbacks.values().sum();
        vec![
            percent(run.share_outside_model()),
            run.target.replays.to_string(),
            run.target.eager.to_string(),
            fallbacks.to_string(),
            String::new(),
            parity(report, i),
        ]
    })
}

fn parity(report: &Report<'_>, i: usize) -> String {
    let parity = &report.runs[i].parity;
    let (requests, equal) = (parity.requests(), parity.requests_equal());
    if parity.tokens() == 0 {
        return "not compared".to_owned();
    }
    if parity.is_equal() {
        return format!("equal, every bit of {} tokens", parity.tokens());
    }
    format!(
        "DIFFERENT: {} of {requests} requests; greatest difference of a state {:.3e}, of a logit {:.3e}",
        requests - equal,
        parity.max_abs_hidden_diff(),
        parity.max_abs_logit_diff()
    )
}

const LEGEND: &str = "
vs none     average latency without speculation in the same mode / this one;  vs eager: eager / graph of the same run
accepted    drafts accepted before the first miss / drafts;  noncausal: right by themselves, behind a miss too / drafts
efficiency  tokens emitted by verify rows / what they would emit with every draft accepted
length      tokens that a verify row emits, mean;  drafts/row: drafts of a verify row, mean
propose     a round of proposing, one token a row;  scoring, verify: the target's pass and acceptance, mean of steps with drafts
            judging drafts behind a miss, for noncausal alone, is inside these times: about 1 us for a row of 2,048 logits
outside     share of the steps' time neither proposing nor in the target's pass: scheduling, metadata, sampling, book-keeping
replays     steps of the target replayed from a graph;  fallbacks: eager ones for which no graph was captured
";

const DEVICE_LEGEND: &str = "\
a step      mean of all timed steps; wall: by the host's clock, as it issues and waits; device busy: by events on the GPU's stream
            around each copy, each list of launches and each replay, of eager steps with the gaps between launches
inputs      the copy of metadata and tokens;  forward: the target's pass, logits included;  choice: choosing the tokens that
            drafts are accepted by;  draft: all that the draft model did
";

/// vLLM's two log lines for each run that had drafts, and the reason why the others had none.
fn log_lines(report: &Report<'_>) -> String {
    let mut text = String::new();
    for (run, measured) in RUNS.iter().zip(report.runs) {
        if run.proposer(report.speculation) == "none" {
            continue;
        }
        let name = format!("{}, {}", run.name(report.speculation), run.mode());
        if measured.metrics.num_draft_tokens == 0 {
            let speculation = run.options(report.speculation);
            let _ = writeln!(text, "\n{name}: {}", no_drafts(speculation.length, speculation.draft.as_ref()));
            continue;
        }
        let _ = writeln!(text, "\n{name}:");
        for line in measured.metrics.log_lines(report.k()) {
            let _ = writeln!(text, "{line}");
        }
    }
    for (run, measured) in RUNS.iter().zip(report.runs) {
        for (counts, whose) in [(&measured.target, "target"), (&measured.draft, "draft")] {
            if !counts.fallbacks.is_empty() {
                let why: Vec<_> = counts.fallbacks.iter().map(|(why, n)| format!("{why} {n}")).collect();
                let (name, why) = (run.name(report.speculation), why.join(", "));
                let _ = writeln!(text, "\nfallbacks of the {whose}, {name}, {}: {why}", run.mode());
            }
        }
    }
    text
}

/// A sentence for each run that differs from the reference.
fn differences(report: &Report<'_>) -> String {
    let mut text = String::new();
    for (run, measured) in RUNS.iter().zip(report.runs) {
        let parity = &measured.parity;
        let Some(first) = parity.first_difference() else { continue };
        let rows: Vec<_> = parity.rows_different().iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "\nDIFFERENT: {}, {}: sequence rows {} of the batch are not those of the plain eager run; first at position {} of \
             row {} (generated token {}): another {}",
            run.name(report.speculation),
            run.mode(),
            rows.join(", "),
            report.shape.input_len as usize + first.output_index,
            first.row,
            first.output_index,
            match first.what {
                super::parity::What::Hidden => "hidden state",
                super::parity::What::Logits => "row of logits",
                super::parity::What::Token => "token",
            },
        );
        if parity.timed_different > 0 {
            let _ = writeln!(text, "  in {} of {} timed batches too", parity.timed_different, parity.timed);
        }
    }
    if let Some(canary) = &report.canary {
        match (canary.alarms, canary.first_alarm_step) {
            (0, _) => {
                let _ = writeln!(text, "\ncanary: {} shadow steps, no alarm", canary.shadow_steps);
            }
            (alarms, first) => {
                let first = first.map_or_else(String::new, |step| format!(", the first in step {step}"));
                let shadowed = canary.shadow_steps;
                let _ = writeln!(text, "\nCANARY: {alarms} alarms in {shadowed} shadow steps{first}");
            }
        }
    }
    text
}
