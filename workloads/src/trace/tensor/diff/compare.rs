//! Compares events one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::index::{Other, left_out};
use super::{
    Deltas, DiffCell, DiffKv, DiffLayer, DiffOptions, DiffShape, DiffStep, DiffToken, Difference, Parting,
    TensorDiff,
};
use crate::Error;
use crate::trace::tensor::files::TensorFiles;
use crate::trace::tensor::record::{LEFT_OUT, TensorRecord, TensorValue};
use crate::trace::tensor::{position_ranges, tensor_name};

/// The event that says which tokens of a block run through all layers.
const JUDGED: &str = "SKIP_JUDGE_RESULT";
/// Shapes that differ are listed up to so many.
const MOST_SHAPES: usize = 64;

/// A comparison that goes on.
pub(super) struct Comparison {
    a: TensorFiles,
    b: TensorFiles,
    other: Other,
    tolerance: f64,
    found: TensorDiff,
    /// What is known of the present step: of the one in which the runs part, once they have.
    step: StepFound,
    steps: BTreeMap<u64, (u64, f64)>,
}

/// What was found in a step.
#[derive(Default)]
struct StepFound {
    step: Option<u64>,
    /// For each layer the greatest difference, and the events that differ.
    layers: BTreeMap<u16, (Option<f64>, BTreeSet<String>)>,
    tokens: BTreeMap<(String, u32), DiffToken>,
    kv: BTreeMap<u16, [BTreeSet<u32>; 2]>,
    shapes: Vec<DiffShape>,
    cells: BTreeMap<(u16, u32), f64>,
    /// For each request with a canvas an event of its pass, and the positions that ran through all layers of the first trace.
    canvases: BTreeMap<String, (TensorRecord, Option<Vec<u32>>)>,
}

impl StepFound {
    fn token(&mut self, a: &TensorRecord, position: u32) -> &mut DiffToken {
        let token = || DiffToken { request_id: a.request_id.clone(), position, ..DiffToken::default() };
        self.tokens.entry((a.request_id.clone(), position)).or_insert_with(token)
    }
}

impl Comparison {
    pub fn new(a: &Path, b: &Path, other: Other, options: DiffOptions) -> Self {
        let left_out = [0, other.left_out];
        Self {
            a: TensorFiles::new(a),
            b: TensorFiles::new(b),
            other,
            tolerance: options.tolerance,
            found: TensorDiff { compared: Deltas { left_out, ..Deltas::default() }, ..TensorDiff::default() },
            step: StepFound::default(),
            steps: BTreeMap::new(),
        }
    }

    /// Compares an event of the first trace.
    pub fn event(&mut self, a: &TensorRecord) -> Result<(), Error> {
        if a.event == LEFT_OUT {
            self.found.compared.left_out[0] += left_out(a);
            return Ok(());
        }
        if self.found.first_difference.is_none() && self.step.step != Some(a.step) {
            self.step = StepFound { step: Some(a.step), ..StepFound::default() };
        }
        let positions = a.kept_positions();
        if a.pass.is_none() && positions.is_empty() {
            // It repeats the shapes of another event, and does not say of which positions.
            return Ok(());
        }
        if self.details(a) && a.pass.is_some() {
            self.step.canvases.entry(a.request_id.clone()).or_insert_with(|| (a.clone(), None));
        }
        if let Some((_, active)) = self.step.canvases.get_mut(&a.request_id)
            && a.event == JUDGED
        {
            *active = Some(a.counts("active").to_vec());
        }
        let partner = self.other.partner(a, positions.first().copied().unwrap_or(0));
        let rows: Vec<_> = positions.iter().map(|&position| self.other.row(a, position)).collect();
        let partners: BTreeSet<usize> =
            partner.into_iter().chain(rows.iter().flatten().map(|row| row.0)).collect();
        if partners.is_empty() {
            self.found.compared.only_in_a += 1;
            return Ok(());
        }
        for &at in &partners {
            self.other.events[at].matched = true;
        }
        self.found.compared.events += 1;
        if let Some(layer) = a.layer.filter(|_| self.details(a)) {
            self.step.layers.entry(layer).or_default();
        }
        let mut differs = false;
        if let Some(at) = partner {
            differs |= self.shapes(a, at);
        }
        for tensor in a.tensors() {
            differs |= self.tensor(a, tensor, &positions, &rows, partner)?;
        }
        if a.event == "LOGITS" && self.details(a) {
            self.predictions(a, &positions, &rows);
        }
        self.found.compared.events_different += u64::from(differs);
        if differs {
            self.steps.entry(a.step).or_default().0 += 1;
        }
        Ok(())
    }

    /// Whether the details of an event's step are gathered.
    fn details(&self, a: &TensorRecord) -> bool {
        self.step.step == Some(a.step)
    }

    /// Compares the shapes of an event with those of its partner, where both should have the same rows.
    fn shapes(&mut self, a: &TensorRecord, at: usize) -> bool {
        let other = &self.other.events[at];
        let b = &other.record;
        if a.pass.is_none() && a.positions != b.positions {
            return false;
        }
        let mut differs = None;
        for (tensor, shape) in &a.shapes {
            let Some(beside) = b.shapes.get(tensor).filter(|beside| *beside != shape) else { continue };
            differs.get_or_insert_with(|| tensor.clone());
            if self.step.step == Some(a.step) && self.step.shapes.len() < MOST_SHAPES {
                self.step.shapes.push(DiffShape {
                    layer: a.layer,
                    event: a.event.clone(),
                    tensor: tensor.clone(),
                    request_id: a.request_id.clone(),
                    a: shape.clone(),
                    b: beside.clone(),
                });
            }
        }
        let Some(tensor) = differs else { return false };
        let row = a.kept_positions().into_iter().find(|position| !other.positions.contains(position));
        let other_step = b.step;
        self.differs(a, &tensor, (row, None, Parting::Shape), other_step);
        true
    }

    /// Compares a tensor of an event, row by row if both traces have it, otherwise by its statistics.
    fn tensor(
        &mut self,
        a: &TensorRecord,
        tensor: &str,
        positions: &[u32],
        rows: &[Option<(usize, usize)>],
        partner: Option<usize>,
    ) -> Result<bool, Error> {
        let name = tensor_name(a, tensor);
        let (mut compared, mut missing, mut differs) = (0, 0, false);
        for (row, (&position, other)) in positions.iter().zip(rows).enumerate() {
            let Some((at, other_row)) = *other else {
                missing += 1;
                continue;
            };
            let b = &self.other.events[at].record;
            let (other_step, other_name) = (b.step, tensor_name(b, tensor));
            let Some(x) = self.a.row(a.step, &name, row)? else { break };
            let Some(y) = self.b.row(other_step, &other_name, other_row)? else { break };
            compared += 1;
            let (off, same) = (distance(x, y), x == y);
            let differs_here = if self.tolerance > 0.0 { off > self.tolerance } else { !same };
            self.note(a, tensor, position, (off, differs_here));
            if differs_here {
                differs = true;
                self.differs(a, tensor, (Some(position), Some(off), Parting::Values), other_step);
            }
        }
        self.found.compared.rows += compared;
        self.found.compared.rows_only_in_a += missing;
        if compared > 0 {
            return Ok(differs);
        }
        let Some(other) = partner.map(|at| &self.other.events[at]) else { return Ok(false) };
        let same_rows = other.record.positions == a.positions
            && (a.pass.is_some() || (a.kept.is_none() && other.record.kept.is_none()));
        let Some((x, y)) = a.values.get(tensor).zip(other.record.values.get(tensor)).filter(|_| same_rows)
        else {
            self.found.compared.not_comparable += 1;
            return Ok(false);
        };
        self.found.compared.statistics += 1;
        if alike(x, y, self.tolerance) {
            return Ok(false);
        }
        let other_step = other.record.step;
        self.differs(a, tensor, (None, None, Parting::Statistics), other_step);
        Ok(true)
    }

    /// Takes note of how far a row is off, for the details of its step.
    fn note(&mut self, a: &TensorRecord, tensor: &str, position: u32, (off, differs): (f64, bool)) {
        if off > 0.0 {
            let most = &mut self.steps.entry(a.step).or_default().1;
            *most = most.max(off);
        }
        if !self.details(a) {
            return;
        }
        let token = self.step.token(a, position);
        let most = if a.event == "LOGITS" { &mut token.logits_max_abs } else { &mut token.max_abs };
        *most = Some(most.unwrap_or(0.0).max(off));
        let Some(layer) = a.layer else { return };
        let most = &mut self.step.layers.entry(layer).or_default().0;
        *most = Some(most.unwrap_or(0.0).max(off));
        if differs {
            let cell = self.step.cells.entry((layer, position)).or_default();
            *cell = cell.max(off);
            if a.event.starts_with("KV_CACHE") {
                let half = usize::from(tensor.contains("v_") || tensor.ends_with("_v"));
                self.step.kv.entry(layer).or_default()[half].insert(position);
            }
        }
    }

    /// Takes note of the tokens that logits make the most likely.
    fn predictions(&mut self, a: &TensorRecord, positions: &[u32], rows: &[Option<(usize, usize)>]) {
        for (row, (&position, other)) in positions.iter().zip(rows).enumerate() {
            let beside = other.and_then(|(at, other_row)| {
                self.other.events[at].record.counts("predictions").get(other_row).copied()
            });
            let token = self.step.token(a, position);
            token.predictions = [a.counts("predictions").get(row).copied(), beside];
        }
    }

    /// Takes note of a difference.
    fn differs(
        &mut self,
        a: &TensorRecord,
        tensor: &str,
        (row, max_abs, kind): (Option<u32>, Option<f64>, Parting),
        other_step: u64,
    ) {
        if let Some(layer) = a.layer.filter(|_| self.details(a)) {
            self.step.layers.entry(layer).or_default().1.insert(a.event.clone());
        }
        self.found.first_difference.get_or_insert_with(|| Difference {
            step: a.step,
            other_step,
            layer: a.layer,
            event: a.event.clone(),
            tensor: tensor.to_owned(),
            row,
            max_abs: max_abs.and_then(finite),
            kind,
            request_id: a.request_id.clone(),
            block: a.block,
            pass: a.pass,
        });
    }

    pub fn finish(mut self) -> TensorDiff {
        self.found.compared.only_in_b =
            self.other.events.iter().filter(|event| !event.matched).count() as u64;
        if self.found.first_difference.is_none() {
            return self.found;
        }
        let StepFound { layers, mut tokens, kv, shapes, cells, canvases, .. } = self.step;
        for token in tokens.values_mut() {
            let Some((a, active)) = canvases.get(&token.request_id) else { continue };
            let beside = self.other.beside(a, JUDGED).map(|judged| judged.counts("active"));
            let state = |active: &[u32]| if active.contains(&token.position) { "active" } else { "stable" };
            token.state = [active.as_deref().map(state), beside.map(state)];
        }
        let layer = |(layer, (most, events)): (u16, (Option<f64>, BTreeSet<String>))| DiffLayer {
            layer,
            max_abs: most.and_then(finite),
            events: events.into_iter().collect(),
        };
        let ranges = |set: &BTreeSet<u32>| position_ranges(&set.iter().copied().collect::<Vec<_>>());
        self.found.layers = layers.into_iter().map(layer).collect();
        self.found.tokens = tokens.into_values().collect();
        self.found.kv =
            kv.iter().map(|(&layer, [k, v])| DiffKv { layer, k: ranges(k), v: ranges(v) }).collect();
        self.found.shapes = shapes;
        let cell = |((layer, position), off)| DiffCell { layer, position, max_abs: finite(off) };
        self.found.cells = cells.into_iter().map(cell).collect();
        let steps = self.steps.into_iter().filter(|(_, (events, _))| *events > 0);
        self.found.steps =
            steps.map(|(step, (events, most))| DiffStep { step, events, max_abs: finite(most) }).collect();
        self.found
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// The greatest absolute difference of two rows of f32: 0 if their bits are the same, infinite if one has a value that is not a number, or
/// more values.
fn distance(x: &[u8], y: &[u8]) -> f64 {
    if x == y {
        return 0.0;
    }
    if x.len() != y.len() {
        return f64::INFINITY;
    }
    let value = |bytes: &[u8; 4]| f64::from(f32::from_le_bytes(*bytes));
    let pairs = x.as_chunks::<4>().0.iter().zip(y.as_chunks::<4>().0);
    pairs.filter(|(x, y)| x != y).fold(0.0, |most, (x, y)| {
        let off = (value(x) - value(y)).abs();
        if off.is_nan() { f64::INFINITY } else { most.max(off) }
    })
}

/// Whether statistics are the same within a tolerance.
fn alike(x: &TensorValue, y: &TensorValue, tolerance: f64) -> bool {
    let near = |x: Option<f64>, y: Option<f64>| match (x, y) {
        (Some(x), Some(y)) => (x - y).abs() <= tolerance,
        (x, y) => x == y,
    };
    match (x, y) {
        (
            TensorValue::Stats { min, max, mean, std, .. },
            TensorValue::Stats { min: other_min, max: other_max, mean: other_mean, std: other_std, .. },
        ) => {
            let wide = |value: &Option<f32>| value.map(f64::from);
            near(wide(min), wide(other_min))
                && near(wide(max), wide(other_max))
                && near(*mean, *other_mean)
                && near(*std, *other_std)
        }
        _ => x == y,
    }
}
