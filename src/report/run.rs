//! Reads a run directory.

use std::path::Path;

use anyhow::{Context, anyhow};
use pagedraft_workloads::json_fault;
use pagedraft_workloads::trace::{CONFIG_FILE, SUMMARY_FILE, steps_file};
use serde_json::Value;

use super::pruned::Pruned;
use super::requests::Requests;
use super::shown::Shown;
use super::sparse::Sparse;
use super::trace_window::TraceWindow;

const TRACE_LEFT_OUT: &str = "The trace is left out, and with it the pictures by step and the blocks: config.json has no block_size \
                              between 1 and 1024, which is what this page can show.";

/// A run, as far as its files describe it.
#[derive(Debug)]
pub(super) struct Run {
    /// The directory's name.
    pub(super) name: String,
    pub(super) config: Value,
    pub(super) summary: Option<Value>,
    /// Why the summary is left out although there is a file, for people.
    pub(super) summary_left_out: Option<String>,
    pub(super) requests: Option<Requests>,
    pub(super) trace: Option<TraceWindow>,
    /// What sparse attention chose.
    pub(super) sparse: Option<Sparse>,
    /// What became of pruned prompts.
    pub(super) pruned: Option<Pruned>,
    /// Why the trace is left out although there is a file, for people.
    pub(super) trace_left_out: Option<String>,
}

impl Run {
    /// Reads a directory.
    ///
    /// # Errors
    ///
    /// The directory holds no run, or a file of it can't be read. The error names the file and the reason.
    pub(super) fn read(directory: &Path, shown: Shown) -> anyhow::Result<Self> {
        let config = json(&directory.join(CONFIG_FILE))?.ok_or_else(|| {
            anyhow!(
                "{} is no run directory: it has no {CONFIG_FILE} (`pagedraft replay --out DIR` and `--trace-out DIR` make one)",
                directory.display()
            )
        })?;
        let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let name = whole.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy().into_owned());
        let unread = steps_file(directory).is_some() && TraceWindow::block_size(&config).is_none();
        let (summary, summary_left_out) = match json(&directory.join(SUMMARY_FILE)) {
            Ok(summary) => (summary, None),
            // A page made from the other files says more than an error.
            Err(error) => (None, Some(format!("The summary is left out: {error:#}."))),
        };
        Ok(Self {
            name,
            summary_left_out,
            trace_left_out: unread.then(|| TRACE_LEFT_OUT.to_owned()),
            summary,
            requests: Requests::read(directory)?,
            trace: TraceWindow::read(directory, &config, shown)
                .with_context(|| format!("can't read the trace in {}", directory.display()))?,
            sparse: Sparse::read(directory).with_context(|| {
                format!("can't read what sparse attention chose in {}", directory.display())
            })?,
            pruned: Pruned::read(directory, &config)
                .with_context(|| format!("can't read the trace in {}", directory.display()))?,
            config,
        })
    }

    /// A number from `summary.json`.
    pub(super) fn figure(&self, key: &str) -> Option<f64> {
        self.summary.as_ref()?.get(key)?.as_f64().filter(|value| value.is_finite())
    }

    /// A number inside a part of `summary.json`, by its JSON pointer.
    pub(super) fn figure_at(&self, pointer: &str) -> Option<f64> {
        self.summary.as_ref()?.pointer(pointer)?.as_f64().filter(|value| value.is_finite())
    }

    /// A list of `summary.json`'s timeline as the points of a stepped line: seconds and values.
    pub(super) fn timeline(&self, list: &str) -> Option<Vec<(f64, f64)>> {
        let bin_s = self.bin_s()?;
        let values = self.summary.as_ref()?.pointer("/timeline")?.get(list)?.as_array()?;
        let value = |value: &Value| value.as_f64().filter(|v| v.is_finite()).unwrap_or(0.0);
        // In a resumed run, whatever is counted by step is unknown before its first step.
        let seen =
            self.figure_at("/timeline/observed_from_s").filter(|_| !matches!(list, "arrivals" | "finished"));
        let mut points: Vec<_> =
            (0u32..).zip(values).map(|(i, v)| (f64::from(i) * bin_s, value(v))).collect();
        let (last, end) = (points.last()?.1, points.len() as f64 * bin_s);
        points.push((end, last));
        points.retain(|(at, _)| seen.is_none_or(|seen| at + bin_s > seen));
        Some(points)
    }

    /// The same list as a rate per second.
    pub(super) fn timeline_rate(&self, list: &str) -> Option<Vec<(f64, f64)>> {
        let bin_s = self.bin_s()?;
        Some(self.timeline(list)?.into_iter().map(|(at, value)| (at, value / bin_s)).collect())
    }

    /// A histogram of `summary.json` as the points of a cumulative distribution: upper bounds and shares.
    pub(super) fn histogram(&self, latency: &str) -> Option<Vec<(f64, f64)>> {
        let buckets = self.summary.as_ref()?.pointer("/histograms")?.get(latency)?.as_array()?;
        let pair = |bucket: &Value| Some((bucket.get(0)?.as_f64()?, bucket.get(1)?.as_f64()?));
        let buckets: Vec<(f64, f64)> = buckets.iter().filter_map(pair).collect();
        let all: f64 = buckets.iter().map(|bucket| bucket.1).sum();
        let mut sum = 0.0;
        let cumulative = buckets.into_iter().map(|(bound, count)| {
            sum += count;
            (bound, sum / all)
        });
        (all > 0.0).then(|| cumulative.collect())
    }

    /// The width of the timeline's bins in seconds.
    pub(super) fn bin_s(&self) -> Option<f64> {
        self.figure_at("/timeline/bin_s").filter(|bin_s| *bin_s > 0.0)
    }

    /// A field of the configuration, at any depth, in a form for people.
    pub(super) fn setting(&self, key: &str) -> Option<String> {
        fn find<'a>(part: &'a Value, key: &str, depth: u32) -> Option<&'a Value> {
            let fields = part.as_object()?;
            let here = fields.get(key).filter(|value| !value.is_null());
            here.or_else(|| {
                let deeper = depth.checked_sub(1)?;
                fields.values().find_map(|part| find(part, key, deeper))
            })
        }
        let found = find(&self.config, key, 3)?;
        told(found)
    }
}

/// A setting in a form for people. An object is shown as its fields, one after the other.
fn told(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) if fields.contains_key("name") => fields.get("name").and_then(told),
        Value::Object(fields) => {
            let each = fields.iter().filter_map(|(name, value)| Some(format!("{name} {}", told(value)?)));
            Some(each.collect::<Vec<_>>().join(", "))
        }
        other => Some(other.to_string()),
    }
}

/// The JSON of a file; `None` if there is no file.
fn json(path: &Path) -> anyhow::Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let value = json_fault::parse(&bytes);
            value.map(Some).map_err(|fault| anyhow!("{}:{}: {fault}", path.display(), fault.line))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(anyhow::Error::from(e).context(format!("can't read {}", path.display()))),
    }
}
