//! `report.html`: one self-contained page about what runs wrote, with charts and with the KV blocks step by
//! step.
//!
//! It is made from `config.json`, `summary.json`, `requests.jsonl` and `trace_steps.jsonl`, as far as a
//! directory has them. A run that was stopped has no summary; its figures are then computed from its
//! requests. What `--trace-out` writes has no requests; its page has the charts by step and the blocks. The
//! page needs no network and no server.
//!
//! Reading takes about 100 bytes of memory per request, and for each step of the block view as much as the
//! step changed, not the tables that it had. Steps outside the block view take no memory, however many they
//! are, because the charts by step show means.

mod blocks;
mod chart;
mod embed;
mod escape;
mod figures;
mod page;
mod pictures;
mod requests;
mod run;
mod scale;
mod series;
mod steady;
mod step_delta;
mod step_points;
mod trace_window;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use pagedraft_workloads::trace::replace_file;

use self::run::Run;

/// A range of steps of a trace by their numbers: from `from` up to, but not including, `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The first step.
    pub from: u64,
    /// The step after the last one.
    pub to: u64,
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not A..B with step numbers A < B");
        let (from, to) = text.split_once("..").ok_or_else(bad)?;
        let number = |part: &str| part.trim().parse::<u64>().map_err(|_| bad());
        let steps = Self { from: number(from)?, to: number(to)? };
        if steps.from < steps.to { Ok(steps) } else { Err(bad()) }
    }
}

/// Which part of a trace is shown step by step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The steps in the block view; by default the first 10,000.
    pub steps: Option<Steps>,
    /// The engine, if the trace is of several; by default engine 0.
    pub replica: Option<u32>,
}

/// Writes the page about the runs in `directories` to `out`, as a whole or not at all. Later runs are
/// compared with the first one.
///
/// The block view has the first 10,000 steps of each trace, those of engine 0 if it is of several.
///
/// # Errors
///
/// A directory holds no run, a file of it can't be read (the error names the line and the reason), or the
/// page can't be written.
pub fn write(directories: &[PathBuf], out: &Path) -> anyhow::Result<()> {
    write_shown(directories, out, Shown::default())
}

/// Does what [`write()`] does, for the given steps and engine.
///
/// # Errors
///
/// Those of [`write()`], or a trace of several engines does not have this one.
pub fn write_shown(directories: &[PathBuf], out: &Path, shown: Shown) -> anyhow::Result<()> {
    let runs = directories.iter().map(|dir| Run::read(dir, shown)).collect::<anyhow::Result<Vec<_>>>()?;
    let page = page::html(&runs)?;
    replace_file(out, page.as_bytes()).with_context(|| format!("can't write {}", out.display()))
}
