//! A decoder that is cut behind some of its layers, so that tokens of a prompt may be dropped between two runs of layers.
//!
//! Each run of layers is a segment of the step and keeps its KV in a group of its own, because a sequence may have fewer tokens behind a
//! cut than before it. Rows that reach a cut in one step and go on in a later one wait in a scratch group of residual rows.

use std::ops::Range;

use pagedraft_block_manager::{GroupId, KvGroup, KvPart, LayerSet, PartKind};

use crate::architecture::{Architecture, Attended, Indexed, Layered};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::dense::{DenseDecoder, StepLimits, heads_shape};
use crate::device::{Device, Op};
use crate::dsa::{self, SparseDecoder};
use crate::error::ModelError;
use crate::kv::{KvRef, PartShape};

/// A run of layers between two cuts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRun {
    /// Its layers.
    pub layers: Range<u16>,
    /// The group of its keys and values.
    pub group: GroupId,
    /// The scratch group in which rows wait behind it; `None` if they never do, as behind the last run.
    pub hold: Option<GroupId>,
}

/// The runs of layers of a model that is cut behind each layer of `cuts`, which ascend and are below the last layer.
#[must_use]
pub fn layer_runs(num_layers: u16, cuts: &[u16]) -> Vec<LayerRun> {
    let count = cuts.len() as u8 + 1;
    let mut start = 0;
    let ends = cuts.iter().map(|&cut| cut + 1).chain([num_layers]);
    let run = |(id, end): (u8, u16)| {
        let layers = start..end;
        start = end;
        LayerRun { layers, group: GroupId(id), hold: (id + 1 < count).then_some(GroupId(count + id)) }
    };
    (0u8..).zip(ends).map(run).collect()
}

/// The runs of layers of a model with this configuration. Rows of a canvas never wait: a pass over it is whole in a step.
#[must_use]
pub fn model_runs(config: &ModelConfig, cuts: &[u16]) -> Vec<LayerRun> {
    let mut runs = layer_runs(config.num_layers as u16, cuts);
    if config.mask_token_id.is_some() {
        runs.iter_mut().for_each(|run| run.hold = None);
    }
    runs
}

/// Whether a model of this configuration can be cut behind `cuts`.
///
/// # Errors
///
/// Why not, to be read behind the name of the model: cuts that do not ascend, or that have no layer behind them; layers with a sliding
/// window; a layer behind a cut whose keys are chosen by an indexer before it, which knows of other tokens.
pub fn check(config: &ModelConfig, cuts: &[u16]) -> Result<(), String> {
    let num_layers = config.num_layers as u16;
    if !cuts.is_sorted_by(|a, b| a < b) {
        return Err(format!("the layers {cuts:?} behind which it is cut do not ascend"));
    }
    if let Some(&last) = cuts.last().filter(|&&last| last + 1 >= num_layers) {
        return Err(format!(
            "tokens are to be dropped behind layer {last}, and its last layer is {}: name layers from 0 to {}",
            num_layers - 1,
            num_layers.saturating_sub(2)
        ));
    }
    if !cuts.is_empty() && config.windows.iter().any(Option::is_some) {
        return Err("it has layers with a sliding window".to_owned());
    }
    let Some(dsa) = &config.dsa else { return Ok(()) };
    let can = |cut: u16| dsa.has_indexer(usize::from(cut) + 1);
    let Some(&cut) = cuts.iter().find(|&&cut| !can(cut)) else { return Ok(()) };
    let possible: Vec<u16> = (0..num_layers - 1).filter(|&cut| can(cut)).collect();
    Err(format!(
        "tokens are to be dropped behind layer {cut}, and the keys of layer {} are chosen by the indexer of layer {}, which knows of the tokens that were dropped: name layers of {possible:?}",
        cut + 1,
        dsa.index_sources[usize::from(cut) + 1]
    ))
}

/// The KV groups of a decoder that is cut behind `cuts`: one for each [run](model_runs) of layers, then those in which rows wait.
/// `token_bytes` says what a token takes in one layer of a part: see [`Device::token_bytes`].
///
/// # Errors
///
/// Those of `token_bytes`.
pub fn kv_groups(
    config: &ModelConfig,
    cuts: &[u16],
    token_bytes: impl Fn(PartShape) -> Result<usize, ModelError>,
) -> Result<Vec<KvGroup>, ModelError> {
    let runs = model_runs(config, cuts);
    let part = |kind, layers, shape| -> Result<KvPart, ModelError> {
        let layers = LayerSet::range(layers);
        Ok(KvPart { kind, layers, bytes_per_token: token_bytes(shape)?, tiered: false })
    };
    let group = |id: GroupId, name: String, parts| KvGroup { id, name, parts, ..KvGroup::dense(0, 0) };
    let kept = runs.iter().map(|run| {
        let name = format!("layers-{}-{}", run.layers.start, run.layers.end - 1);
        let layers = run.layers.clone();
        let parts = match &config.dsa {
            Some(dsa) => dsa::parts(dsa, layers, &token_bytes)?,
            None => vec![part(PartKind::Heads, layers, heads_shape(config))?],
        };
        Ok(group(run.group, name, parts))
    });
    let held = runs.iter().filter_map(|run| {
        let (behind, hold) = (run.layers.end - 1, run.hold?);
        let shape = PartShape::Rows { width: config.hidden_size };
        let parts = part(PartKind::Residual, behind..behind + 1, shape).map(|part| vec![part]);
        Some(parts.map(|parts| group(hold, format!("held-behind-{behind}"), parts)))
    });
    kept.chain(held).collect()
}

/// Loads a decoder onto `device` in as many segments as it has [runs](layer_runs) of layers between the `cuts`.
///
/// # Errors
///
/// Those of [`DenseDecoder::load`] or [`SparseDecoder::load`]; a model that cannot be cut so (see [`check`]).
pub fn load<D: Device>(
    device: &mut D,
    checkpoint: &Checkpoint,
    limits: StepLimits,
    cuts: &[u16],
) -> Result<Box<dyn Architecture<D::Buf>>, ModelError> {
    let config = checkpoint.config();
    check(config, cuts).map_err(|why| ModelError::BadInputs { what: format!("it cannot be cut: {why}") })?;
    let groups = kv_groups(config, cuts, |shape| device.token_bytes(shape))?;
    let runs = model_runs(config, cuts);
    Ok(if config.dsa.is_some() {
        Box::new(CutDecoder { model: SparseDecoder::load_grouped(device, checkpoint, limits, groups)?, runs })
    } else {
        Box::new(CutDecoder { model: DenseDecoder::load_grouped(device, checkpoint, limits, groups)?, runs })
    })
}

/// Loads a dense decoder onto `device` that is run a layer at a time, so that its queries can be looked at behind each layer. All tokens
/// run through all of them, and one group holds their keys and values.
///
/// # Errors
///
/// Those of [`DenseDecoder::load`].
pub fn layerwise<D: Device>(
    device: &mut D,
    checkpoint: &Checkpoint,
    limits: StepLimits,
) -> Result<Box<dyn Architecture<D::Buf>>, ModelError> {
    let model = DenseDecoder::load(device, checkpoint, limits)?;
    let layers = 0..checkpoint.config().num_layers as u16;
    let run = |layer| LayerRun { layers: layer..layer + 1, group: GroupId(0), hold: None };
    Ok(Box::new(CutDecoder { model, runs: layers.map(run).collect() }))
}

/// A decoder in as many segments as it has runs of layers.
struct CutDecoder<M> {
    model: M,
    runs: Vec<LayerRun>,
}

impl<M> CutDecoder<M> {
    /// The place where rows wait behind a run.
    fn held(&self, run: usize) -> Option<KvRef> {
        let run = self.runs.get(run)?;
        Some(KvRef { group: run.hold?, part: 0, layer: run.layers.end - 1 })
    }

    /// The last layer of a run.
    fn last(&self, run: usize) -> Option<usize> {
        Some(usize::from(self.runs.get(run)?.layers.end) - 1)
    }
}

impl<B: Copy + Send, M: Layered<B>> Architecture<B> for CutDecoder<M> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn kv(&self) -> &[KvGroup] {
        self.model.kv()
    }

    fn shapes(&self) -> &[Vec<PartShape>] {
        self.model.shapes()
    }

    fn num_segments(&self) -> usize {
        self.runs.len()
    }

    fn segment(&self, index: usize, rows: usize, ops: &mut Vec<Op<B>>) {
        let x = self.model.residual();
        let Some(run) = self.runs.get(index) else { return };
        match index.checked_sub(1) {
            None => self.model.embed(rows, ops),
            Some(before) => ops.extend(self.held(before).map(|kv| Op::Fetch { x, kv, rows })),
        }
        self.model.layers(run.layers.start.into()..run.layers.end.into(), rows, ops);
        if let Some(kv) = self.held(index) {
            ops.push(Op::Hold { x, kv, rows });
        }
    }

    fn head(&self, rows: usize, ops: &mut Vec<Op<B>>) {
        self.model.head(rows, ops);
    }

    fn attended(&self, segment: usize) -> Option<Attended<B>> {
        self.model.attended_in(self.last(segment)?)
    }

    fn indexed(&self, segment: usize) -> Option<Indexed<B>> {
        self.model.indexed_in(self.last(segment)?)
    }

    fn residual(&self) -> B {
        self.model.residual()
    }

    fn logits(&self) -> B {
        self.model.logits()
    }

    fn final_hidden(&self) -> B {
        self.model.final_hidden()
    }

    fn taps(&self) -> &[B] {
        self.model.taps()
    }

    fn set_taps(&mut self, taps: Vec<B>) {
        self.model.set_taps(taps);
    }

    fn indexer_layers(&self) -> &[u16] {
        self.model.indexer_layers()
    }

    fn selected_keys(&self) -> usize {
        self.model.selected_keys()
    }

    fn selections(&self) -> &[B] {
        self.model.selections()
    }

    fn set_selections(&mut self, selections: Vec<B>) {
        self.model.set_selections(selections);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_is_in_one_run_and_rows_wait_behind_all_runs_but_the_last() {
        let run = |layers, group, hold: Option<u8>| LayerRun {
            layers,
            group: GroupId(group),
            hold: hold.map(GroupId),
        };
        assert_eq!(layer_runs(8, &[]), [run(0..8, 0, None)]);
        assert_eq!(
            layer_runs(8, &[0, 2, 6]),
            [run(0..1, 0, Some(4)), run(1..3, 1, Some(5)), run(3..7, 2, Some(6)), run(7..8, 3, None)]
        );
    }
}
