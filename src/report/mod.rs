//! `report.html`: one self-contained page of what runs wrote, with pictures, and the KV blocks step by step.
//!
//! It is made from `config.json`, `summary.json`, `requests.jsonl` and `trace_steps.jsonl`, as far as a directory has them: a
//! run that was stopped has no summary, and its figures are then those of its requests; what `--trace-out` writes has no
//! requests, and its page has the pictures by step and the blocks. The page needs no network and no server.
//!
//! Reading costs memory of some 100 bytes a request, and for each step of the block view as much as the step changed: not the
//! tables it had. Steps beyond the block view cost none, however many they are: the pictures by step are means.

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

/// Steps of a trace by their numbers: `from`, and all before `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The first.
    pub from: u64,
    /// Behind the last.
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

/// What of a trace is shown step by step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Steps that the block view has; the first 10,000 unless they are named.
    pub steps: Option<Steps>,
    /// Which engine, where a trace is of several: 0 unless it is named.
    pub replica: Option<u32>,
}

/// Writes the page of the runs in `directories` to `out`, as a whole or not at all. Later runs are compared with the first.
///
/// The block view has the first 10,000 steps of each trace, those of engine 0 where it is of several.
///
/// # Errors
///
/// A directory that holds no run, a file of it that can't be read (which line of it, and why), a page that can't be written.
pub fn write(directories: &[PathBuf], out: &Path) -> anyhow::Result<()> {
    write_shown(directories, out, Shown::default())
}

/// [`write()`], with what is shown step by step.
///
/// # Errors
///
/// Those of [`write()`]; an engine that a trace of several has not.
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
    page::html(&runs)
}

/// Writes a page to `out`, as a whole or not at all.
///
/// # Errors
///
/// It can't be written.
pub fn save(page: &str, out: &Path) -> anyhow::Result<()> {
    replace_file(out, page.as_bytes()).with_context(|| format!("can't write {}", out.display()))
}
