//! A dense decoder that is cut behind some of its layers, so that tokens of a prompt may be dropped between two runs of layers.
//!
//! Each run of layers is a segment of the step and keeps its KV in a group of its own, because a sequence may have fewer tokens behind a
//! cut than before it. Rows that reach a cut in one step and go on in a later one wait in a scratch group of residual rows.

use std::ops::Range;

use pagedraft_block_manager::{GroupId, KvGroup, KvPart, LayerSet, PartKind};

use crate::architecture::{Architecture, Attended};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::dense::{DenseDecoder, StepLimits, heads_shape};
use crate::device::{Device, Op};
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

/// The KV groups of a dense decoder that is cut behind `cuts`: one for each [run](model_runs) of layers, then those in which rows wait. A
/// token takes `token_bytes` bytes in each layer.
#[must_use]
pub fn kv_groups(config: &ModelConfig, cuts: &[u16], token_bytes: usize) -> Vec<KvGroup> {
    let runs = model_runs(config, cuts);
    let group = |id: GroupId, name: String, kind, layers: Range<u16>, bytes_per_token| KvGroup {
        id,
        name,
        parts: vec![KvPart { kind, layers: LayerSet::range(layers), bytes_per_token, tiered: false }],
        ..KvGroup::dense(1, bytes_per_token)
    };
    let kept = runs.iter().map(|run| {
        let name = format!("layers-{}-{}", run.layers.start, run.layers.end - 1);
        group(run.group, name, PartKind::Heads, run.layers.clone(), token_bytes)
    });
    let held = runs.iter().filter_map(|run| {
        let behind = run.layers.end - 1;
        let name = format!("held-behind-{behind}");
        Some(group(run.hold?, name, PartKind::Residual, behind..behind + 1, 4 * config.hidden_size))
    });
    kept.chain(held).collect()
}

/// A dense decoder in as many segments as it has [runs](layer_runs) of layers.
pub struct CutDecoder<B> {
    dense: DenseDecoder<B>,
    runs: Vec<LayerRun>,
}

impl<B: Copy> CutDecoder<B> {
    /// Loads every weight of `checkpoint` onto `device`, cut behind the layers `cuts`.
    ///
    /// # Errors
    ///
    /// Those of [`DenseDecoder::load`]; a layer with a sliding window; cuts that do not ascend, or that have no layer behind them.
    pub fn load<D: Device<Buf = B>>(
        device: &mut D,
        checkpoint: &Checkpoint,
        limits: StepLimits,
        cuts: &[u16],
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let bad = |what: String| Err(ModelError::BadInputs { what });
        if config.windows.iter().any(Option::is_some) {
            return bad("a model with sliding windows cannot be cut between its layers".to_owned());
        }
        if !cuts.is_sorted_by(|a, b| a < b)
            || cuts.last().is_some_and(|&last| usize::from(last) + 1 >= config.num_layers)
        {
            return bad(format!(
                "the cuts behind the layers {cuts:?} do not ascend, or leave no layer behind them: the model has {} layers",
                config.num_layers
            ));
        }
        let groups = kv_groups(config, cuts, device.token_bytes(heads_shape(config))?);
        let runs = model_runs(config, cuts);
        Ok(Self { dense: DenseDecoder::load_grouped(device, checkpoint, limits, groups)?, runs })
    }

    /// The place where rows wait behind a run.
    fn held(&self, run: usize) -> Option<KvRef> {
        let run = self.runs.get(run)?;
        Some(KvRef { group: run.hold?, part: 0, layer: run.layers.end - 1 })
    }
}

impl<B: Copy + Send> Architecture<B> for CutDecoder<B> {
    fn config(&self) -> &ModelConfig {
        self.dense.config()
    }

    fn kv(&self) -> &[KvGroup] {
        self.dense.kv()
    }

    fn shapes(&self) -> &[Vec<PartShape>] {
        self.dense.shapes()
    }

    fn num_segments(&self) -> usize {
        self.runs.len()
    }

    fn segment(&self, index: usize, rows: usize, ops: &mut Vec<Op<B>>) {
        let x = self.dense.residual();
        let Some(run) = self.runs.get(index) else { return };
        match index.checked_sub(1) {
            None => self.dense.embed(rows, ops),
            Some(before) => ops.extend(self.held(before).map(|kv| Op::Fetch { x, kv, rows })),
        }
        self.dense.layers(run.layers.start.into()..run.layers.end.into(), rows, ops);
        if let Some(kv) = self.held(index) {
            ops.push(Op::Hold { x, kv, rows });
        }
    }

    fn head(&self, rows: usize, ops: &mut Vec<Op<B>>) {
        self.dense.head(rows, ops);
    }

    fn attended(&self, segment: usize) -> Option<Attended<B>> {
        self.dense.attended_in(usize::from(self.runs.get(segment)?.layers.end) - 1)
    }

    fn residual(&self) -> B {
        self.dense.residual()
    }

    fn logits(&self) -> B {
        self.dense.logits()
    }

    fn final_hidden(&self) -> B {
        self.dense.final_hidden()
    }

    fn taps(&self) -> &[B] {
        self.dense.taps()
    }

    fn set_taps(&mut self, taps: Vec<B>) {
        self.dense.set_taps(taps);
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
