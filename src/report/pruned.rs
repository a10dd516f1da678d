//! Pictures of pruned prompts, from the records of a trace.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::Context;
use pagedraft_workloads::json_fault;
use pagedraft_workloads::trace::{PruneRecord, read_steps, steps_file};
use serde_json::Value;

use super::chart::{Axis, Chart};
use super::scale::number;

/// Columns of the strip, at most.
const COLUMNS: u32 = 160;

/// What a trace says of pruned prompts.
#[derive(Debug, Default)]
pub(super) struct Pruned {
    /// The first prompt that was pruned: behind each layer, what was kept of it.
    first: BTreeMap<u16, PruneRecord>,
    /// How many prompts were pruned.
    prompts: usize,
    /// The model's last layer.
    last_layer: u16,
}

impl Pruned {
    /// Reads the records in a directory, whose run is described by `config`; `None` if there are none.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub(super) fn read(directory: &Path, config: &Value) -> anyhow::Result<Option<Self>> {
        if steps_file(directory).is_none() {
            return Ok(None);
        }
        let mut found = Self::default();
        let mut prompts = HashSet::new();
        let mut lines = read_steps(directory)?;
        while let Some(line) = lines.next_line()? {
            if !line.starts_with(br#"{"event":"prune","#) {
                continue;
            }
            let record: PruneRecord = json_fault::parse(line)
                .map_err(|fault| anyhow::anyhow!("{fault}"))
                .context("a line about a pruned prompt is no such line")?;
            let is_first = found.first.values().next().is_none_or(|of| of.request_id == record.request_id);
            prompts.insert(record.request_id.clone());
            if is_first {
                // A prompt that was preempted is pruned again, to the same tokens.
                found.first.insert(record.layer, record);
            }
        }
        found.prompts = prompts.len();
        let behind = found.first.last_key_value().map_or(0, |(&layer, _)| layer + 1);
        found.last_layer = last_layer(config).unwrap_or(behind).max(behind);
        Ok((found.prompts > 0).then_some(found))
    }

    pub(super) fn pictures(&self, suffix: &str) -> Vec<String> {
        let charts = [self.lengths(suffix), self.strip(suffix)];
        charts.into_iter().flatten().map(Chart::finish).collect()
    }

    fn lengths(&self, suffix: &str) -> Option<Chart> {
        let (&layer, first) = self.first.first_key_value()?;
        let (id, whole) = (&first.request_id, f64::from(first.input_seq_len));
        let end = f64::from(self.last_layer) + 1.0;
        let mut points = vec![(0.0, whole)];
        points.extend(self.first.values().map(|of| (f64::from(of.layer) + 1.0, f64::from(of.tokens_kept))));
        points.extend(points.last().map(|&(_, tokens)| (end, tokens)));
        let held: f64 = points.windows(2).map(|two| (two[1].0 - two[0].0) * two[0].1).sum();
        let mut chart = Chart::new(
            &format!("Tokens that each layer computes and holds of request {id}{suffix}"),
            ("layer", Axis::Linear(0.0, end)),
            ("tokens", Axis::Linear(0.0, whole * 1.08)),
        );
        chart.steps(&[(0.0, whole), (end, whole)], "s1");
        chart.steps(&points, "s0");
        chart.legend("pruned", "s0");
        chart.legend("dense", "s1");
        chart.note(format!(
            "Tokens are dropped behind layer {layer} first. All layers together hold {:.1} % of the tokens that they would hold of a dense prompt. {} prompts were pruned.",
            100.0 * held / (whole * end),
            number(self.prompts as f64)
        ));
        Some(chart)
    }

    /// Each cell shows which share of its positions was kept behind a layer.
    fn strip(&self, suffix: &str) -> Option<Chart> {
        let (_, first) = self.first.first_key_value()?;
        let width = first.input_seq_len.div_ceil(COLUMNS).max(1);
        let end = f64::from(first.input_seq_len);
        let mut cells = Vec::new();
        for (row, record) in (0u32..).zip(self.first.values().rev()) {
            let mut kept: BTreeMap<u32, u32> = BTreeMap::new();
            for position in &record.kept {
                *kept.entry(position / width).or_default() += 1;
            }
            cells.extend(kept.into_iter().map(|(column, count)| {
                let (from, to) = (f64::from(column * width), (f64::from((column + 1) * width)).min(end));
                let (floor, roof) = (f64::from(row) + 0.08, f64::from(row) + 0.92);
                ([from, to, floor, roof], f64::from(count) / (to - from))
            }));
        }
        let mut chart = Chart::new(
            &format!("Positions that are kept of the prompt of request {}{suffix}", first.request_id),
            ("position in the prompt", Axis::Linear(0.0, end)),
            ("prune points, the first on top", Axis::Linear(0.0, self.first.len() as f64)),
        );
        chart.cells(&cells, "s0");
        let go_on = self.first.values().map(|of| format!("{} behind layer {}", of.tokens_kept, of.layer));
        chart.note(format!(
            "The darker, the more of the positions are kept; a cell is {width} positions wide. Of {} tokens go on: {}.",
            first.input_seq_len,
            go_on.collect::<Vec<_>>().join(", ")
        ));
        Some(chart)
    }
}

/// The last layer that a KV group of the run's engine has.
fn last_layer(config: &Value) -> Option<u16> {
    let groups = config.get("kv_groups").or_else(|| config.get("engine")?.get("kv_groups"))?;
    let names = groups.as_array()?.iter().filter_map(|group| group.get("name")?.as_str());
    names.filter_map(|name| name.strip_prefix("layers-")?.rsplit('-').next()?.parse().ok()).max()
}
