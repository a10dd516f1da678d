//! Prints the engine's events to standard error, if `RUST_LOG` asks for them, and sends its spans to a collector, if the build can and the
//! environment names one.

use std::io;

use pagedraft::exit::usage_hint;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Registry, fmt};

#[cfg(feature = "otel")]
use super::otel;

/// The environment variable that says which events are printed.
const VARIABLE: &str = "RUST_LOG";
/// What is sent to a collector if `RUST_LOG` does not say otherwise: a span for each request.
#[cfg(feature = "otel")]
const SPANS: &str = "pagedraft=info";

/// Is kept until the program ends: then it sends what is left.
#[derive(Default)]
pub struct Installed {
    #[cfg(feature = "otel")]
    _exporting: Option<otel::Exporting>,
}

/// From now on prints events as `RUST_LOG` says, and sends spans. If neither is asked for, nothing is installed.
///
/// # Errors
///
/// What the environment says is wrong.
pub fn install() -> anyhow::Result<Installed> {
    let filter = filter()?;
    let printed = filter.is_some().then(|| {
        // If nobody reads standard error any more, that is no reason to stop.
        fmt::layer().with_writer(io::stderr).log_internal_errors(false)
    });
    #[cfg(feature = "otel")]
    if let Some((sent, exporting)) = otel::layer()? {
        let filter = filter.unwrap_or_else(|| EnvFilter::new(SPANS));
        let subscriber = Registry::default().with(filter).with(printed).with(sent);
        tracing::subscriber::set_global_default(subscriber)?;
        return Ok(Installed { _exporting: Some(exporting) });
    }
    if let Some(filter) = filter {
        tracing::subscriber::set_global_default(Registry::default().with(filter).with(printed))?;
    }
    Ok(Installed::default())
}

/// What `RUST_LOG` says; `None` if it is unset or empty.
fn filter() -> anyhow::Result<Option<EnvFilter>> {
    let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let filter = match value.to_str() {
        Some(text) => EnvFilter::builder().parse(text).map_err(anyhow::Error::from),
        None => Err(anyhow::anyhow!("it is not UTF-8")),
    };
    filter.map(Some).map_err(|error| {
        usage_hint(
            error.context(format!("the environment variable {VARIABLE} is {value:?}, which is no filter of events")),
            "set it to error, warn, info, debug or trace, or to a list such as pagedraft=debug,pagedraft_model=info; or unset it",
        )
    })
}
