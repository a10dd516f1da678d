//! `pagedraft trace summary` and `pagedraft trace diff`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use pagedraft::exit::{usage, usage_hint};
use pagedraft_workloads::trace::{
    DiffOptions, Difference, Parting, TensorDiff, TensorSummary, diff_tensors, summarise_tensors,
};

use crate::cli::output_file::OutputFile;
use crate::cli::{Ended, stdout};

/// Lines of a table, at most.
const MOST_LINES: usize = 40;

#[derive(Debug, Args)]
pub struct Summary {
    /// What --trace-out wrote with --trace-tensors, or the directory of a run
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Compare the tensors of two runs, and name the first step, layer and tensor at which they part
///
/// Events of A are taken in order. A pass over a canvas is compared with the same request's same pass over the same block in B; other rows
/// there are a difference. Rows of other requests are compared with the row of the same request, layer, event and position in B, whatever
/// the step, so that chunked, speculative and plain runs can be compared; rejected drafts are left out. Where both runs were traced with
/// `full`, rows are compared bit by bit; otherwise the statistics of equal rows are. What is listed by layer and by token is about the step
/// of A in which the runs part. Exit code 1: they part; 0: they do not.
#[derive(Debug, Args)]
pub struct Diff {
    /// A trace with --trace-tensors
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Another one
    #[arg(value_name = "B")]
    b: PathBuf,
    /// The greatest absolute difference that does not count
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = tolerance)]
    tolerance: f64,
    /// Write what was found to this file
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "a tolerance is a number that is not negative".to_owned())
}

impl Summary {
    pub fn run(&self) -> anyhow::Result<Ended> {
        check_directory(&self.directory)?;
        let Some(found) = summarise_tensors(&self.directory).map_err(|e| usage(e.into()))? else {
            let error = anyhow!("{} has no trace of tensors", self.directory.display());
            return Err(usage_hint(error, "trace with --trace-tensors summary, stats or full"));
        };
        stdout::print(&if self.json {
            serde_json::to_string_pretty(&found)? + "\n"
        } else {
            counts(&found)
        })?;
        Ok(Ended::Done)
    }
}

fn check_directory(directory: &Path) -> anyhow::Result<()> {
    match directory.is_dir() {
        true => Ok(()),
        false => Err(usage(anyhow!("{} is not a directory", directory.display()))),
    }
}

fn counts(summary: &TensorSummary) -> String {
    let mut text = format!("Total entries: {}\n", summary.entries);
    if summary.left_out > 0 {
        text.push_str(&format!("Left out (--trace-max-entries): {}\n", summary.left_out));
    }
    if let Some([first, last]) = summary.steps {
        text.push_str(&format!("Steps {first} to {last}"));
        if let Some([first, last]) = summary.layers {
            text.push_str(&format!(", layers {first} to {last}"));
        }
        text.push('\n');
    }
    let mut events: Vec<_> = summary.events.iter().collect();
    events.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    text.push_str("Events:\n");
    events.iter().for_each(|(event, count)| text.push_str(&format!("  {event}: {count}\n")));
    text
}

impl Diff {
    pub fn run(&self) -> anyhow::Result<Ended> {
        check_directory(&self.a)?;
        check_directory(&self.b)?;
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        let options = DiffOptions { tolerance: self.tolerance };
        let found = diff_tensors(&self.a, &self.b, options).map_err(|e| usage(e.into()))?;
        if found.compared.events == 0 {
            let error = anyhow!("no event of {} has a partner in {}", self.a.display(), self.b.display());
            return Err(usage_hint(error, "trace the same requests, layers and steps in both runs"));
        }
        match &output {
            Some(file) => {
                file.write(&(serde_json::to_string(&found)? + "\n"))?;
                if !matches!(file, OutputFile::Stdout) {
                    stdout::print(&told(&found))?;
                }
            }
            None => stdout::print(&told(&found))?,
        }
        Ok(if found.first_difference.is_some() { Ended::Difference } else { Ended::Done })
    }
}

fn told(found: &TensorDiff) -> String {
    let mut text = match &found.first_difference {
        None => "no difference\n".to_owned(),
        Some(first) => first_difference(first),
    };
    if found.first_difference.is_some() {
        shapes(found, &mut text);
        layers(found, &mut text);
        tokens(found, &mut text);
        let steps = found.steps.len();
        text.push_str(&format!("{steps} steps of A have differences\n"));
    }
    let of = &found.compared;
    let _ = writeln!(
        text,
        "compared: {} events ({} differ), {} rows bit by bit, {} tensors by their statistics",
        of.events, of.events_different, of.rows, of.statistics
    );
    if of.not_comparable > 0 {
        let _ = writeln!(
            text,
            "not compared: {} tensors whose statistics are of other rows; trace both runs with --trace-tensors full",
            of.not_comparable
        );
    }
    if of.rows_only_in_a + of.only_in_a + of.only_in_b > 0 {
        let _ = writeln!(
            text,
            "only in A: {} events, and {} rows of others; only in B: {} events",
            of.only_in_a, of.rows_only_in_a, of.only_in_b
        );
    }
    if of.left_out != [0, 0] {
        let [a, b] = of.left_out;
        let _ =
            writeln!(text, "left out when they were traced (--trace-max-entries): {a} events of A, {b} of B");
    }
    text
}

fn first_difference(first: &Difference) -> String {
    let layer = first.layer.map_or_else(String::new, |layer| format!(", layer {layer}"));
    let pass = first.block.zip(first.pass).map_or_else(String::new, |(b, p)| format!(", block {b} pass {p}"));
    let (event, tensor, request) = (&first.event, &first.tensor, &first.request_id);
    let what = match (first.kind, first.row, first.max_abs) {
        (Parting::Shape, Some(row), _) => format!("other rows: only A has position {row}"),
        (Parting::Shape, None, _) => "other shapes".to_owned(),
        (Parting::Statistics, ..) => "other statistics".to_owned(),
        (Parting::Values, row, off) => {
            let off = off.map_or_else(|| "not finite".to_owned(), |off| format!("up to {off:e}"));
            format!("position {}, differences {off}", row.unwrap_or(0))
        }
    };
    let mut text = format!("first difference: step {}{layer}, {event} {tensor}: {what}\n", first.step);
    let _ = writeln!(text, "  request {request:?}{pass}; step {} of B", first.other_step);
    text
}

fn shapes(found: &TensorDiff, text: &mut String) {
    if found.shapes.is_empty() {
        return;
    }
    text.push_str("shapes, A beside B:\n");
    for shape in found.shapes.iter().take(MOST_LINES / 4) {
        let layer = shape.layer.map_or_else(|| "-".to_owned(), |layer| layer.to_string());
        let (event, tensor) = (&shape.event, &shape.tensor);
        let _ = writeln!(text, "  layer {layer:>3} {event:24} {tensor:14} {:?}  {:?}", shape.a, shape.b);
    }
    more(found.shapes.len(), MOST_LINES / 4, text);
}

fn layers(found: &TensorDiff, text: &mut String) {
    let different: Vec<_> = found.layers.iter().filter(|layer| !layer.events.is_empty()).collect();
    let _ = writeln!(text, "by layer ({} of {} differ):", different.len(), found.layers.len());
    for layer in different.iter().take(MOST_LINES) {
        let _ = write!(text, "  layer {:>3}  {:>12}", layer.layer, number(layer.max_abs));
        if let Some(kv) = found.kv.iter().find(|kv| kv.layer == layer.layer) {
            let _ = write!(text, "  K differs at {:?}, V at {:?}", kv.k, kv.v);
        }
        let _ = writeln!(text, "  {}", layer.events.join(" "));
    }
    more(different.len(), MOST_LINES, text);
}

fn tokens(found: &TensorDiff, text: &mut String) {
    let differs = |token: &&_| {
        let token: &pagedraft_workloads::trace::DiffToken = token;
        let moved = |off: Option<f64>| off.is_some_and(|off| off != 0.0);
        moved(token.max_abs) || moved(token.logits_max_abs) || token.state.contains(&Some("stable"))
    };
    let different: Vec<_> = found.tokens.iter().filter(differs).collect();
    let _ = writeln!(text, "by token ({} of {} differ):", different.len(), found.tokens.len());
    for token in different.iter().take(MOST_LINES) {
        let state = |state: Option<&'static str>| state.unwrap_or("-");
        let _ = write!(
            text,
            "  {:?} {:>5}  {:6} {:6}  {:>12}",
            token.request_id,
            token.position,
            state(token.state[0]),
            state(token.state[1]),
            number(token.max_abs)
        );
        if let (logits, [Some(a), Some(b)]) = (token.logits_max_abs, token.predictions) {
            let same = if a == b { "the same" } else { "other" };
            let _ = write!(text, "  logits {:>12}, predicts {a} and {b}: {same}", number(logits));
        }
        text.push('\n');
    }
    more(different.len(), MOST_LINES, text);
}

fn more(all: usize, shown: usize, text: &mut String) {
    if all > shown {
        let _ = writeln!(text, "  and {} more (--output-json has all)", all - shown);
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4e}"))
}
