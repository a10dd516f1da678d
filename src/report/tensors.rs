//! A picture of where two runs part, from their traces of tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pagedraft_workloads::trace::{DiffOptions, TensorDiff, TensorLines, diff_tensors};

use super::chart::{Axis, Chart};

/// Columns of the heat map, at most.
const COLUMNS: u32 = 160;

/// Pictures of where each later run parts from the first one, as far as tensors of both were traced.
///
/// # Errors
///
/// A trace can't be read.
pub(super) fn pictures(directories: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let Some((first, others)) = directories.split_first() else { return Ok(Vec::new()) };
    let traced = |directory: &PathBuf| anyhow::Ok(TensorLines::open(directory)?.is_some());
    let mut pictures = Vec::new();
    for other in others {
        if !traced(first)? || !traced(other)? {
            continue;
        }
        let found = diff_tensors(first, other, DiffOptions::default())
            .with_context(|| format!("can't compare the tensors in {}", other.display()))?;
        pictures.extend(heat_map(&found, &name(first), &name(other)).map(Chart::finish));
    }
    Ok(pictures)
}

fn name(directory: &Path) -> String {
    directory.file_name().map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Differences by layer and token; `None` if there are none whose size is known.
fn heat_map(found: &TensorDiff, a: &str, b: &str) -> Option<Chart> {
    let first = found.first_difference.as_ref()?;
    let (least, end) = (
        found.cells.iter().map(|cell| cell.position).min()?,
        found.cells.iter().map(|cell| cell.position + 1).max()?,
    );
    let layers = found.layers.last().map_or(1, |layer| u32::from(layer.layer) + 1);
    let width = (end - least).div_ceil(COLUMNS).max(1);
    let size = |off: Option<f64>| off.unwrap_or(f64::MAX);
    let most = found.cells.iter().filter_map(|cell| cell.max_abs).fold(0.0, f64::max);
    let mut columns: BTreeMap<(u16, u32), f64> = BTreeMap::new();
    for cell in &found.cells {
        let shade = columns.entry((cell.layer, (cell.position - least) / width)).or_default();
        *shade = shade.max(size(cell.max_abs));
    }
    let cells: Vec<([f64; 4], f64)> = columns
        .into_iter()
        .map(|((layer, column), off)| {
            let from = f64::from(least + column * width);
            let to = (from + f64::from(width)).min(end.into());
            // Small differences stay visible beside large ones.
            let shade = (off / most.max(f64::MIN_POSITIVE)).min(1.0).powf(0.25);
            ([from, to, f64::from(layer), f64::from(layer) + 1.0], shade)
        })
        .collect();
    let mut chart = Chart::new(
        &format!("Where {b} parts from {a}: differences in step {}", first.step),
        ("position", Axis::Linear(least.into(), end.into())),
        ("layer", Axis::Linear(0.0, layers.into())),
    );
    chart.cells(&cells, "s0");
    let layer = first.layer.map_or_else(String::new, |layer| format!(", layer {layer}"));
    let stable = found.tokens.iter().filter(|token| token.state.contains(&Some("stable"))).count();
    let skipped =
        if stable > 0 { format!(" {stable} tokens skipped the later layers.") } else { String::new() };
    chart.note(format!(
        "The first difference: step {}{layer}, {} {}. The darker, the greater; the greatest is {most:.3e}.{skipped} `trace diff` has the figures.",
        first.step, first.event, first.tensor
    ));
    Some(chart)
}
