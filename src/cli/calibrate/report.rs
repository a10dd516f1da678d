//! Writes the result of a calibration, for people and for files.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use pagedraft::session::{EngineOptions, SessionInfo};
use pagedraft_workloads::sim::{CostFit, FitQuality};
use serde_json::{Value, json};

use super::acceptance::Tally;
use crate::cli::machine;

pub fn header(info: &SessionInfo, options: &EngineOptions) -> String {
    format!("{}, revision {}\n", name(info, options), pagedraft::REVISION)
}

/// The name of a model: what was measured, and on which hardware.
pub fn name(info: &SessionInfo, options: &EngineOptions) -> String {
    let traced = if options.trace.is_some() { ", traced" } else { "" };
    let threads = if info.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", info.threads) };
    format!("{}, {} on {}, {threads}, {}{traced}", info.model_id, info.types(), info.isa, machine::name())
}

/// The file: the model, what it was measured on, and how well it fits.
pub fn json(
    found: &CostFit,
    info: &SessionInfo,
    options: &EngineOptions,
    seconds: f64,
    [steps_before, steps]: [usize; 2],
) -> anyhow::Result<Value> {
    let mut json = serde_json::to_value(&found.model).context("the cost model can't be written")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let calibration = json!({
        "model": info.model_id,
        "draft": options.speculation.draft.as_ref().map(ToString::to_string),
        "machine": machine::name(),
        "threads": info.threads,
        "dtype": info.dtype.to_string(),
        "quantization": info.quantization.to_string(),
        "instruction_set": info.isa.to_string(),
        "enforce_eager": options.enforce_eager,
        "traced": options.trace.is_some(),
        "block_size": info.block_size,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "revision": pagedraft::REVISION,
        "unix_time_s": now,
        "seconds": seconds,
        "steps": steps,
        "steps_before": steps_before,
        "fit": found.all,
        "fit_by_kind": found.parts,
    });
    if let Value::Object(fields) = &mut json {
        fields.insert("calibration".to_owned(), calibration);
    }
    Ok(json)
}

pub fn table(found: &CostFit, tallies: &BTreeMap<&'static str, Tally>) -> String {
    let model = &found.model;
    let mut text = String::new();
    let _ = writeln!(text, "{:>10} {:>12}", "token rows", "us a pass");
    for (rows, us) in &model.target.points {
        let _ = writeln!(text, "{rows:>10} {us:>12.1}");
    }
    let figures = [
        ("a token of context read", model.target.us_per_read),
        ("a pair of query token and context token", model.target.us_per_context),
        ("a token read by a request of one query token, besides", model.us_per_single_read),
        ("a pair in a row that computes a prompt, besides", model.us_per_prefill_pair),
        ("a row of the attention call", model.us_per_metadata_row),
        ("a row of logits", model.us_per_logit_row),
        ("a row that is sampled from", model.us_per_sampled_row),
        ("a request whose prompt is computed", model.us_per_prefill),
        ("a request that comes", model.us_per_begun),
        ("a request that ends", model.us_per_ended),
        ("a step, eager", model.us_per_eager_step),
        ("from idleness to the first request", model.us_to_wake),
        ("a step after idleness", model.us_after_idle),
        ("a token row of it, to 1024", model.us_per_row_after_idle),
        ("a second of idleness, to 2", model.us_per_idle_s),
        ("a token row of it and a second", model.us_per_row_and_idle_s),
        ("a token row that the step before was greater", model.us_per_row_before),
        ("a step, besides", model.us_per_step + model.metadata.us_per_step),
        ("a request in a step, besides", model.us_per_row + model.metadata.us_per_row),
        ("a query token, besides", model.us_per_token + model.metadata.us_per_token),
    ];
    for (what, us) in figures {
        let _ = writeln!(text, "{us:>12.5} us  {what}");
    }
    for (name, cost) in &model.proposers {
        let _ =
            write!(text, "{name}: {:.2} us a step, {:.3} us a request", cost.us_per_step, cost.us_per_row);
        if let (Some(first), Some(last)) = (cost.pass.points.first(), cost.pass.points.last()) {
            let _ = write!(
                text,
                ", a pass {:.1} us at {} rows, {:.1} us at {}",
                first.1, first.0, last.1, last.0
            );
        }
        let _ = writeln!(text);
        if let Some(acceptance) = model.acceptance.get(name).filter(|_| name != "synthetic") {
            let places: Vec<String> =
                acceptance.by_position.iter().map(|share| format!("{share:.2}")).collect();
            let asked = tallies.get(name.as_str()).map_or(0, Tally::asked);
            let _ = writeln!(
                text,
                "  accepted by place {}; {:.0} % of {asked} rows had drafts",
                places.join(" "),
                acceptance.given * 100.0
            );
        }
    }
    let _ = writeln!(
        text,
        "{:<10} {:>8} {:>9} {:>8} {:>8} {:>14}",
        "steps", "fitted", "held out", "median", "p90", "told/measured"
    );
    for (name, quality) in
        found.parts.iter().map(|(name, quality)| (name.as_str(), quality)).chain([("all", &found.all)])
    {
        text.push_str(&row(name, quality));
    }
    text
}

fn row(name: &str, quality: &FitQuality) -> String {
    let percent = |share: Option<f64>| share.unwrap_or(f64::NAN) * 100.0;
    if quality.held_out_steps == 0 {
        return format!(
            "{name:<10} {:>8} {:>9} {:>8} {:>8} {:>14}\n",
            quality.fitted_steps, 0, "-", "-", "-"
        );
    }
    format!(
        "{name:<10} {:>8} {:>9} {:>6.1} % {:>6.1} % {:>14.3}\n",
        quality.fitted_steps,
        quality.held_out_steps,
        percent(quality.median_error),
        percent(quality.p90_error),
        quality.sum_told_to_measured.unwrap_or(f64::NAN)
    )
}
