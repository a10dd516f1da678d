//! Requests whose prompts are pruned: the cuts of the engine's model, and what became of each prompt.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagedraft_attention::isa::Isa;
use pagedraft_block_manager::{GroupId, KvGroup, KvIndex, MAX_GROUPS};
use pagedraft_model::Dtype;
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::cut::{self, LayerRun, layer_runs};
use pagedraft_scheduler::{Kind, KvView, SegmentKv, SharesKept};
use pagedraft_spec_decode::Thinning;
use pagedraft_workloads::sim::PromptRule;
use pagedraft_workloads::trace::{KeptCounts, PruneRecord};
use parking_lot::Mutex;
use serde::Serialize;

use super::Session;
use super::builtin;
use super::options::{EngineOptions, LoadFormat, ModelRef};
use super::request::{Request, RequestPrune};
use super::sequence::sequence_of;
use crate::error::{EngineError, Result, bail, ensure};
use crate::prune::{
    LazyProbe, Modules, Positions, PruneChoice, PruneScorer, Pruner, SimulatedPruner, Teller, Told,
};

/// What pruning left of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneOutput {
    /// For each layer behind which tokens were dropped, the positions of those that were kept, ascending.
    pub kept: BTreeMap<u16, Vec<u32>>,
    /// For each of these layers, how many were kept.
    pub keep_k: BTreeMap<u16, u32>,
    /// For each layer, the tokens whose keys and values it holds behind the prefill.
    pub kv_lens_after_prefill: Vec<u32>,
    /// Whether tokens are numbered anew behind each of these layers.
    #[serde(skip)]
    pub compact: bool,
    /// The bytes of the KV blocks that hold them.
    pub kv_bytes: u64,
    /// The bytes of the KV blocks that would hold the whole prompt.
    pub kv_bytes_dense: u64,
}

/// The tokens of a sequence that reach a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach<'a> {
    /// The prompt's tokens, by their positions, ascending.
    kept: &'a [u32],
    prompt_len: u32,
    /// Whether the layer numbers them anew.
    pub compact: bool,
}

impl Reach<'_> {
    /// The position in the sequence of the token that the layer holds at this index.
    pub fn position(&self, index: u32) -> u32 {
        let behind = || self.prompt_len + index.saturating_sub(self.kept.len() as u32);
        self.kept.get(index as usize).copied().unwrap_or_else(behind)
    }
}

impl PruneOutput {
    /// The tokens that reach a layer of a prompt of `prompt_len` tokens; `None` if all of them do.
    pub(super) fn reach(&self, layer: u16, prompt_len: u32) -> Option<Reach<'_>> {
        let (_, kept) = self.kept.range(..layer).next_back()?;
        Some(Reach { kept, prompt_len, compact: self.compact })
    }
}

/// The most layers behind which a model is cut: each cut needs a group of KV and one of rows that wait, beside the first layers' group and a
/// draft model's.
const MOST_CUTS: usize = (MAX_GROUPS - 2) / 2;

/// The cuts of an engine's model.
#[derive(Debug)]
pub(super) struct Pruning {
    cuts: Arc<[u16]>,
    runs: Vec<LayerRun>,
    all: Option<PruneChoice>,
    num_layers: u16,
    hidden: usize,
    dtype: Dtype,
    isa: Isa,
    block_size: u32,
    /// For each run of layers, the bytes of a block.
    block_bytes: Vec<u64>,
    /// Whether the model's attention is sparse.
    sparse: bool,
    /// The modules that come with the model, where there are any.
    own_modules: Option<PathBuf>,
    modules: Mutex<HashMap<PathBuf, Arc<Modules>>>,
    /// The target, for scores of somebody who knows the answer.
    target: Arc<LazyProbe>,
    /// The draft model and what stands for it, if there is one.
    draft: Option<(Arc<LazyProbe>, String)>,
}

/// Modules of random numbers are called this and the seed that they are drawn from.
const DUMMY: &str = "dummy:";

/// The seed of modules of random numbers.
fn dummy_seed(name: &Path) -> Option<u64> {
    name.to_str()?.strip_prefix(DUMMY)?.parse().ok()
}

/// The modules that come with a model: random ones for random weights, those of an embedded model, or the file `pruning_modules.safetensors` in a model's directory.
fn own_modules(options: &EngineOptions) -> Option<PathBuf> {
    let model = &options.model;
    match model {
        _ if options.load_format == LoadFormat::Dummy => Some(format!("{DUMMY}{}", options.seed).into()),
        ModelRef::Builtin(_) => {
            Some(PathBuf::from(model.to_string())).filter(|name| builtin::modules(name).is_some())
        }
        ModelRef::Directory(dir) => {
            Some(dir.join("pruning_modules.safetensors")).filter(|file| file.exists())
        }
    }
}

/// The layers behind which the model of an engine is cut, ascending; none if nothing is to be pruned.
///
/// # Errors
///
/// The model has no such layers, or cannot be cut.
pub(super) fn cuts(options: &EngineOptions, config: &ModelConfig) -> Result<Vec<u16>> {
    let num_layers = config.num_layers as u16;
    let prune = &options.prune;
    let mut cuts: Vec<u16> = match &prune.layers {
        Some(layers) => layers.clone(),
        None => {
            let choices = prune.all.iter().chain(&prune.others);
            choices.flat_map(|choice| choice.layers(num_layers)).map(|(layer, _)| layer).collect()
        }
    };
    cuts.sort_unstable();
    cuts.dedup();
    if cuts.is_empty() {
        return Ok(cuts);
    }
    let refuse = |why: String| Err(EngineError::input(format!("{} cannot be pruned: {why}", options.model)));
    if let Err(why) = cut::check(config, &cuts) {
        return refuse(why);
    }
    if cuts.len() > MOST_CUTS {
        return refuse(format!(
            "tokens are to be dropped behind {} layers, and {MOST_CUTS} are the most: name fewer",
            cuts.len()
        ));
    }
    if options.kv_tiers.is_asked_for() {
        return refuse(
            "its latents are to lie in tiers, which have one group of KV: leave out --kv-hbm-blocks and the pools".to_owned(),
        );
    }
    Ok(cuts)
}

/// The groups of each segment of a model that consists of these runs of layers.
pub(super) fn segments(runs: &[LayerRun]) -> Vec<SegmentKv> {
    runs.iter().map(|run| SegmentKv { groups: vec![run.group], hold: run.hold }).collect()
}

/// How the prompts of a simulated engine are pruned, whose model of `num_layers` layers is cut behind `cuts`.
///
/// # Errors
///
/// The spec names a layer behind which the model is not cut.
pub(super) fn simulated(
    options: &EngineOptions,
    num_layers: u16,
    cuts: Vec<u16>,
) -> Result<Option<Arc<dyn PromptRule>>> {
    let Some(choice) = &options.prune.all else { return Ok(None) };
    let pruner =
        SimulatedPruner::new(choice.spec(num_layers), cuts.into()).map_err(EngineError::into_input)?;
    Ok(Some(Arc::new(pruner)))
}

impl Pruning {
    /// The pruning of an engine whose model is cut behind `cuts` and keeps these `groups`, those of its runs of layers first.
    pub fn new(
        options: &EngineOptions,
        config: &ModelConfig,
        cuts: Vec<u16>,
        dtype: Dtype,
        groups: &[KvGroup],
        target: Arc<LazyProbe>,
    ) -> Self {
        let num_layers = config.num_layers as u16;
        let block_bytes = |group: &KvGroup| group.bytes_per_token() as u64 * u64::from(options.block_size);
        Self {
            block_bytes: groups.iter().take(cuts.len() + 1).map(block_bytes).collect(),
            sparse: config.dsa.is_some(),
            runs: layer_runs(num_layers, &cuts),
            cuts: cuts.into(),
            all: options.prune.all.clone(),
            num_layers,
            hidden: config.hidden_size,
            dtype,
            isa: options.isa.unwrap_or_else(Isa::detect),
            block_size: options.block_size,
            own_modules: own_modules(options),
            modules: Mutex::default(),
            target,
            draft: None,
        }
    }

    /// Lets a draft model score prompts. `name` stands for it in the names of what is cached.
    pub fn set_draft(&mut self, probe: Arc<LazyProbe>, name: String) {
        self.draft = Some((probe, name));
    }

    /// Who tells the scores of a request's prompt, if its scorer is another run of a model.
    fn told(&self, scorer: PruneScorer, request: &Request) -> Result<Option<Arc<Told>>> {
        let (probe, teller) = match scorer {
            PruneScorer::Draft => {
                let Some((probe, name)) = &self.draft else {
                    bail!("scorer draft needs a draft model: name one with --draft, or choose another scorer")
                };
                (probe, Teller::Draft(name.clone()))
            }
            PruneScorer::Oracle => {
                let Some(answer) = request.recorded.first().filter(|answer| !answer.is_empty()) else {
                    bail!(
                        "scorer oracle is told the answer beforehand, as bench prune does: choose another scorer"
                    )
                };
                (&self.target, Teller::Answer(Arc::clone(answer)))
            }
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(Told::new(Arc::clone(probe), request.prompt.clone(), teller))))
    }

    /// How a request's prompt is pruned; `None` if all of it goes through the whole model.
    ///
    /// # Errors
    ///
    /// The request names a layer behind which the model is not cut, or modules that don't fit.
    pub fn pruner(&self, request: &Request) -> Result<Option<Arc<Pruner>>> {
        let choice = match &request.prune {
            RequestPrune::Never => None,
            RequestPrune::AsEngine => self.all.as_ref(),
            RequestPrune::Choice(choice) => Some(choice),
        };
        let Some(choice) = choice else { return Ok(None) };
        ensure!(
            request.sampling.prompt_logprobs.is_none(),
            "its prompt is pruned, so that not every prompt token has a log probability: leave out prompt_logprobs, or prune"
        );
        let spec = match choice {
            PruneChoice::Spec(spec) => Arc::new(spec.clone()),
            PruneChoice::Preset(preset) => {
                let Some(modules) = &self.own_modules else {
                    bail!(
                        "a preset scores tokens with trained modules, and this model has none: write a spec that names modules or another scorer"
                    )
                };
                Arc::new(preset.spec(self.num_layers, modules)?)
            }
        };
        if let Some(why) = spec.scorer.refused_by(self.sparse) {
            bail!("scorer {} {why}", spec.scorer);
        }
        let modules = match spec.scorer {
            PruneScorer::Learned => {
                let Some(path) = spec.modules.as_ref().or(self.own_modules.as_ref()) else {
                    bail!("scorer learned needs trained modules, and neither the spec nor the model has any")
                };
                let layers: Vec<u16> = spec.layers.iter().map(|&(layer, _)| layer).collect();
                let mut known = self.modules.lock();
                if let Some(modules) = known.get(path).filter(|modules| modules.have(&layers)) {
                    Some(Arc::clone(modules))
                } else {
                    let modules = match (builtin::modules(path), dummy_seed(path)) {
                        (Some(bytes), _) => Modules::parse(path, bytes, &layers, self.hidden, self.dtype)?,
                        (None, Some(seed)) => Modules::dummy(seed, &layers, self.hidden, self.dtype),
                        (None, None) => Modules::read(path, &layers, self.hidden, self.dtype)?,
                    };
                    let modules = Arc::new(modules.on(self.isa));
                    known.insert(path.clone(), Arc::clone(&modules));
                    Some(modules)
                }
            }
            _ => None,
        };
        let told = self.told(spec.scorer, request)?;
        let prompt_len = request.prompt.len() as u32;
        Ok(Some(Arc::new(Pruner::new(spec, (modules, told), prompt_len, Arc::clone(&self.cuts))?)))
    }

    /// What is known of a prompt before it is computed.
    pub fn empty_output(&self, pruner: &Pruner, prompt_len: u32) -> PruneOutput {
        let counts = pruner.counts();
        let mut lens = Vec::with_capacity(usize::from(self.num_layers));
        let (mut kv_bytes, mut kv_bytes_dense) = (0, 0);
        let blocks = |len: u32| u64::from(len.div_ceil(self.block_size));
        for (segment, (run, bytes)) in self.runs.iter().zip(&self.block_bytes).enumerate() {
            let len = segment.checked_sub(1).map_or(prompt_len, |cut| counts[cut]);
            lens.extend(run.layers.clone().map(|_| len));
            kv_bytes += blocks(len) * bytes;
            kv_bytes_dense += blocks(prompt_len) * bytes;
        }
        PruneOutput {
            compact: pruner.spec().positions == Positions::Compact,
            kept: BTreeMap::new(),
            keep_k: pruner.points().map(|(cut, layer)| (layer, counts[cut])).collect(),
            kv_bytes,
            kv_bytes_dense,
            kv_lens_after_prefill: lens,
        }
    }

    /// The layers of a segment.
    pub fn layers_of(&self, segment: usize) -> Range<u16> {
        self.runs.get(segment).map_or(0..0, |run| run.layers.clone())
    }

    /// The layer behind which the tokens that a group holds were chosen.
    fn layer_before(&self, group: GroupId) -> Option<u16> {
        let run = self.runs.iter().find(|run| run.group == group)?;
        run.layers.start.checked_sub(1)
    }
}

/// How the executor thins the prompt.
pub(super) fn thinning(pruner: &Arc<Pruner>) -> Thinning {
    Thinning {
        rule: Arc::clone(pruner) as _,
        kept: pruner.counts().to_vec(),
        compact: pruner.spec().positions == Positions::Compact,
    }
}

/// What a trace says of how a prompt is pruned.
pub(super) fn kept_counts(pruner: &Arc<Pruner>, prompt_len: u32, shares: Option<SharesKept>) -> KeptCounts {
    KeptCounts {
        counts: pruner.counts().to_vec(),
        compact: pruner.spec().positions == Positions::Compact,
        prompt_len,
        name: shares.map(|shares| shares.name),
    }
}

impl Session {
    /// How a request's prompt is pruned, if it is.
    pub(super) fn pruner(&self, request: &Request) -> Result<Option<Arc<Pruner>>> {
        match (&self.pruning, &request.prune) {
            (Some(pruning), _) => pruning.pruner(request),
            (None, RequestPrune::Choice(_)) => {
                bail!(
                    "it is to be pruned, and the engine was not opened for that: name its layers in --prune-layers"
                )
            }
            (None, _) => Ok(None),
        }
    }

    /// How much attention a dense run's answer pays to each token of the prompt: by layer, the mean over heads and over the answer's tokens.
    ///
    /// # Errors
    ///
    /// An engine that prunes nothing, an empty prompt or answer, or a fault of the device.
    pub fn answer_mass(&self, prompt: &[u32], answer: &[u32]) -> Result<Vec<Vec<f32>>> {
        let Some(pruning) = &self.pruning else { bail!("the engine was not opened to prune prompts") };
        let tokens: Vec<u32> = prompt.iter().chain(answer).copied().collect();
        pruning.target.ask(|probe| probe.answer_mass(&tokens, prompt.len()))
    }

    /// Writes to the trace what was decided about prompts in the step.
    pub(super) fn trace_cuts(&mut self) -> Result<()> {
        let (Some(pruning), Some(trace)) = (&self.pruning, &mut self.trace) else { return Ok(()) };
        for cut in &self.outcome.record.cuts {
            let (Some(&layer), Some(&id)) =
                (pruning.cuts.get(usize::from(cut.segment)), self.by_key.get(cut.request))
            else {
                continue;
            };
            let prunes = self.sequences.get(id.0).is_some_and(|sequence| sequence.prunes_behind(layer));
            if !prunes {
                continue;
            }
            let (kept, [least, greatest, mean]) = (cut.kept.len() as u32, cut.scores);
            let blocks = |tokens: u32| tokens.div_ceil(pruning.block_size);
            trace.prune(
                PruneRecord {
                    request_id: String::new(),
                    layer,
                    step: self.plan.id.0,
                    input_seq_len: cut.reached,
                    keep_k: kept,
                    tokens_kept: kept,
                    tokens_pruned: cut.reached - kept,
                    pruning_ratio: f64::from(cut.reached - kept) / f64::from(cut.reached),
                    scores_min: least,
                    scores_max: greatest,
                    scores_mean: mean,
                    fallback_applied: least == greatest,
                    kept: cut.kept.clone(),
                    blocks_freed: blocks(cut.reached) - blocks(kept),
                },
                cut.request,
            )?;
        }
        Ok(())
    }

    /// Takes note of the prompt tokens that were kept in the step, and of those that the prefix cache had for a request which begins in it.
    pub(super) fn collect_kept(&mut self) {
        let Some(pruning) = &self.pruning else { return };
        for row in self.plan.rows.iter().filter(|row| row.kind == Kind::Prefill && !row.thins) {
            let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, row.request) else {
                continue;
            };
            for run in &pruning.runs {
                let Some(layer) = run.layers.start.checked_sub(1) else { continue };
                if !sequence.lacks_kept(layer) {
                    continue;
                }
                let (cached, behind) = match self.scheduler.index(row.request, run.group) {
                    KvIndex::Explicit(cached) => {
                        (cached, self.scheduler.lengths(row.request, run.group).logical)
                    }
                    KvIndex::Position => (&[][..], 0),
                };
                let prompt_len = sequence.output().prompt_token_ids.len() as u32;
                let positions: Vec<u32> = cached.iter().copied().chain(behind..prompt_len).collect();
                sequence.keep(layer, &positions);
            }
        }
        for kept in &self.outcome.kept {
            let Some(row) = self.plan.rows.get(kept.row as usize) else { continue };
            let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, row.request) else {
                continue;
            };
            let range = kept.positions.start as usize..kept.positions.end as usize;
            let (Some(layer), Some(positions)) =
                (pruning.layer_before(kept.group), self.outcome.kept_positions.get(range))
            else {
                continue;
            };
            sequence.keep(layer, positions);
        }
    }
}
