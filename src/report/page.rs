//! Writes the page: one file, with its style, its script and its data inside.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::escape::escape;
use super::run::Run;
use super::trace_window::MOST_STEPS;
use super::{figures, pictures, steady};

/// The settings that the head of a page shows, each with a name for people.
const SETTINGS: [(&str, &[&str]); 14] = [
    ("model", &["model_id", "model"]),
    ("executor", &["executor"]),
    ("cost model", &["cost_model"]),
    ("workload", &["workload"]),
    ("file", &["file", "path"]),
    ("SHA-256 of the file", &["sha256"]),
    ("arrivals", &["arrivals", "process"]),
    ("draft", &["draft"]),
    ("drafts a row", &["num_speculative_tokens"]),
    ("scorer", &["scorer"]),
    ("block size", &["block_size"]),
    ("blocks", &["num_blocks"]),
    ("seed", &["seed"]),
    ("revision", &["revision"]),
];

/// The whole page. `parting` are pictures of where runs part.
///
/// # Errors
///
/// No error is expected, because it is written to memory.
pub(super) fn html(runs: &[Run], parting: &[String]) -> anyhow::Result<String> {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = escape(&names.join(", "));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} · pagedraft report</title>\n<style>\n{}</style></head>\n<body><main>\n",
        include_str!("page.css"),
    );
    let _ = writeln!(page, "<h1>{title}</h1>");
    for run in runs {
        page.push_str(&head(run, runs.len() > 1));
    }
    page.push_str(&figures::tables(runs));
    page.push_str(&steady::tables(runs));
    let mut pictures = pictures::all(runs);
    pictures.extend_from_slice(parting);
    if !pictures.is_empty() {
        let _ = write!(
            page,
            "<section><h2>Pictures</h2><div class=\"pictures\">{}</div></section>",
            pictures.concat()
        );
    }
    page.push_str(include_str!("blocks.html"));
    page.push_str("</main>\n");
    for run in runs {
        if let Some(trace) = run.trace.as_ref().filter(|trace| !trace.steps.is_empty()) {
            let _ = writeln!(
                page,
                "<script type=\"text/plain\" class=\"steps\" data-run=\"{}\" data-note=\"{}\">{}</script>",
                escape(&run.name),
                escape(&note(run)),
                trace.encode()?,
            );
        }
    }
    if runs.iter().any(|run| run.trace.is_some()) {
        for script in
            [include_str!("block_state.js"), include_str!("block_draw.js"), include_str!("block_view.js")]
        {
            let _ = writeln!(page, "<script>\n{script}</script>");
        }
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

/// A note above the block view that says which steps it shows.
fn note(run: &Run) -> String {
    let Some(trace) = &run.trace else { return String::new() };
    let (Some(first), Some(last)) = (trace.steps.first(), trace.steps.last()) else { return String::new() };
    let mut text = format!("{}: {} steps, {} to {}", run.name, trace.steps.len(), first.step, last.step);
    if trace.is_part {
        let _ = write!(text, ", of {} in the trace", trace.points.steps);
        if trace.steps.len() == MOST_STEPS {
            text.push_str(" (--steps A..B shows others)");
        }
    }
    if let Some(group) = &trace.group {
        let _ = write!(
            text,
            ". Blocks are those of the KV group \"{group}\", the first of several that share the pool; those of the others are not shown"
        );
    }
    text.push_str(". States are those after each step; arrow keys, Home, End and space move.");
    text
}

fn head(run: &Run, several: bool) -> String {
    let mut html = String::from("<section class=\"head\">");
    if several {
        let _ = write!(html, "<h2>{}</h2>", escape(&run.name));
    }
    html.push_str("<dl>");
    for (name, keys) in SETTINGS {
        if let Some(value) = keys.iter().find_map(|key| run.setting(key)) {
            let _ = write!(html, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
        }
    }
    html.push_str("</dl>");
    if let Some(requests) = &run.requests {
        html.push_str(&counted("Skipped", &requests.skipped));
        html.push_str(&counted("Failed", &requests.failed));
    }
    for warning in warnings(run) {
        let _ = write!(html, "<p class=\"warning\">{}</p>", escape(&warning));
    }
    let config = serde_json::to_string_pretty(&run.config).unwrap_or_default();
    let _ = write!(
        html,
        "<details><summary>all settings</summary><pre>{}</pre></details></section>",
        escape(&config)
    );
    html
}

fn counted(what: &str, reasons: &BTreeMap<String, u64>) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    let each: Vec<String> =
        reasons.iter().map(|(reason, n)| format!("{n} {}", reason.replace('_', " "))).collect();
    format!("<p>{what}: {}</p>", escape(&each.join(", ")))
}

/// What a reader must know before believing a figure.
fn warnings(run: &Run) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(requests) = &run.requests {
        if run.summary.is_none() && run.summary_left_out.is_none() {
            warnings.push(
                "This run has no summary.json: it was stopped. Figures are those of the requests that finished; \
                 the rate sent, goodput and gaps between tokens are not known."
                    .to_owned(),
            );
        }
        if requests.resumed > 0 {
            warnings.push(format!(
                "The run was stopped and resumed: {} requests were sent again; latencies count from when they should have been sent.",
                requests.resumed
            ));
        }
        let finished = requests.finished.len();
        if (1..100).contains(&finished) {
            warnings.push(format!("{finished} requests finished: fewer than a p99 needs (100)."));
        }
        warnings.extend(requests.warnings.iter().cloned());
    }
    if let (Some(asked), Some(sent)) = (run.figure("rate_asked"), run.figure("rate_sent"))
        && asked > 0.0
        && (sent / asked - 1.0).abs() > 0.01
    {
        warnings.push(format!(
            "The rate sent, {sent:.3} requests/s, is {:+.1} % off the rate asked, {asked:.3} (a live engine takes requests between two steps).",
            100.0 * (sent / asked - 1.0)
        ));
    }
    if run.summary.as_ref().and_then(|s| s.get("stopped")).and_then(serde_json::Value::as_bool) == Some(true)
    {
        warnings
            .push("The run was stopped before its end: figures are of what there was until then.".to_owned());
    }
    warnings.extend(run.summary_left_out.clone());
    warnings.extend(run.trace_left_out.clone());
    if let Some(trace) = &run.trace {
        warnings.extend(trace.warnings.iter().cloned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn nothing_from_a_file_is_markup() {
        assert_eq!(escape("</script><b a='\"&"), "&lt;/script&gt;&lt;b a=&#39;&quot;&amp;");
    }
}
