//! The figures of a run. They come from the summary, or, if a run was stopped before it had one, from its
//! requests.

use super::escape::escape;
use super::pictures::quantile;
use super::requests::{Finished, Requests};
use super::run::Run;
use super::scale::number;

/// A figure: its name, its unit, its key in `summary.json`, and how to compute it from the requests alone.
struct Figure {
    name: &'static str,
    unit: &'static str,
    key: &'static str,
    by_requests: fn(&Requests) -> Option<f64>,
}

const FIGURES: [Figure; 12] = [
    Figure {
        name: "Requests finished",
        unit: "",
        key: "completed",
        by_requests: |r| Some(finished(r) as f64),
    },
    Figure { name: "Duration", unit: "s", key: "duration", by_requests: |r| duration(r) },
    Figure {
        name: "Requests",
        unit: "/s",
        key: "request_throughput",
        by_requests: |r| Some(finished(r) as f64 / duration(r)?),
    },
    Figure {
        name: "Output tokens",
        unit: "/s",
        key: "output_throughput",
        by_requests: |r| Some(sum(r, |f| f.output_tokens) / duration(r)?),
    },
    Figure {
        name: "Tokens, prompts too",
        unit: "/s",
        key: "total_token_throughput",
        by_requests: |r| Some((sum(r, |f| f.output_tokens) + sum(r, |f| f.prompt_tokens)) / duration(r)?),
    },
    Figure { name: "Goodput", unit: "requests/s", key: "request_goodput", by_requests: |_| None },
    Figure {
        name: "Prompt tokens out of the cache",
        unit: "%",
        key: "/prefix_cache/hit_rate",
        by_requests: |r| {
            let all = sum(r, |f| f.cached_tokens.map_or(0, |_| f.prompt_tokens));
            (all > 0.0).then(|| 100.0 * sum(r, |f| f.cached_tokens.unwrap_or(0)) / all)
        },
    },
    Figure {
        name: "Drafts accepted",
        unit: "%",
        key: "",
        by_requests: |r| {
            let drafted: u64 = r.acceptance.iter().map(|place| place.0).sum();
            let accepted: u64 = r.acceptance.iter().map(|place| place.1).sum();
            (drafted > 0).then(|| 100.0 * accepted as f64 / drafted as f64)
        },
    },
    Figure { name: "Peak KV", unit: "%", key: "/kv/peak_share", by_requests: |_| None },
    Figure { name: "Steps", unit: "", key: "steps", by_requests: |_| None },
    Figure {
        name: "Mean score",
        unit: "",
        key: "",
        by_requests: |r| (r.score.1 > 0).then(|| r.score.0 / r.score.1 as f64),
    },
    Figure {
        name: "Preemptions",
        unit: "",
        key: "preemptions",
        by_requests: |r| (!r.of_server()).then_some(r.preemptions as f64),
    },
];

fn finished(requests: &Requests) -> u64 {
    requests.ends.values().sum()
}

fn duration(requests: &Requests) -> Option<f64> {
    let last = requests.finished.iter().map(|r| r.finish_s).reduce(f64::max)?;
    (last > 0.0).then_some(last)
}

fn sum(requests: &Requests, of: fn(&Finished) -> u32) -> f64 {
    requests.finished.iter().map(|r| f64::from(of(r))).sum()
}

/// A latency: its name, the stem of its keys in `summary.json`, and how to get it from a request.
pub(super) type Latency = (&'static str, &'static str, fn(&Finished) -> Option<f64>);

pub(super) const LATENCIES: [Latency; 5] = [
    ("TTFT", "ttft", |r| Some(r.ttft_ms)),
    ("TPOT", "tpot", |r| r.tpot_ms),
    ("ITL", "itl", |_| None),
    ("E2EL", "e2el", |r| Some(r.e2el_ms)),
    ("Queue", "queue", |r| r.queue_ms),
];

/// The columns of the table of latencies, as the beginnings of the summary's keys. For a percentile there
/// is also its share.
pub(super) const COLUMNS: [(&str, &str, Option<f64>); 7] = [
    ("mean", "mean", None),
    ("median", "median", Some(0.5)),
    ("p90", "p90", Some(0.9)),
    ("p95", "p95", Some(0.95)),
    ("p99", "p99", Some(0.99)),
    ("p99.9", "p99.9", Some(0.999)),
    ("max", "max", Some(1.0)),
];

fn latency(run: &Run, (_, stem, of): &Latency) -> [Option<f64>; 7] {
    let sorted = run.requests.as_ref().map_or_else(Vec::new, |requests| requests.values(of));
    COLUMNS.map(|(_, key, share)| {
        run.figure(&format!("{key}_{stem}_ms")).or_else(|| match share {
            Some(share) => quantile(&sorted, share),
            None if sorted.is_empty() => None,
            None => Some(sorted.iter().sum::<f64>() / sorted.len() as f64),
        })
    })
}

fn cell(value: Option<f64>) -> String {
    format!("<td>{}</td>", value.map_or_else(|| "–".to_owned(), number))
}

/// A value together with its ratio to the first run's.
fn compared(value: Option<f64>, first: Option<f64>) -> String {
    match (value, first) {
        (Some(value), Some(first)) if first != 0.0 => {
            format!("<td>{} <small>×{:.3}</small></td>", number(value), value / first)
        }
        (value, _) => cell(value),
    }
}

fn value(run: &Run, figure: &Figure) -> Option<f64> {
    let stated = match figure.key {
        "" => None,
        // Parts of the summary hold shares from 0 to 1.
        path if path.starts_with('/') => run.figure_at(path).map(|share| share * 100.0),
        key => run.figure(key),
    };
    stated.or_else(|| run.requests.as_ref().and_then(figure.by_requests)).filter(|v| v.is_finite())
}

/// The tables of figures.
pub(super) fn tables(runs: &[Run]) -> String {
    let known = |run: &Run| FIGURES.iter().any(|figure| value(run, figure).is_some());
    if !runs.iter().any(known) {
        return String::new();
    }
    let mut html = String::from("<section><h2>Figures</h2>");
    match runs {
        [run] => {
            html.push_str(&one(run));
        }
        _ => html.push_str(&several(runs)),
    }
    html.push_str("</section>");
    html
}

fn one(run: &Run) -> String {
    let named: Vec<_> = FIGURES.iter().map(|figure| (figure.name, figure.unit, value(run, figure))).collect();
    tiles(&named) + &latency_rows(LATENCIES.map(|row| (row.0, latency(run, &row))))
}

/// Shows those figures that are known: a name, a unit and a value each.
pub(super) fn tiles(figures: &[(&str, &str, Option<f64>)]) -> String {
    let mut html = String::from(r#"<div class="tiles">"#);
    for (name, unit, value) in figures {
        if let Some(value) = value {
            html.push_str(&format!(
                r#"<div class="tile"><b>{} <small>{unit}</small></b><span>{name}</span></div>"#,
                number(*value)
            ));
        }
    }
    html.push_str("</div>");
    html
}

/// A table of those latencies that are known.
pub(super) fn latency_rows(rows: [(&str, [Option<f64>; 7]); 5]) -> String {
    let mut html = String::from("<table class=\"figures\"><tr><th>Latency, ms</th>");
    for (name, _, _) in COLUMNS {
        html.push_str(&format!("<th>{name}</th>"));
    }
    html.push_str("</tr>");
    for (name, values) in rows {
        if values.iter().any(Option::is_some) {
            let cells: String = values.into_iter().map(cell).collect();
            html.push_str(&format!("<tr><th>{name}</th>{cells}</tr>"));
        }
    }
    html.push_str("</table>");
    html
}

/// A figure of several runs.
pub(super) struct Row {
    name: String,
    values: Vec<Option<f64>>,
}

impl Row {
    pub(super) fn of(name: &str, unit: &str, values: Vec<Option<f64>>) -> Self {
        let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
        Self { name: format!("{name}{unit}"), values }
    }

    /// One row for each column that the table of a single run has.
    pub(super) fn of_latency(name: &str, runs: &[[Option<f64>; 7]]) -> impl Iterator<Item = Self> {
        COLUMNS.iter().enumerate().map(move |(i, (column, _, _))| {
            Self::of(&format!("{name} {column}"), "ms", runs.iter().map(|values| values[i]).collect())
        })
    }
}

/// A table of those rows of which something is known, with the ratios to the first run.
pub(super) fn compared_rows(runs: &[Run], rows: &[Row]) -> String {
    let mut html = String::from(r#"<table class="figures"><tr><th></th>"#);
    for run in runs {
        html.push_str(&format!("<th>{}</th>", escape(&run.name)));
    }
    html.push_str("</tr>");
    for Row { name, values } in rows.iter().filter(|row| row.values.iter().any(Option::is_some)) {
        let first = values.first().copied().flatten();
        let cells =
            values.iter().enumerate().map(|(i, v)| if i == 0 { cell(*v) } else { compared(*v, first) });
        html.push_str(&format!("<tr><th>{name}</th>{}</tr>", cells.collect::<String>()));
    }
    html.push_str("</table><p class=\"note\">× is the ratio to the first run.</p>");
    html
}

fn several(runs: &[Run]) -> String {
    let mut rows = Vec::new();
    for figure in &FIGURES {
        let values = runs.iter().map(|run| value(run, figure)).collect();
        rows.push(Row::of(figure.name, figure.unit, values));
    }
    for one in &LATENCIES {
        let values: Vec<[Option<f64>; 7]> = runs.iter().map(|run| latency(run, one)).collect();
        rows.extend(Row::of_latency(one.0, &values));
    }
    compared_rows(runs, &rows)
}
