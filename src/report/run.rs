//! What a run directory has.

use std::path::Path;

use anyhow::{Context, anyhow};
use pagedraft_workloads::trace::{CONFIG_FILE, SUMMARY_FILE};
use serde_json::Value;

use super::Steps;
use super::requests::Requests;
use super::trace_window::TraceWindow;

/// A run, as far as its files say.
#[derive(Debug)]
pub(super) struct Run {
    /// The directory's name.
    pub(super) name: String,
    pub(super) config: Value,
    pub(super) summary: Option<Value>,
    pub(super) requests: Option<Requests>,
    pub(super) trace: Option<TraceWindow>,
}

impl Run {
    /// Reads a directory.
    ///
    /// # Errors
    ///
    /// It holds no run, or a file of it can't be read: which, and what is wrong.
    pub(super) fn read(directory: &Path, steps: Option<Steps>) -> anyhow::Result<Self> {
        let config = json(&directory.join(CONFIG_FILE))?.ok_or_else(|| {
            anyhow!(
                "{} is no run directory: it has no {CONFIG_FILE} (`pagedraft replay --out DIR` and `--trace-out DIR` make one)",
                directory.display()
            )
        })?;
        let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let name = whole.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self {
            name,
            summary: json(&directory.join(SUMMARY_FILE))?,
            requests: Requests::read(directory)?,
            trace: TraceWindow::read(directory, &config, steps)
                .with_context(|| format!("can't read the trace in {}", directory.display()))?,
            config,
        })
    }

    /// A number of `summary.json`.
    pub(super) fn figure(&self, key: &str) -> Option<f64> {
        self.summary.as_ref()?.get(key)?.as_f64().filter(|value| value.is_finite())
    }

    /// A field of the configuration, wherever it stands in it, as people read it.
    pub(super) fn setting(&self, key: &str) -> Option<String> {
        let found = std::iter::once(&self.config)
            .chain(self.config.as_object().into_iter().flat_map(|fields| fields.values()))
            .find_map(|part| part.get(key))?;
        match found {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }
}

/// A file's JSON; `None` where there is no file.
fn json(path: &Path) -> anyhow::Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let value: Value =
                serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", path.display()))?;
            Ok(Some(value))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(anyhow::Error::from(e).context(format!("can't read {}", path.display()))),
    }
}
