//! Reads the trace of a run and prints a line a step.
//!
//! ```text
//! cargo run --release -- generate --prompt "The old man" --max-tokens 8 --trace-out run/
//! cargo run --release --example read_trace -- run/
//! ```
//!
//! It reads traces of every format (`--trace-format`), and holds one line at a time in memory.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use pagedraft::exit;
use pagedraft::workloads::trace::{RowKind, StepRecord, read_steps};
use serde::Deserialize;

/// What every line says of itself: `step`, `setup` or `resume`.
#[derive(Deserialize)]
struct Line {
    event: String,
}

fn main() -> ExitCode {
    match read() {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough (`| head -1`).
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", exit::report(&error));
            ExitCode::from(exit::code(&error))
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn read() -> anyhow::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        bail!("name the directory that --trace-out was given: cargo run --example read_trace -- DIR");
    };
    let mut lines = read_steps(&directory)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:>6}  {:<6}{:>9}{:>8}{:>8}{:>8}{:>10}{:>9}{:>10}",
        "step", "mode", "prefills", "decodes", "drafts", "tokens", "accepted", "blocks", "ms"
    )?;
    let (mut steps, mut tokens) = (0u64, 0);
    while let Some(line) = lines.next_line()? {
        let line = line.to_vec();
        let place = || format!("{}, line {}", lines.path().display(), lines.number());
        let event: Line = serde_json::from_slice(&line).with_context(place)?;
        if event.event != "step" {
            continue;
        }
        let step: StepRecord = serde_json::from_slice(&line).with_context(place)?;
        let prefills = step.rows.iter().filter(|row| row.kind == RowKind::Prefill).count();
        let sum = |of: &dyn Fn(&pagedraft::workloads::trace::OutcomeRecord) -> u32| -> u32 {
            step.outcome.iter().map(of).sum()
        };
        let emitted = sum(&|row| row.token_ids.len() as u32);
        let ms = step
            .time_us
            .map_or(0.0, |us| (us.schedule + us.metadata + us.propose + us.execute + us.sample) / 1e3);
        writeln!(
            out,
            "{:>6}  {:<6}{prefills:>9}{:>8}{:>8}{emitted:>8}{:>10}{:>9}{ms:>10.3}",
            step.step,
            step.mode,
            step.rows.len() - prefills,
            sum(&|row| row.num_drafts),
            sum(&|row| row.num_accepted),
            step.pool.used,
        )?;
        steps += 1;
        tokens += emitted;
    }
    writeln!(
        out,
        "{steps} steps gave {tokens} tokens{}",
        if lines.is_cut() { "; the last line is cut" } else { "" }
    )?;
    Ok(())
}
