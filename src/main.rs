//! `pagedraft`: the command line. It puts the parts together and prints, and decides nothing.

mod allocations;
mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: allocations::Counted = allocations::Counted;

fn main() -> ExitCode {
    cli::run()
}
