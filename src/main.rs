//! `pagedraft`: the command line. It wires and prints, and decides nothing.

mod allocations;
mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: allocations::Counted = allocations::Counted;

fn main() -> ExitCode {
    cli::run()
}
