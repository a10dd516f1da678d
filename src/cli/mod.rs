//! The subcommands, one per file.

mod batch_header;
mod bench;
mod calibrate;
mod chat;
mod compare;
mod deterministic_cost;
mod diffusion_flags;
mod engine_flags;
mod generate;
mod held_out;
mod infill;
mod interrupt;
mod latency;
mod latency_flags;
mod latency_report;
mod live;
mod log;
mod machine;
mod not_utf8;
mod open_files;
#[cfg(feature = "otel")]
mod otel;
mod output_file;
mod perplexity;
mod prompts;
mod prune_bench;
mod prune_flags;
mod quantize;
mod recording;
mod replay;
mod report;
mod scheduler_bench;
mod serve;
mod speculation_flags;
mod stamp;
mod stdout;
mod step_figures;
mod tensor_flags;
mod together;
mod trace;
mod train;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pagedraft::exit;
use pagedraft::exit::is_interrupt;

/// An LLM serving engine whose scheduler knows about speculation.
///
/// Without arguments: the latency benchmark on the embedded model. Where the environment variable RUST_LOG is set (error, warn, info,
/// debug or trace), the engine says on standard error what it does.
#[derive(Debug, Parser)]
#[command(name = "pagedraft", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure: latency of a batch, scorers and graphs side by side, cost of the scheduler
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Go on from one prompt, or from many at once
    Generate(Box<generate::Generate>),
    /// A dataset or a trace through the engine, in real or in virtual time, or through a server
    Replay(Box<replay::Replay>),
    /// A conversation in the terminal
    Chat(Box<chat::Chat>),
    /// Answer over HTTP, as OpenAI's servers do
    Serve(Box<serve::Serve>),
    /// Read what a run wrote
    #[command(subcommand)]
    Trace(trace::Trace),
    /// Draw what one run wrote, or several: one page with pictures, and the KV blocks step by step
    Report(report::Report),
    /// Write a model with its matrices in 8 bits
    Quantize(quantize::Quantize),
    /// Train the embedded models (builds with `--features train`)
    Train(Box<train::Train>),
}

/// How a command ended if there was no error.
enum Ended {
    Done,
    /// A check found a difference, which has been reported.
    Difference,
    /// Ctrl-C ended it. Results so far have been written.
    Interrupted,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // If help can't be written because nobody reads it, that is not a failure.
            let _ = match not_utf8::told(&error, std::env::args_os().collect()) {
                Some(told) => std::io::stderr().write_all(told.as_bytes()),
                None => error.print(),
            };
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let installed = log::install();
    let ended = installed.and_then(|_until_the_end| match command {
        None => bench::main_job(),
        Some(Command::Bench(bench)) => bench.run(),
        Some(Command::Generate(generate)) => generate.run(),
        Some(Command::Replay(replay)) => replay.run(),
        Some(Command::Chat(chat)) => chat.run(),
        Some(Command::Serve(serve)) => serve.run(),
        Some(Command::Trace(trace)) => trace.run(),
        Some(Command::Report(report)) => report.run(),
        Some(Command::Quantize(quantize)) => quantize.run(),
        Some(Command::Train(train)) => train.run(),
    });
    match ended {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Difference) => ExitCode::from(exit::FAILED),
        Ok(Ended::Interrupted) => ExitCode::from(exit::INTERRUPTED),
        Err(error) if is_interrupt(&error) => ExitCode::from(exit::INTERRUPTED),
        // Whoever read our output has seen enough.
        Err(error) if stdout::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::stderr().write_all(exit::report(&error).as_bytes());
            ExitCode::from(exit::code(&error))
        }
    }
}
