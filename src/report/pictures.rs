//! The charts of a run, and of several runs laid over each other.

use pagedraft_workloads::latency::percentile;

use super::chart::{Axis, Chart, SERIES};
use super::requests::Finished;
use super::run::Run;
use super::scale::number;
use super::series::{Bins, in_flight};
use super::step_points::{StepPoint, StepPoints};

/// The number of bins of charts over time. It is small enough to leave several requests for each bin.
fn bins(requests: &[Finished]) -> usize {
    (requests.len() / 4).clamp(8, 120)
}

/// The number of points of a cumulative distribution: one at each thousandth, and some at the tails.
const QUANTILES: usize = 400;
/// The most requests in the scatter chart. If there are more, every n-th is drawn.
const MOST_DOTS: usize = 3000;
/// The most columns of charts by step. If there are more steps, they are averaged.
const MOST_COLUMNS: usize = 400;

type Value = fn(&Finished) -> Option<f64>;

/// The latencies of requests, with their names for people and in `summary.json`.
const LATENCIES: [(&str, &str, Value); 4] = [
    ("Time to first token (TTFT)", "ttft", |r| Some(r.ttft_ms)),
    ("Time per output token (TPOT)", "tpot", |r| r.tpot_ms),
    ("End to end (E2EL)", "e2el", |r| Some(r.e2el_ms)),
    ("Queue", "queue", |r| r.queue_ms),
];

/// The percentiles that are marked.
const MARKS: [(f64, &str, &str); 3] = [(0.5, "median", "p50"), (0.9, "p90", "p90"), (0.99, "p99", "p99")];

/// The value that this share of the sorted values does not exceed. The rule is that of the percentiles in
/// `summary.json`: numpy's, which interpolates between two values.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    percentile(sorted, share * 100.0)
}

/// The charts of one run, or of several runs laid over each other where that is readable.
pub(super) fn all(runs: &[Run]) -> Vec<String> {
    let mut figures = Vec::new();
    for (name, stem, value) in LATENCIES {
        figures.extend(distribution(runs, name, stem, value));
    }
    figures.extend(gaps(runs));
    figures.extend(acceptance(runs));
    for run in runs {
        let suffix = if runs.len() > 1 { format!(" · {}", run.name) } else { String::new() };
        figures.extend(throughput(run, &suffix));
        figures.extend(tokens(run, &suffix));
        figures.extend(queue(run, &suffix));
        figures.extend(scatter(run, &suffix));
        figures.extend(prefix(run, &suffix));
        figures.extend(kv_over_time(run, &suffix));
        figures.extend(work_over_time(run, &suffix));
        figures.extend(composition(run, &suffix));
        figures.extend(kv(run, &suffix));
        figures.extend(states(run, &suffix));
        figures.extend(run.pruned.iter().flat_map(|pruned| pruned.pictures(&suffix)));
        figures.extend(run.sparse.iter().flat_map(|sparse| sparse.pictures(&suffix)));
    }
    figures
}

fn distribution(runs: &[Run], name: &str, stem: &str, value: Value) -> Option<String> {
    let values: Vec<Vec<f64>> =
        runs.iter().map(|run| run.requests.as_ref().map_or_else(Vec::new, |r| r.values(value))).collect();
    let most = values.iter().filter_map(|v| v.last().copied()).reduce(f64::max)?;
    let positive = values.iter().flatten().copied().filter(|v| *v > 0.0).reduce(f64::min);
    // Queues are often empty. Times below a microsecond are drawn on the axis.
    let least = positive.unwrap_or(1e-3).max(1e-3).max(most * 1e-7);
    let axis = Axis::Log(least * 0.95, most * 1.1);
    let mut chart =
        Chart::new(name, ("ms, logarithmic", axis), ("share of requests", Axis::Linear(0.0, 1.0)));
    for (i, values) in values.iter().enumerate() {
        if values.is_empty() {
            continue;
        }
        let class = SERIES[i % SERIES.len()];
        let shares = (0..=QUANTILES).map(|q| q as f64 / QUANTILES as f64);
        let points: Vec<_> = shares.filter_map(|share| Some((quantile(values, share)?, share))).collect();
        chart.line(&points, class);
        if runs.len() > 1 {
            chart.legend(&runs[i].name, class);
        }
        for (share, key, name) in MARKS {
            // The summary's own figure is used if there is one, so that a page has only one number for a
            // percentile.
            if let Some(at) = runs[i].figure(&format!("{key}_{stem}_ms")).or_else(|| quantile(values, share))
            {
                let text = if runs.len() > 1 { String::new() } else { format!("{name} {}", number(at)) };
                chart.mark(at, share, class, &text);
            }
        }
    }
    let fewest = values.iter().map(Vec::len).filter(|n| *n > 0).min().unwrap_or(0);
    chart.note(match (runs.len(), fewest) {
        (1, n) if n < 100 => format!("{n} requests: too few for a p99, which is nearly the greatest."),
        (1, n) => format!("{} requests", number(n as f64)),
        _ => "Marks: p50, p90, p99.".to_owned(),
    });
    Some(chart.finish())
}

fn acceptance(runs: &[Run]) -> Option<String> {
    let rates = |run: &Run| {
        let places = run.requests.as_ref().map_or(&[][..], |r| &r.acceptance);
        places.iter().map(|(drafted, accepted)| (*drafted, *accepted)).collect::<Vec<_>>()
    };
    let all: Vec<_> = runs.iter().map(rates).collect();
    let places = all.iter().map(Vec::len).max().filter(|places| *places > 0)?;
    let mut chart = Chart::new(
        "Acceptance by position",
        ("place in a row of drafts", Axis::Linear(0.4, places as f64 + 0.6)),
        ("accepted / drafted", Axis::Linear(0.0, 1.05)),
    );
    let width = 0.8 / runs.len() as f64;
    for (i, rates) in all.iter().enumerate() {
        let class = SERIES[i % SERIES.len()];
        if runs.len() > 1 {
            chart.legend(&runs[i].name, class);
        }
        for (place, (drafted, accepted)) in (1u32..).zip(rates) {
            let rate = if *drafted == 0 { 0.0 } else { *accepted as f64 / *drafted as f64 };
            let left = f64::from(place) - 0.4 + width * i as f64;
            chart.bar(
                left,
                left + width,
                rate,
                class,
                &format!("place {place}: {accepted} of {drafted} accepted"),
            );
            if runs.len() == 1 && places <= 12 {
                chart.text(f64::from(place), rate, &format!("{rate:.2}"));
            }
        }
    }
    chart.note("Drafts behind a rejected one count as drafted and not accepted.");
    Some(chart.finish())
}

/// A line of a chart: its name, its class and its points.
type Line = (&'static str, &'static str, Vec<(f64, f64)>);

/// A chart over time.
fn over_time(title: &str, unit: &str, lines: &[Line]) -> Option<String> {
    let points = || lines.iter().flat_map(|(_, _, points)| points);
    let (from, to) = (points().map(|p| p.0).reduce(f64::min)?, points().map(|p| p.0).reduce(f64::max)?);
    let most = points().map(|p| p.1).fold(0.0, f64::max);
    let mut chart = Chart::new(
        title,
        ("seconds since the run began", Axis::Linear(from, to)),
        (unit, Axis::Linear(0.0, most * 1.08)),
    );
    for (name, class, points) in lines {
        chart.steps(points, class);
        chart.legend(name, class);
    }
    Some(chart.finish())
}

fn throughput(run: &Run, suffix: &str) -> Option<String> {
    let requests = run.requests.as_ref()?;
    let span = requests.span()?;
    let bins = bins(&requests.finished);
    let (mut came, mut ended) = (Bins::new(span, bins), Bins::new(span, bins));
    for request in &requests.finished {
        came.add(request.intended_s, 1.0);
        ended.add(request.finish_s, 1.0);
    }
    over_time(
        &format!("Arrivals and completions{suffix}"),
        "requests / s",
        &[("arrived (as intended)", "s1", came.rates()), ("finished", "s0", ended.rates())],
    )
}

fn tokens(run: &Run, suffix: &str) -> Option<String> {
    let title = format!("Tokens{suffix}");
    if let Some(output) = run.timeline_rate("output_tokens") {
        let prompt = run.timeline_rate("prompt_tokens_computed");
        let mut lines: Vec<Line> = prompt.into_iter().map(|p| ("prompt tokens computed", "s1", p)).collect();
        lines.push(("generated", "s0", output));
        return over_time(&title, "tokens / s", &lines);
    }
    let requests = run.requests.as_ref()?;
    let mut output = Bins::new(requests.span()?, bins(&requests.finished));
    for request in &requests.finished {
        output.spread(request.first_s, request.finish_s, f64::from(request.output_tokens));
    }
    over_time(&title, "tokens / s", &[("generated, evenly from first to last", "s0", output.rates())])
}

fn queue(run: &Run, suffix: &str) -> Option<String> {
    let title = format!("Running and waiting{suffix}");
    if let (Some(waiting), Some(running)) = (run.timeline("waiting"), run.timeline("running")) {
        return over_time(&title, "requests", &[("waiting", "s1", waiting), ("running", "s0", running)]);
    }
    let requests = run.requests.as_ref()?;
    let (waiting, running) = in_flight(&requests.finished, requests.span()?, 120);
    if requests.of_server() {
        let line = ("from intended arrival to end, of those that finished", "s0", running.points(|c| c));
        return over_time(&format!("In flight{suffix}"), "requests", &[line]);
    }
    let lines = [("waiting", "s1", waiting.points(|c| c)), ("running", "s0", running.points(|c| c))];
    over_time(&title, "requests", &lines)
}

/// KV use over the run's time, from the summary.
fn kv_over_time(run: &Run, suffix: &str) -> Option<String> {
    let used = run.timeline("kv_used")?;
    over_time(&format!("KV use over time{suffix}"), "blocks held, mean of a bin", &[("held", "s0", used)])
}

/// The tokens that were processed over time, for runs without a trace.
fn work_over_time(run: &Run, suffix: &str) -> Option<String> {
    if run.trace.is_some() {
        return None;
    }
    let lines = [
        ("prompt tokens computed", "s1", run.timeline_rate("prompt_tokens_computed")?),
        ("tokens generated", "s0", run.timeline_rate("output_tokens")?),
        ("drafts scored", "s3", run.timeline_rate("drafts")?),
        ("drafts accepted", "s2", run.timeline_rate("accepted")?),
    ];
    over_time(&format!("Batch composition over time{suffix}"), "tokens / s", &lines)
}

/// The gaps between tokens, from the summary's histogram, because requests do not have them.
fn gaps(runs: &[Run]) -> Option<String> {
    let all: Vec<_> = runs.iter().map(|run| run.histogram("itl")).collect();
    let bounds = || all.iter().flatten().flatten().map(|point| point.0).filter(|bound| *bound > 0.0);
    let axis = Axis::Log(bounds().reduce(f64::min)? * 0.8, bounds().reduce(f64::max)? * 1.1);
    let mut chart = Chart::new(
        "Between two steps of a request (ITL)",
        ("ms, logarithmic", axis),
        ("share of gaps", Axis::Linear(0.0, 1.0)),
    );
    for (i, (run, points)) in runs.iter().zip(&all).enumerate() {
        let class = SERIES[i % SERIES.len()];
        let Some(points) = points else { continue };
        chart.steps(points, class);
        if runs.len() > 1 {
            chart.legend(&run.name, class);
        }
        for (share, key, name) in MARKS {
            if let Some(at) = run.figure(&format!("{key}_itl_ms")) {
                let text = if runs.len() > 1 { String::new() } else { format!("{name} {}", number(at)) };
                chart.mark(at, share, class, &text);
            }
        }
    }
    Some(chart.finish())
}

fn scatter(run: &Run, suffix: &str) -> Option<String> {
    let requests = run.requests.as_ref()?;
    let (from, to) = requests.span()?;
    let every = requests.finished.len().div_ceil(MOST_DOTS).max(1);
    let drawn: Vec<(f64, f64)> =
        requests.finished.iter().step_by(every).map(|r| (r.intended_s, r.ttft_ms.max(1e-3))).collect();
    let most = drawn.iter().map(|p| p.1).reduce(f64::max)?;
    let least = drawn.iter().map(|p| p.1).reduce(f64::min)?;
    let mut chart = Chart::new(
        &format!("Time to first token by arrival{suffix}"),
        ("intended arrival, s", Axis::Linear(from, to)),
        ("TTFT, ms, logarithmic", Axis::Log(least * 0.8, most * 1.25)),
    );
    chart.dots(&drawn, "s0");
    if every > 1 {
        chart.note(format!("One request in {every} is drawn."));
    }
    Some(chart.finish())
}

fn prefix(run: &Run, suffix: &str) -> Option<String> {
    let requests = run.requests.as_ref()?;
    let span = requests.span()?;
    let bins = bins(&requests.finished);
    let (mut prompt, mut cached) = (Bins::new(span, bins), Bins::new(span, bins));
    for request in &requests.finished {
        prompt.add(request.intended_s, f64::from(request.prompt_tokens));
        cached.add(request.intended_s, f64::from(request.cached_tokens.unwrap_or(0)));
    }
    let (all, hit): (f64, f64) = (prompt.counts.iter().sum(), cached.counts.iter().sum());
    if all <= 0.0 || hit <= 0.0 {
        return None;
    }
    let points = |bins: &Bins| bins.points(|tokens| tokens);
    let mut chart = Chart::new(
        &format!("Prefix hits{suffix}"),
        ("intended arrival, s", Axis::Linear(span.0, span.1)),
        ("prompt tokens", Axis::Linear(0.0, prompt.counts.iter().copied().fold(0.0, f64::max) * 1.08)),
    );
    let area: Vec<_> = points(&cached).into_iter().map(|(x, y)| (x, 0.0, y)).collect();
    chart.area(&area, "s2");
    chart.steps(&points(&prompt), "s0");
    chart.legend("prompt tokens", "s0");
    chart.legend("of them found in the cache", "s2");
    chart.note(format!("{} of {} prompt tokens, {:.1} %", number(hit), number(all), 100.0 * hit / all));
    Some(chart.finish())
}

/// One point of a chart by step: the step, and the heights of its layers.
type Column<const N: usize> = (f64, [f64; N]);

/// The points of a trace, averaged if there are more than fit in the columns.
fn columns<const N: usize>(points: &StepPoints, of: [fn(&StepPoint) -> u64; N]) -> Vec<Column<N>> {
    let (_, groups) = points.groups(MOST_COLUMNS);
    groups.map(|group| (group.step as f64, of.map(|of| of(&group) as f64 / group.steps as f64))).collect()
}

/// A chart of layers stacked on each other over steps. Each layer has a name and a class, and holds its
/// height until the next column.
fn piled<const N: usize>(
    title: &str,
    unit: &str,
    mut columns: Vec<Column<N>>,
    end: u64,
    layers: [(&str, &'static str); N],
) -> Option<Chart> {
    columns.push((end as f64 + 1.0, columns.last()?.1));
    let (from, to) = (columns.first()?.0, columns.last()?.0);
    let most = columns.iter().map(|(_, heights)| heights.iter().sum::<f64>()).fold(0.0, f64::max);
    let mut chart =
        Chart::new(title, ("step", Axis::Linear(from, to)), (unit, Axis::Linear(0.0, most * 1.05)));
    let mut floor = vec![0.0; columns.len()];
    for (i, (name, class)) in layers.into_iter().enumerate() {
        let area: Vec<_> = columns.iter().zip(&floor).map(|((x, h), low)| (*x, *low, low + h[i])).collect();
        floor = area.iter().map(|(_, _, high)| *high).collect();
        chart.area(&area, class);
        chart.legend(name, class);
    }
    Some(chart)
}

fn means(points: &StepPoints) -> Option<String> {
    let (steps, _) = points.groups(MOST_COLUMNS);
    (steps > 1).then(|| format!("Means over {steps} steps."))
}

fn composition(run: &Run, suffix: &str) -> Option<String> {
    let points = &run.trace.as_ref()?.points;
    let columns = columns(points, [|p| p.prefill_tokens, |p| p.decode_rows, |p| p.draft_tokens]);
    let layers = [("prefill tokens", "s1"), ("decode rows", "s0"), ("draft tokens", "s3")];
    let title = format!("Batch composition by step{suffix}");
    let mut chart = piled(&title, "tokens fed", columns, points.last_step?, layers)?;
    if let Some(note) = means(points) {
        chart.note(note);
    }
    Some(chart.finish())
}

fn kv(run: &Run, suffix: &str) -> Option<String> {
    let points = &run.trace.as_ref()?.points;
    let columns = columns(points, [|p| p.used, |p| p.cached]);
    let layers = [("used", "s0"), ("free, and cached", "s2")];
    let title = format!("KV use by step{suffix}");
    let mut chart = piled(&title, "blocks", columns, points.last_step?, layers)?;
    let (peak, all) = (points.peak_used, points.num_blocks);
    let share = 100.0 * peak as f64 / all.max(1) as f64;
    let told = match points.bytes {
        // Blocks of several KV groups differ in size; the picture counts the smallest.
        Some((peak, all)) => {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            format!(
                "Peak {:.2} of {:.2} MiB, {share:.1} %; a block is the smallest of a KV group.",
                mib(peak),
                mib(all)
            )
        }
        None => format!("Peak {peak} of {all} blocks, {share:.1} %."),
    };
    chart.note(format!("{told} {}", means(points).unwrap_or_default()));
    Some(chart.finish())
}

fn states(run: &Run, suffix: &str) -> Option<String> {
    let trace = run.trace.as_ref()?;
    let samples = trace.states(MOST_COLUMNS);
    let columns = samples.into_iter().map(|(step, counts)| (step as f64, counts.map(|n| n as f64))).collect();
    let layers = [("writable", "writable"), ("sealed", "sealed"), ("shared", "shared"), ("cached", "cached")];
    let end = trace.steps.last()?.step;
    Some(piled(&format!("Block states by step{suffix}"), "blocks", columns, end, layers)?.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_as_numpy_does() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(
            [0.0, 0.5, 0.51, 0.75, 1.0].map(|q| quantile(&values, q).unwrap()),
            [1.0, 3.0, 3.06, 5.0, 8.0]
        );
        assert_eq!(quantile(&[], 0.5), None);
    }
}
