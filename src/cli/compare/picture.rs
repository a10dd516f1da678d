//! Draws the comparison as a chart: latencies with their spread above, acceptance below.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::Report;
use super::runs::{RUNS, Run};
use crate::cli::machine;

const SIZE: (u32, u32) = (1000, 720);
/// The colours are from the palette of Okabe and Ito, which colour-blind people can tell apart, by
/// lightness too.
const EAGER: RGBColor = RGBColor(230, 159, 0);
const GRAPH: RGBColor = RGBColor(0, 114, 178);
const ALARM: RGBColor = RGBColor(213, 94, 0);
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The chart as SVG.
///
/// # Errors
///
/// No error is expected, because it is drawn into memory.
pub fn svg(report: &Report<'_>) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        titles(&root, report)?;
        let (_, charts) = root.split_vertically(92);
        let (upper, lower) = charts.split_vertically(350);
        latencies(&root, &upper, report)?;
        acceptance(&root, &lower, report)?;
        root.present()?;
    }
    Ok(text)
}

fn write(
    root: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: i32,
    pos: Pos,
    color: RGBColor,
) -> anyhow::Result<()> {
    let style = TextStyle::from((FONT, size).into_font()).color(&color).pos(pos);
    root.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

const LEFT: Pos = Pos { h_pos: HPos::Left, v_pos: VPos::Top };
const BELOW: Pos = Pos { h_pos: HPos::Center, v_pos: VPos::Top };
const ABOVE: Pos = Pos { h_pos: HPos::Center, v_pos: VPos::Bottom };

fn titles(root: &Area<'_>, report: &Report<'_>) -> anyhow::Result<()> {
    let (info, shape) = (report.info, report.shape);
    let draft = report.speculation.draft.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let title = format!("Speculation compared: {}, draft {draft}", info.model_id);
    write(root, &title, (20, 12), 20, LEFT, BLACK)?;
    let batch = format!(
        "batch {}, {} prompt tokens, {} generated, k {}; {}, {}, {} threads; revision {}",
        shape.batch_size,
        shape.input_len,
        shape.output_len,
        report.speculation.length,
        machine::name(),
        info.isa,
        info.threads,
        pagedraft::REVISION,
    );
    write(root, &batch, (20, 40), 13, LEFT, BLACK)?;
    for (x, color, name) in [(20, EAGER, "eager"), (110, GRAPH, "graph")] {
        root.draw(&Rectangle::new([(x, 66), (x + 14, 80)], color.filled()))?;
        write(root, name, (x + 20, 66), 13, LEFT, BLACK)?;
    }
    let whiskers = format!("whiskers: least and greatest of {} batches", report.iterations());
    write(root, &whiskers, (200, 66), 13, LEFT, BLACK)?;
    root.draw(&PathElement::new(vec![(520, 73), (540, 73)], BLACK.stroke_width(3)))?;
    write(root, "drafts right by themselves, behind a miss too (noncausal)", (546, 66), 13, LEFT, BLACK)
}

/// The axes, the grid lines, and the names of the four ways below them.
fn chart<'a, 'b>(
    root: &Area<'_>,
    area: &'a Area<'b>,
    most: f64,
    what: &str,
    report: &Report<'_>,
) -> anyhow::Result<Chart<'a, 'b>> {
    let mut chart = ChartBuilder::on(area)
        .margin_left(16)
        .margin_right(20)
        .margin_top(20)
        .x_label_area_size(34)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..4.0, 0.0..most)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_labels(6)
        .y_desc(what)
        .label_style((FONT, 13).into_font())
        .light_line_style(WHITE)
        .draw()?;
    for (group, run) in RUNS.iter().step_by(2).enumerate() {
        let (x, y) = chart.plotting_area().map_coordinate(&(group as f64 + 0.5, 0.0));
        write(root, &run.name(report.speculation), (x, y + 8), 14, BELOW, BLACK)?;
    }
    Ok(chart)
}

/// The left and the right edge of a run's bar.
fn edges(i: usize) -> (f64, f64) {
    let left = (i / 2) as f64 + if RUNS[i].eager { 0.14 } else { 0.52 };
    (left, left + 0.34)
}

fn color(run: Run) -> RGBColor {
    if run.eager { EAGER } else { GRAPH }
}

fn latencies(root: &Area<'_>, area: &Area<'_>, report: &Report<'_>) -> anyhow::Result<()> {
    let spreads: Vec<_> = report.runs.iter().map(super::measured::Measured::spread).collect();
    let most = spreads.iter().flatten().map(|s| s.max()).fold(0.0, f64::max).max(1e-9) * 1.16;
    let chart = chart(root, area, most, "average latency, s", report)?;
    let plot = chart.plotting_area();
    for (i, spread) in spreads.iter().enumerate() {
        let Some(spread) = spread else { continue };
        let (left, right) = edges(i);
        let middle = f64::midpoint(left, right);
        plot.draw(&Rectangle::new([(left, 0.0), (right, spread.mean())], color(RUNS[i]).filled()))?;
        let line = |points: Vec<(f64, f64)>| plot.draw(&PathElement::new(points, BLACK.stroke_width(1)));
        line(vec![(middle, spread.min()), (middle, spread.max())])?;
        for end in [spread.min(), spread.max()] {
            line(vec![(middle - 0.04, end), (middle + 0.04, end)])?;
        }
        let (x, y) = plot.map_coordinate(&(middle, spread.max()));
        write(root, &format!("{:.4}", spread.mean()), (x, y - 4), 13, ABOVE, BLACK)?;
        if !report.runs[i].parity.is_equal() {
            write(root, "DIFFERENT", (x, y - 20), 13, ABOVE, ALARM)?;
        }
    }
    Ok(())
}

fn acceptance(root: &Area<'_>, area: &Area<'_>, report: &Report<'_>) -> anyhow::Result<()> {
    let chart = chart(root, area, 1.1, "accepted / drafted", report)?;
    let plot = chart.plotting_area();
    for (i, run) in report.runs.iter().enumerate() {
        let (left, right) = edges(i);
        let middle = f64::midpoint(left, right);
        let Some(rate) = run.metrics.draft_acceptance_rate() else {
            if RUNS[i].proposer(report.speculation) != "none" {
                let (x, y) = plot.map_coordinate(&(middle, 0.0));
                write(root, "no drafts", (x, y - 4), 13, ABOVE, BLACK)?;
            }
            continue;
        };
        plot.draw(&Rectangle::new([(left, 0.0), (right, rate)], color(RUNS[i]).filled()))?;
        let alone = run.metrics.draft_acceptance_rate_noncausal().unwrap_or(rate);
        plot.draw(&PathElement::new(vec![(left, alone), (right, alone)], BLACK.stroke_width(3)))?;
        let (x, y) = plot.map_coordinate(&(middle, rate.max(alone)));
        write(root, &format!("{rate:.3}"), (x, y - 5), 13, ABOVE, BLACK)?;
    }
    Ok(())
}
