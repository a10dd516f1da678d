//! `pagedraft trace analyze`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use pagedraft::exit::{usage, usage_hint};
use pagedraft_workloads::trace::analyze::{DsaAnalysis, DsaAnalysisOptions, DsaFigures};
use pagedraft_workloads::trace::analyze_dsa;

use crate::cli::{Ended, stdout};

#[derive(Debug, Subcommand)]
pub enum Analyze {
    /// Which keys sparse attention chose: overlap from step to step and between layers, coverage, reuse, misses of caches
    Dsa(Dsa),
}

#[derive(Debug, Args)]
pub struct Dsa {
    /// What --trace-out wrote, or the directory of a run
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Share of a request's keys that the cache of tokens holds, whose LRU misses are counted
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = share)]
    cache_share: f64,
    /// First tokens that count as sinks
    #[arg(long, value_name = "TOKENS", default_value_t = 4)]
    sink_tokens: u32,
    /// Last tokens that count as recent
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    recent_tokens: u32,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".to_owned())
}

impl Analyze {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let Self::Dsa(dsa) = self;
        dsa.run()
    }
}

impl Dsa {
    fn run(&self) -> anyhow::Result<Ended> {
        let options = DsaAnalysisOptions {
            cache_share: self.cache_share,
            sink_tokens: self.sink_tokens,
            recent_tokens: self.recent_tokens,
            most_records: None,
        };
        if !self.directory.is_dir() {
            return Err(usage(anyhow!("{} is not a directory", self.directory.display())));
        }
        let Some(found) = analyze_dsa(&self.directory, options).map_err(|e| usage(e.into()))? else {
            let error = anyhow!("{} has no records of sparse attention", self.directory.display());
            return Err(usage_hint(
                error,
                "trace a model with sparse attention, and not with --trace-dsa off",
            ));
        };
        stdout::print(&if self.json { serde_json::to_string_pretty(&found)? + "\n" } else { text(&found) })?;
        Ok(Ended::Done)
    }
}

/// A row of the table: its name, and its figure of a layer.
type Row = (&'static str, fn(&DsaFigures) -> Option<f64>);

const ROWS: [Row; 21] = [
    ("records", |f| Some(f.records as f64)),
    ("keys seen, mean", |f| Some(f.keys)),
    ("keys chosen, mean", |f| Some(f.selected_keys)),
    ("overlap |K(t-1) n K(t)| / k", |f| f.steps.raw),
    ("  of |K(t)|", |f| f.steps.of_current),
    ("  shifted by one", |f| f.steps.shifted),
    ("  of the union", |f| f.steps.jaccard),
    ("overlap with the layer before", |f| f.adjacent_layers.of_current),
    ("  of the union", |f| f.adjacent_layers.jaccard),
    ("coverage of blocks", |f| Some(f.coverage)),
    ("  of a random choice", |f| Some(f.coverage_random)),
    ("share of sink tokens", |f| Some(f.sink_share)),
    ("share of recent tokens", |f| Some(f.recent_share)),
    ("prefix intersection", |f| f.prefix.intersection_ratio),
    ("verify rows a step", |f| f.verify_union.rows),
    ("  keys of all rows", |f| f.verify_union.union_keys),
    ("  by keys of a row", |f| f.verify_union.ratio),
    ("LRU misses, tokens", |f| f.token_lru.miss_ratio),
    ("  first reads", |f| share_of(f.token_lru.cold, f.token_lru.accesses)),
    ("reads of blocks", |f| Some(f.reuse_distances.accesses as f64)),
    ("  first reads", |f| share_of(f.reuse_distances.cold, f.reuse_distances.accesses)),
];

fn share_of(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 1000.0 || (value.fract() == 0.0 && value > 1.0) => format!("{value:.0}"),
        Some(value) => format!("{value:.3}"),
    }
}

/// The tables: a column for all layers together, and one for each.
fn text(found: &DsaAnalysis) -> String {
    let columns: Vec<&DsaFigures> = std::iter::once(&found.all).chain(&found.layers).collect();
    let heads = columns.iter().map(|f| f.layer.map_or("all".to_owned(), |layer| format!("layer {layer}")));
    let heads: Vec<String> = heads.collect();
    let mut text = format!(
        "{} requests; k = {} keys; blocks of {} tokens; {} first tokens are sinks, {} last ones recent; the cache of tokens holds {} of the keys\n",
        found.requests,
        found.index_topk,
        found.block_size,
        found.options.sink_tokens,
        found.options.recent_tokens,
        found.options.cache_share,
    );
    let mut line = |name: &str, cells: Vec<String>| {
        let _ = write!(text, "{name:<30}");
        cells.iter().for_each(|cell| text.push_str(&format!("{cell:>13}")));
        text.push('\n');
    };
    line("", heads.clone());
    for (name, figure) in ROWS {
        line(name, columns.iter().map(|f| shown(figure(f))).collect());
    }
    line("\nmisses by blocks, LRU/Belady", heads);
    for at in 0..found.all.misses_by_size.len() {
        let cell = |f: &&DsaFigures| {
            let size = f.misses_by_size.get(at);
            size.map_or("-".to_owned(), |size| format!("{:.3}/{:.3}", size.lru, size.belady))
        };
        line(&format!("{:>10}", found.all.misses_by_size[at].blocks), columns.iter().map(cell).collect());
    }
    text.push_str("\ncontext, keys            records   coverage   of a random choice\n");
    for c in &found.all.coverage_by_context {
        let range = format!("{}..{}", c.from_keys, c.below_keys);
        let _ = writeln!(text, "{range:<22}{:>10}{:>11.3}{:>21.3}", c.records, c.coverage, c.coverage_random);
    }
    text.push_str("\nblocks read since the last read     reads\n");
    for (below, reads) in &found.all.reuse_distances.below {
        let _ = writeln!(text, "below {below:<20}{reads:>15}");
    }
    if found.cut {
        text.push_str(
            "the last record is incomplete and was left out (the process was stopped while it wrote)\n",
        );
    }
    text
}
