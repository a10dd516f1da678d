//! Prints the engine's events to standard error, if `RUST_LOG` asks for them.

use std::io;

use pagedraft::exit::usage_hint;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::Subscriber;

/// The environment variable that says which events are printed.
const VARIABLE: &str = "RUST_LOG";

/// From now on prints events as `RUST_LOG` says. If it is unset or empty, nothing is installed.
///
/// # Errors
///
/// Its value is not a filter.
pub fn install() -> anyhow::Result<()> {
    let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else {
        return Ok(());
    };
    let filter = match value.to_str() {
        Some(text) => EnvFilter::builder().parse(text).map_err(anyhow::Error::from),
        None => Err(anyhow::anyhow!("it is not UTF-8")),
    };
    let filter = filter.map_err(|error| {
        usage_hint(
            error.context(format!("the environment variable {VARIABLE} is {value:?}, which is no filter of events")),
            "set it to error, warn, info, debug or trace, or to a list such as pagedraft=debug,pagedraft_model=info; or unset it",
        )
    })?;
    let subscriber = Subscriber::builder()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // If nobody reads standard error any more, that is no reason to stop.
        .log_internal_errors(false)
        .finish();
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(())
}
