//! Draws charts as SVG by hand. Colours are classes of the page's style, so that one chart serves the light
//! and the dark style.
//!
//! (`bench compare` draws with plotters, into a file of its own. That library writes colours into the
//! file.)

use std::fmt::Write;

use super::escape::escape;
use super::scale::{Scale, label};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 42.0;

/// A chart with two axes.
#[derive(Debug)]
pub(super) struct Chart {
    x: Scale,
    y: Scale,
    body: String,
    legend: Vec<(String, &'static str)>,
    title: String,
    x_name: String,
    y_name: String,
    note: Option<String>,
}

/// The ends of an axis.
#[derive(Clone, Copy, Debug)]
pub(super) enum Axis {
    Linear(f64, f64),
    Log(f64, f64),
}

impl Axis {
    fn scale(self, start: f64, end: f64) -> Scale {
        match self {
            Self::Linear(from, to) => Scale::linear(from, to, start, end),
            Self::Log(from, to) => Scale::log(from, to, start, end),
        }
    }
}

/// The classes of lines that stand for runs, in order. If there are more runs, they repeat.
pub(super) const SERIES: [&str; 6] = ["s0", "s1", "s2", "s3", "s4", "s5"];

impl Chart {
    /// An empty chart. The names of axes include their units.
    pub(super) fn new(title: &str, x: (&str, Axis), y: (&str, Axis)) -> Self {
        Self {
            x: x.1.scale(LEFT, WIDTH - RIGHT),
            y: y.1.scale(HEIGHT - BOTTOM, TOP),
            body: String::new(),
            legend: Vec::new(),
            title: title.to_owned(),
            x_name: x.0.to_owned(),
            y_name: y.0.to_owned(),
            note: None,
        }
    }

    /// Adds a note below the chart.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.note = Some(text.into());
    }

    /// Adds a class to the legend.
    pub(super) fn legend(&mut self, name: &str, class: &'static str) {
        self.legend.push((name.to_owned(), class));
    }

    fn path(&self, points: impl IntoIterator<Item = (f64, f64)>) -> String {
        let mut path = String::new();
        for (x, y) in points {
            let letter = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", self.x.at(x), self.y.at(y));
        }
        path
    }

    /// Draws a line through points.
    pub(super) fn line(&mut self, points: &[(f64, f64)], class: &'static str) {
        let path = self.path(points.iter().copied());
        let _ = write!(self.body, r#"<path class="line {class}" d="{path}"/>"#);
    }

    /// Draws a stepped line: each value holds until the next point.
    pub(super) fn steps(&mut self, points: &[(f64, f64)], class: &'static str) {
        let corners = points.windows(2).flat_map(|p| [p[0], (p[1].0, p[0].1)]).chain(points.last().copied());
        let path = self.path(corners);
        let _ = write!(self.body, r#"<path class="line {class}" d="{path}"/>"#);
    }

    /// Fills the area between two heights, which hold from point to point: (x, low, high).
    pub(super) fn area(&mut self, points: &[(f64, f64, f64)], class: &'static str) {
        let Some(last) = points.last() else { return };
        let upper =
            points.windows(2).flat_map(|p| [(p[0].0, p[0].2), (p[1].0, p[0].2)]).chain([(last.0, last.2)]);
        let lower = points.windows(2).rev().flat_map(|p| [(p[1].0, p[0].1), (p[0].0, p[0].1)]);
        let path = self.path(upper.chain([(last.0, last.1)]).chain(lower));
        let _ = write!(self.body, r#"<path class="area {class}" d="{path}Z"/>"#);
    }

    /// Draws points.
    pub(super) fn dots(&mut self, points: &[(f64, f64)], class: &'static str) {
        let _ = write!(self.body, r#"<g class="dots {class}">"#);
        for (x, y) in points {
            let _ =
                write!(self.body, r#"<circle cx="{:.1}" cy="{:.1}" r="2"/>"#, self.x.at(*x), self.y.at(*y));
        }
        self.body.push_str("</g>");
    }

    /// Draws a bar from the axis upwards. `says` is shown when the bar is pointed at.
    pub(super) fn bar(&mut self, from: f64, to: f64, height: f64, class: &'static str, says: &str) {
        let (left, right, top, floor) = (self.x.at(from), self.x.at(to), self.y.at(height), HEIGHT - BOTTOM);
        let _ = write!(
            self.body,
            r#"<rect class="bar {class}" x="{left:.1}" y="{top:.1}" width="{:.1}" height="{:.1}"><title>{}</title></rect>"#,
            (right - left).max(0.5),
            (floor - top).max(0.0),
            escape(says),
        );
    }

    /// Fills rectangles between the values `[left, right, floor, top]`, each as strongly as its share of 1 says, in steps of a tenth.
    pub(super) fn cells(&mut self, cells: &[([f64; 4], f64)], class: &'static str) {
        // One path for all cells of a strength keeps the page small.
        let mut paths = vec![String::new(); 11];
        for &([left, right, floor, top], strength) in cells {
            let (left, right, floor, top) =
                (self.x.at(left), self.x.at(right), self.y.at(floor), self.y.at(top));
            let path = &mut paths[(strength.clamp(0.0, 1.0) * 10.0).ceil() as usize];
            let (width, height) = (right - left, floor - top);
            let _ = write!(path, "M{left:.1} {top:.1}h{width:.1}v{height:.1}h{:.1}z", -width);
        }
        for (tenths, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            let opacity = tenths as f64 / 10.0;
            let _ = write!(self.body, r#"<path class="bar {class}" fill-opacity="{opacity}" d="{path}"/>"#);
        }
    }

    /// Draws a mark on a line, with a label beside it.
    pub(super) fn mark(&mut self, x: f64, y: f64, class: &'static str, text: &str) {
        let (at_x, at_y) = (self.x.at(x), self.y.at(y));
        let _ = write!(self.body, r#"<circle class="mark {class}" cx="{at_x:.1}" cy="{at_y:.1}" r="3.5"/>"#);
        let (anchor, dx) = if at_x > WIDTH * 0.72 { ("end", -7.0) } else { ("start", 7.0) };
        let _ = write!(
            self.body,
            r#"<text class="mark-text" x="{:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#,
            at_x + dx,
            at_y + if anchor == "end" { -5.0 } else { 10.0 },
            escape(text),
        );
    }

    /// Writes a text in the plot.
    pub(super) fn text(&mut self, x: f64, y: f64, text: &str) {
        let _ = write!(
            self.body,
            r#"<text class="mark-text" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            self.x.at(x),
            self.y.at(y) - 5.0,
            escape(text),
        );
    }

    /// The finished figure with its title, legend and note.
    pub(super) fn finish(self) -> String {
        let mut html = format!("<figure><figcaption>{}</figcaption>", escape(&self.title));
        if !self.legend.is_empty() {
            html.push_str(r#"<div class="keys">"#);
            for (name, class) in &self.legend {
                let _ = write!(html, r#"<span><i class="key {class}"></i>{}</span>"#, escape(name));
            }
            html.push_str("</div>");
        }
        let _ = write!(
            html,
            r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">{}{}</svg>"#,
            escape(&self.title),
            self.axes(),
            self.body,
        );
        if let Some(note) = &self.note {
            let _ = write!(html, r#"<p class="note">{}</p>"#, escape(note));
        }
        html.push_str("</figure>");
        html
    }

    fn axes(&self) -> String {
        let (mut svg, floor, right) = (String::new(), HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in self.y.ticks(5) {
            let y = self.y.at(tick);
            let _ = write!(
                svg,
                r#"<path class="grid" d="M{LEFT} {y:.1}H{right}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 6.0,
                y + 4.0,
                label(tick),
            );
        }
        for tick in self.x.ticks(7) {
            let x = self.x.at(tick);
            let _ = write!(
                svg,
                r#"<path class="grid" d="M{x:.1} {floor}v4"/><text class="tick" x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                floor + 17.0,
                label(tick),
            );
        }
        let _ = write!(
            svg,
            r#"<path class="axis" d="M{LEFT} {floor}H{right}"/><text class="name" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text><text class="name" transform="translate(13 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            f64::midpoint(LEFT, right),
            HEIGHT - 6.0,
            escape(&self.x_name),
            f64::midpoint(TOP, floor),
            escape(&self.y_name),
        );
        svg
    }
}
