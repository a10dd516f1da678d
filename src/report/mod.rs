//! `report.html`: one self-contained page about what runs wrote, with charts and with the KV blocks step by
//! step.
//!
//! It is made from `config.json`, `summary.json`, `requests.jsonl`, `trace_steps.jsonl` and the records of
//! sparse attention, as far as a directory has them. A run that was stopped has no summary; its figures are then computed from its
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
mod pruned;
mod requests;
mod run;
mod scale;
mod series;
mod shown;
mod sparse;
mod steady;
mod step_delta;
mod step_points;
pub mod table2;
mod tensors;
mod trace_window;

use std::path::{Path, PathBuf};

use anyhow::Context;
use pagedraft_workloads::trace::replace_file;

use self::run::Run;
pub use self::shown::{Shown, Steps};

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
    save(&page(directories, shown)?, out)
}

/// The page of the runs in `directories`.
///
/// # Errors
///
/// A directory that holds no run, a file of it that can't be read (which line of it, and why); an engine that a trace of several has
/// not.
pub fn page(directories: &[PathBuf], shown: Shown) -> anyhow::Result<String> {
    let runs = directories.iter().map(|dir| Run::read(dir, shown)).collect::<anyhow::Result<Vec<_>>>()?;
    page::html(&runs, &tensors::pictures(directories)?)
}

/// Writes a page to `out`, as a whole or not at all.
///
/// # Errors
///
/// It can't be written.
pub fn save(page: &str, out: &Path) -> anyhow::Result<()> {
    replace_file(out, page.as_bytes()).with_context(|| format!("can't write {}", out.display()))
}
