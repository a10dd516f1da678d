//! Pictures of which keys sparse attention chose, from the records of a trace.

use std::collections::BTreeMap;
use std::path::Path;

use pagedraft_workloads::trace::DsaRecords;
use pagedraft_workloads::trace::analyze::{DsaAnalysis, DsaAnalysisOptions};
use pagedraft_workloads::trace::analyze_dsa;

use super::chart::{Axis, Chart};
use super::scale::number;

/// The records that pictures are made of, at most. `trace analyze dsa` takes all.
const MOST_RECORDS: u64 = 20_000;
/// Columns and rows of the heat map, at most.
const CELLS: [u32; 2] = [120, 64];

/// What the records of a run say.
#[derive(Debug)]
pub(super) struct Sparse {
    analysis: DsaAnalysis,
    map: Choices,
}

/// What one layer chose for one request: by the position of the query token, the positions of the keys.
#[derive(Debug, Default)]
struct Choices {
    request_id: String,
    layer: u16,
    chosen: BTreeMap<u32, Vec<u32>>,
}

impl Sparse {
    /// Reads the records in a directory; `None` if it has none.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub(super) fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let options = DsaAnalysisOptions { most_records: Some(MOST_RECORDS), ..Default::default() };
        let Some(analysis) = analyze_dsa(directory, options)? else { return Ok(None) };
        if analysis.all.records == 0 {
            return Ok(None);
        }
        Ok(Some(Self { analysis, map: Choices::read(directory)? }))
    }

    pub(super) fn pictures(&self, suffix: &str) -> Vec<String> {
        let charts = [self.map.heat_map(suffix), self.coverage(suffix), self.misses(suffix)];
        charts.into_iter().flatten().map(Chart::finish).collect()
    }

    fn coverage(&self, suffix: &str) -> Option<Chart> {
        let contexts = &self.analysis.all.coverage_by_context;
        let (first, last) = (contexts.first()?, contexts.last()?);
        let most = contexts.iter().map(|c| c.coverage.max(c.coverage_random)).fold(0.0, f64::max);
        let mut chart = Chart::new(
            &format!("Blocks that sparse attention touches{suffix}"),
            ("keys seen, logarithmic", Axis::Log(first.from_keys as f64, last.below_keys as f64)),
            ("share of the request's blocks", Axis::Linear(0.0, most * 1.08)),
        );
        for (name, class, random) in [("chosen keys", "s0", false), ("as many at random", "s1", true)] {
            let middle = |from: u64, below: u64| (from as f64 * below as f64).sqrt();
            let value = |coverage, expected| if random { expected } else { coverage };
            let points: Vec<_> = contexts
                .iter()
                .map(|c| (middle(c.from_keys, c.below_keys), value(c.coverage, c.coverage_random)))
                .collect();
            chart.line(&points, class);
            chart.dots(&points, class);
            chart.legend(name, class);
        }
        chart.note(format!(
            "Means over {} records of all layers, by powers of two of the keys seen.",
            number(self.analysis.all.records as f64)
        ));
        Some(chart)
    }

    fn misses(&self, suffix: &str) -> Option<Chart> {
        let sizes = &self.analysis.all.misses_by_size;
        let (first, last) = (sizes.first()?, sizes.last()?);
        let most = sizes.iter().map(|size| size.lru).fold(0.0, f64::max);
        let mut chart = Chart::new(
            &format!("Misses of a cache of KV blocks{suffix}"),
            (
                "blocks of a request and layer, logarithmic",
                Axis::Log(first.blocks as f64, last.blocks as f64),
            ),
            ("share of the blocks read", Axis::Linear(0.0, most * 1.08)),
        );
        for (name, class, belady) in
            [("least recently used", "s0", false), ("Belady's, the best", "s2", true)]
        {
            let value = |lru, best| if belady { best } else { lru };
            let points: Vec<_> =
                sizes.iter().map(|size| (size.blocks as f64, value(size.lru, size.belady))).collect();
            chart.line(&points, class);
            chart.legend(name, class);
        }
        let reuse = &self.analysis.all.reuse_distances;
        chart.note(format!(
            "{} reads of blocks, {:.1} % of them the first of a block",
            number(reuse.accesses as f64),
            100.0 * reuse.cold as f64 / reuse.accesses.max(1) as f64
        ));
        Some(chart)
    }
}

impl Choices {
    /// Those of the first layer with a record, for the request that has the first one.
    fn read(directory: &Path) -> anyhow::Result<Self> {
        let mut found = Self::default();
        let Some(mut records) = DsaRecords::open(directory)? else { return Ok(found) };
        while let Some(record) = records.next_record()?
            && records.number() <= MOST_RECORDS
        {
            if records.number() == 1 {
                (found.request_id, found.layer) = (record.request_id.clone(), record.layer_id);
            }
            if record.request_id == found.request_id
                && record.layer_id == found.layer
                && record.accepted != Some(false)
            {
                found.chosen.insert(record.step_idx, record.selected_token_pos);
            }
        }
        Ok(found)
    }

    /// Each cell shows which share of its keys was chosen, beside the cell with the greatest share.
    fn heat_map(&self, suffix: &str) -> Option<Chart> {
        let (&first, &last) = (self.chosen.first_key_value()?.0, self.chosen.last_key_value()?.0);
        let width = (last - first + 1).div_ceil(CELLS[0]).max(1);
        let height = (last + 1).div_ceil(CELLS[1]).max(1);
        let mut cells: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        let mut tokens: BTreeMap<u32, u32> = BTreeMap::new();
        for (query, keys) in &self.chosen {
            let column = (query - first) / width;
            *tokens.entry(column).or_default() += 1;
            for key in keys {
                *cells.entry((column, key / height)).or_default() += 1;
            }
        }
        let (from, to) = (f64::from(first), f64::from(last) + 1.0);
        let mut chart = Chart::new(
            &format!("Keys chosen by layer {} for request {}{suffix}", self.layer, self.request_id),
            ("position of the query token", Axis::Linear(from, to)),
            ("position of the key", Axis::Linear(0.0, f64::from(last) + 1.0)),
        );
        let rectangle = |((column, row), count): ((u32, u32), u32)| {
            let all = f64::from(tokens.get(&column).copied().unwrap_or(1)) * f64::from(height);
            let (left, floor) = (from + f64::from(column * width), f64::from(row * height));
            let right = (left + f64::from(width)).min(to);
            ([left, right, floor, (floor + f64::from(height)).min(to)], f64::from(count) / all)
        };
        let mut cells: Vec<([f64; 4], f64)> = cells.into_iter().map(rectangle).collect();
        let most = cells.iter().map(|cell| cell.1).fold(f64::MIN_POSITIVE, f64::max);
        cells.iter_mut().for_each(|cell| cell.1 /= most);
        chart.cells(&cells, "s0");
        chart.note(format!(
            "{} tokens; the darker, the greater the share of keys chosen, {:.1} % in the darkest. Cells are {width} tokens wide and {height} keys high.",
            number(self.chosen.len() as f64),
            100.0 * most
        ));
        Some(chart)
    }
}
