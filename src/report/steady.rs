//! Shows the middle of a run without its beginning and its end, from the part `steady` of `summary.json`.

use super::escape::escape;
use super::figures::{COLUMNS, LATENCIES, Row, compared_rows, latency_rows, tiles};
use super::run::Run;
use super::scale::number;

/// A figure: its name, its unit, its JSON pointer in `steady`, and a factor.
const FIGURES: [(&str, &str, &str, f64); 7] = [
    ("Requests finished", "", "completed", 1.0),
    ("Requests", "/s", "request_throughput", 1.0),
    ("Output tokens", "/s", "output_throughput", 1.0),
    ("Tokens, prompts too", "/s", "total_token_throughput", 1.0),
    ("Goodput", "requests/s", "goodput/request_goodput", 1.0),
    ("Prompt tokens out of the cache", "%", "prefix_cache/hit_rate", 100.0),
    ("Drafts accepted", "%", "spec_decode_acceptance_rate", 1.0),
];

fn figure(run: &Run, place: &str) -> Option<f64> {
    run.figure_at(&format!("/steady/{place}"))
}

/// Whether any request of the window finished.
fn is_known(run: &Run) -> bool {
    figure(run, "completed").is_some_and(|completed| completed > 0.0)
}

fn latency(run: &Run, stem: &str) -> [Option<f64>; 7] {
    COLUMNS.map(|(_, key, _)| figure(run, &format!("{key}_{stem}_ms")))
}

/// A sentence that says which part of the run it is.
fn window(run: &Run) -> Option<String> {
    let (from, to) = (figure(run, "from_request")?, figure(run, "to_request")?);
    let mut text = format!("requests {} to {} of the workload", number(from), number(to - 1.0));
    if let (Some(from_s), Some(to_s)) = (figure(run, "from_s"), figure(run, "to_s")) {
        text.push_str(&format!("; throughput from {} s to {} s", number(from_s), number(to_s)));
    }
    Some(text)
}

/// The tables; empty if no run has a window.
pub(super) fn tables(runs: &[Run]) -> String {
    if !runs.iter().any(is_known) {
        return String::new();
    }
    let mut html = String::from("<section id=\"steady\"><h2>Steady window</h2>");
    for run in runs.iter().filter(|run| is_known(run)) {
        let name = if runs.len() > 1 { format!("{}: ", run.name) } else { String::new() };
        let window = window(run).unwrap_or_default();
        html.push_str(&format!("<p class=\"note\">{}</p>", escape(&format!("{name}{window}."))));
    }
    html.push_str(
        "<p class=\"note\">The run without its first and last tenth: latencies are those of the requests in between, \
         throughput is that of all requests in that time.</p>",
    );
    match runs {
        [run] => {
            let named =
                FIGURES.map(|(name, unit, place, by)| (name, unit, figure(run, place).map(|v| v * by)));
            html.push_str(&tiles(&named));
            html.push_str(&latency_rows(LATENCIES.map(|(name, stem, _)| (name, latency(run, stem)))));
        }
        _ => {
            let mut rows = Vec::new();
            for (name, unit, place, by) in FIGURES {
                let values = runs.iter().map(|run| figure(run, place).map(|v| v * by)).collect();
                rows.push(Row::of(name, unit, values));
            }
            for (name, stem, _) in LATENCIES {
                let values: Vec<_> = runs.iter().map(|run| latency(run, stem)).collect();
                rows.extend(Row::of_latency(name, &values));
            }
            html.push_str(&compared_rows(runs, &rows));
        }
    }
    html.push_str("</section>");
    html
}
