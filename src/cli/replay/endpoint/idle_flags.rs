//! Refuses flags of an engine where a server runs the requests.

use anyhow::anyhow;
use clap::CommandFactory;
use clap::parser::ValueSource;
use pagedraft::exit::usage_hint;

use crate::cli::Cli;

/// The headings of the flags that say what is replayed, and how.
const HEADINGS: [&str; 4] = ["Workload", "Arrivals", "Run", "Endpoint"];
/// What of an engine's flags means something: the tokenizer, the seed of the workload, and which requests are too long.
const FLAGS: [&str; 3] = ["model", "seed", "max_model_len"];

/// Refuses flags of the command line that would change an engine of our own, because none runs.
pub fn refuse() -> anyhow::Result<()> {
    let mut command = Cli::command();
    command.build();
    // The command line has been read once without a fault.
    let Ok(matches) = command.clone().try_get_matches_from(std::env::args_os()) else { return Ok(()) };
    let (Some(replay), Some(given)) =
        (command.find_subcommand("replay"), matches.subcommand_matches("replay"))
    else {
        return Ok(());
    };
    let idle = replay.get_arguments().find(|flag| {
        let id = flag.get_id().as_str();
        flag.get_help_heading().is_some_and(|heading| !HEADINGS.contains(&heading))
            && !FLAGS.contains(&id)
            && given.value_source(id) == Some(ValueSource::CommandLine)
    });
    match idle.and_then(|flag| flag.get_long()) {
        None => Ok(()),
        Some(flag) => Err(usage_hint(
            anyhow!("--{flag} is for an engine of our own, and with --endpoint none runs"),
            "leave it out, or give it to the server",
        )),
    }
}
