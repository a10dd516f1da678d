//! A device that chooses tokens itself: the executor then reads no logits, and gives the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pagedraft_attention::isa::Isa;
use pagedraft_block_manager::{Arena, BlockCopy, GroupId, KvGroup};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig, Tensor};
use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena, Tape};
use pagedraft_model::{
    BufferId, CaptureSizes, Choice, Device, Dtype, GraphKey, ModelError, NO_CHOICE, Op, PartShape, Precision,
    Runner, StepInputs, StepLimits,
};
use pagedraft_scheduler::{Executor, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan};
use pagedraft_spec_decode::acceptance::Acceptance;
use pagedraft_spec_decode::metrics::SpeculationMetrics;
use pagedraft_spec_decode::proposer::{DraftModel, DraftOptions, NgramProposer};
use pagedraft_spec_decode::sampling::{Sampler, SamplingParams};
use pagedraft_spec_decode::{ModelExecutor, Registered, Scorer};

use crate::stage::Dice;

const VOCAB: usize = 50;
const CONFIG: &[u8] = br#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 50, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 160, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;

/// How often logits were read, and how often a device was asked to choose.
#[derive(Default)]
struct Asked {
    read: AtomicUsize,
    choose: AtomicUsize,
}

/// The CPU, choosing by the host's own sampler on its side of the seam.
struct Choosing {
    cpu: CpuDevice,
    chooses: bool,
    /// Says of this many of its first answers that they cannot be given.
    refuses: usize,
    asked: Arc<Asked>,
    sampler: Sampler,
    chosen: Vec<u32>,
}

impl Device for Choosing {
    type Buf = BufferId;
    type Graph = Tape;

    fn activations(
        &mut self,
        rows: usize,
        width: usize,
        precision: Precision,
    ) -> Result<BufferId, ModelError> {
        self.cpu.activations(rows, width, precision)
    }
    fn token_bytes(&self, shape: PartShape) -> Result<usize, ModelError> {
        self.cpu.token_bytes(shape)
    }
    fn attach(&mut self, groups: &[KvGroup], shapes: &[Vec<PartShape>]) -> Result<(), ModelError> {
        self.cpu.attach(groups, shapes)
    }
    fn vector(&mut self, values: Vec<f32>) -> Result<BufferId, ModelError> {
        self.cpu.vector(values)
    }
    fn matrix(&mut self, stacked: &[Tensor<'_>]) -> Result<BufferId, ModelError> {
        self.cpu.matrix(stacked)
    }
    fn table(&mut self, tensor: &Tensor<'_>) -> Result<BufferId, ModelError> {
        self.cpu.table(tensor)
    }
    fn bind(&mut self, inputs: &StepInputs, key: Option<GraphKey>) -> Result<(), ModelError> {
        self.cpu.bind(inputs, key)
    }
    fn select(&mut self, rows: &[u32]) -> Result<(), ModelError> {
        self.cpu.select(rows)
    }
    fn run(&mut self, ops: &[Op<BufferId>]) -> Result<(), ModelError> {
        self.cpu.run(ops)
    }
    fn capture(&mut self, ops: &[Op<BufferId>], key: GraphKey) -> Result<Tape, ModelError> {
        self.cpu.capture(ops, key)
    }
    fn graph_bytes(&self, graph: &Tape) -> usize {
        self.cpu.graph_bytes(graph)
    }
    fn replay(&mut self, graph: &Tape) -> Result<(), ModelError> {
        self.cpu.replay(graph)
    }
    fn read(&mut self, buffer: BufferId, rows: usize) -> Result<&[f32], ModelError> {
        self.asked.read.fetch_add(1, Ordering::Relaxed);
        self.cpu.read(buffer, rows)
    }
    fn chooses(&self) -> bool {
        self.chooses
    }
    fn choose(&mut self, logits: BufferId, rows: &[u32], choices: &[Choice]) -> Result<&[u32], ModelError> {
        assert_eq!(rows.len(), choices.len());
        let number = self.asked.choose.fetch_add(1, Ordering::Relaxed);
        let all = self.cpu.read(logits, rows.iter().map(|&r| r as usize + 1).max().unwrap_or(0))?;
        self.chosen.clear();
        for (&row, choice) in rows.iter().zip(choices) {
            let params = SamplingParams {
                temperature: choice.temperature,
                top_k: Some(choice.top_k).filter(|&k| k > 0),
                top_p: choice.top_p,
                min_p: choice.min_p,
                seed: choice.seed,
                sample: choice.sample,
                ..SamplingParams::default()
            };
            let logits = &all[row as usize * VOCAB..(row as usize + 1) * VOCAB];
            self.chosen.push(self.sampler.choose(logits, &params, choice.position).unwrap());
        }
        if number < self.refuses {
            self.chosen[0] = NO_CHOICE;
        }
        Ok(&self.chosen)
    }
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        self.cpu.copy_blocks(copies)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Way {
    chooses: bool,
    refuses: usize,
    graphs: bool,
    draft_model: bool,
    scorer: Scorer,
    acceptance: Acceptance,
    keep_logits: bool,
    logit_rows: usize,
}

/// The target's KV group, and one for a draft model of the same shape.
fn groups() -> Vec<KvGroup> {
    let config = ModelConfig::parse("config.json".as_ref(), CONFIG).unwrap();
    let bytes = CpuDevice::kv_layout(&config, Dtype::F32, 16).unwrap().token_bytes();
    let target = KvGroup::dense(config.num_layers as u16, bytes);
    let draft = KvGroup { id: GroupId(1), name: "draft".to_owned(), lags: true, ..target.clone() };
    vec![target, draft]
}

fn runner(way: Way, seed: u64, asked: &Arc<Asked>, arena: &Arena, group: GroupId) -> Runner<Choosing> {
    let checkpoint = Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), CONFIG).unwrap(), seed);
    let options = CpuOptions { isa: Isa::detect(), threads: 1, dtype: Dtype::F32, block_size: 16 };
    let cpu = CpuDevice::new(&options, &KvArena::new(arena).unwrap(), &[group]).unwrap();
    let (asked, chosen) = (Arc::clone(asked), Vec::new());
    let device = Choosing {
        cpu,
        chooses: way.chooses,
        refuses: way.refuses,
        asked,
        sampler: Sampler::default(),
        chosen,
    };
    let limits = StepLimits { token_rows: 64, logit_rows: way.logit_rows, max_model_len: 160 };
    let mut runner = Runner::load(device, &checkpoint, limits).unwrap();
    if way.graphs {
        runner.capture(&CaptureSizes::new(vec![4, 12, way.logit_rows as u32], vec![1, 2, 3, 4])).unwrap();
    }
    runner
}

/// The tokens of some requests, greedy and drawn in several ways, with drafts; what speculation came to, and what was asked of
/// the device.
fn generate(way: Way) -> (Vec<Vec<u32>>, SpeculationMetrics, Arc<Asked>) {
    let asked = Arc::new(Asked::default());
    let config = SchedulerConfig {
        num_blocks: 80,
        max_num_batched_tokens: 64,
        max_model_len: 160,
        num_speculative_tokens: 3,
        groups: groups(),
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(config).unwrap();
    scheduler.set_drafts_have_kv(way.draft_model);
    let arena = scheduler.blocks().arena().clone();
    let mut executor = ModelExecutor::new(runner(way, 9, &asked, &arena, GroupId(0)), 16).unwrap();
    let proposer: Box<dyn pagedraft_spec_decode::proposer::Proposer + Send> = if way.draft_model {
        let options = DraftOptions {
            group: GroupId(1),
            block_size: 16,
            num_blocks: 80,
            catch_up_tokens: 64,
            target_vocab: VOCAB,
        };
        // Other weights and the same noise: some of its drafts are right.
        Box::new(DraftModel::new(runner(way, 10, &asked, &arena, GroupId(1)), options).unwrap())
    } else {
        Box::new(NgramProposer::new(1, 3).unwrap())
    };
    let proposer = executor.add_proposer(proposer);
    executor.choose_proposer(Some(proposer));
    executor.set_scorer(way.scorer);
    executor.set_acceptance(way.acceptance);
    executor.count_noncausal(true);
    executor.keep_logits(way.keep_logits);
    let ways = [
        SamplingParams::greedy(),
        SamplingParams { seed: 5, ..SamplingParams::default() },
        SamplingParams { temperature: 0.7, top_k: Some(6), top_p: 0.9, seed: 6, ..SamplingParams::default() },
        SamplingParams { temperature: 1.3, min_p: 0.02, sample: 2, ..SamplingParams::default() },
        SamplingParams::greedy(),
    ];
    let mut dice = Dice::new(3);
    let keys: Vec<_> = ways
        .into_iter()
        .map(|sampling| {
            let prompt = dice.tokens(5, 4);
            let key = scheduler.submit(RequestSpec::new(prompt.clone(), 30)).unwrap();
            executor.register(
                key,
                Registered { sampling, prompt_len: prompt.len() as u32, ..Registered::default() },
            );
            key
        })
        .collect();
    let (mut plan, mut outcome, mut applied) = (StepPlan::default(), StepOutcome::default(), Vec::new());
    let mut tokens = vec![Vec::new(); keys.len()];
    while scheduler.has_unfinished() {
        scheduler.step(&mut plan).unwrap();
        executor.execute(&plan, &scheduler, &mut outcome).unwrap();
        scheduler.apply(&outcome, &mut applied).unwrap();
        for one in &applied {
            let of = keys.iter().position(|&key| key == one.request).unwrap();
            tokens[of].extend_from_slice(&outcome.tokens[one.tokens.start as usize..one.tokens.end as usize]);
        }
    }
    (tokens, executor.take_metrics(), asked)
}

/// What does not depend on time.
fn counts(metrics: &SpeculationMetrics) -> [u64; 3] {
    [metrics.num_draft_tokens, metrics.num_accepted_tokens, metrics.num_accepted_tokens_noncausal]
}

#[test]
fn a_device_that_chooses_gives_the_tokens_and_verdicts_of_one_that_does_not_and_no_logits_are_read() {
    for graphs in [false, true] {
        for draft_model in [false, true] {
            for (scorer, logit_rows) in [(Scorer::Mqa, 64), (Scorer::BatchExpansion, 64), (Scorer::Mqa, 6)] {
                let way = Way { graphs, draft_model, scorer, logit_rows, ..Way::default() };
                let (tokens, metrics, asked) = generate(way);
                assert_eq!(asked.choose.load(Ordering::Relaxed), 0);
                assert!(
                    metrics.num_accepted_tokens > 0 && metrics.num_accepted_tokens < metrics.num_draft_tokens
                );
                let (same, its, asked) = generate(Way { chooses: true, ..way });
                assert_eq!(same, tokens, "{way:?}");
                assert_eq!(counts(&its), counts(&metrics), "{way:?}");
                assert_eq!(asked.read.load(Ordering::Relaxed), 0, "{way:?}: logits were read");
            }
        }
    }
}

#[test]
fn a_row_without_a_choice_is_looked_at_on_the_host() {
    let way = Way { logit_rows: 64, draft_model: true, ..Way::default() };
    let (tokens, ..) = generate(way);
    let (same, _, asked) = generate(Way { chooses: true, refuses: 5, ..way });
    assert_eq!(same, tokens);
    assert!(asked.read.load(Ordering::Relaxed) >= 5);
}

#[test]
fn logits_that_are_wanted_and_rules_that_need_them_are_served_from_the_host() {
    let base = Way { logit_rows: 64, ..Way::default() };
    for way in [Way { keep_logits: true, ..base }, Way { acceptance: Acceptance::Rejection, ..base }] {
        let (tokens, ..) = generate(way);
        let (same, _, asked) = generate(Way { chooses: true, ..way });
        assert_eq!(same, tokens, "{way:?}");
        assert!(asked.read.load(Ordering::Relaxed) > 0);
    }
}
