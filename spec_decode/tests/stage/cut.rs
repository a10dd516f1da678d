//! A dense decoder that is cut behind a layer, and the slow way to thin its prompts.
#![allow(dead_code, reason = "each test file takes what it needs")]

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{AttentionMetadata, MetadataBuilder, MetadataRow};
use pagedraft_block_manager::{Arena, BlockId, BlockSize, GroupId, KvGroup};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena};
use pagedraft_model::cut;
use pagedraft_model::{Dtype, Runner, StepInputs, StepLimits};
use pagedraft_spec_decode::Thin;
use pagedraft_spec_decode::proposer::{DraftModel, DraftOptions};
use pagedraft_spec_decode::sampling::{Sampler, SamplingParams};

pub const VOCAB: u32 = 50;
const CONFIG: &[u8] = br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 96, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
pub const LIMITS: StepLimits = StepLimits { token_rows: 256, logit_rows: 64, max_model_len: 96 };

fn checkpoint(seed: u64) -> Checkpoint {
    Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), CONFIG).unwrap(), seed)
}

fn token_bytes() -> usize {
    CpuDevice::kv_layout(checkpoint(9).config(), Dtype::F32, 16).unwrap().token_bytes()
}

/// The KV groups of the model.
pub fn groups() -> Vec<KvGroup> {
    CpuDevice::cut_groups(checkpoint(9).config(), Dtype::F32, 16, &[0]).unwrap()
}

/// The KV of a draft model of the same shape.
pub fn draft_group(id: GroupId) -> KvGroup {
    KvGroup { id, name: "draft".to_owned(), lags: true, ..KvGroup::dense(3, token_bytes()) }
}

const OPTIONS: CpuOptions = CpuOptions { isa: Isa::Portable, threads: 1, dtype: Dtype::F32, block_size: 16 };

fn options() -> CpuOptions {
    CpuOptions { isa: Isa::detect(), ..OPTIONS }
}

/// The model over a pool that is cut as `arena` says.
pub fn runner(arena: &Arena) -> Runner<CpuDevice> {
    let ids = [0, 1, 2].map(GroupId);
    let mut device = CpuDevice::new(&options(), &KvArena::new(arena).unwrap(), &ids).unwrap();
    let model = cut::load(&mut device, &checkpoint(9), LIMITS, &[0]).unwrap();
    Runner::with(device, model, LIMITS).unwrap()
}

/// A draft model of other weights.
pub fn draft_model(arena: &Arena, group: GroupId) -> DraftModel<CpuDevice> {
    let device = CpuDevice::new(&options(), &KvArena::new(arena).unwrap(), &[group]).unwrap();
    let runner = Runner::load(device, &checkpoint(9), LIMITS).unwrap();
    let options = DraftOptions {
        group,
        block_size: 16,
        num_blocks: arena.group(group).unwrap().num_blocks,
        catch_up_tokens: 256,
        target_vocab: VOCAB as usize,
    };
    DraftModel::new(runner, options).unwrap()
}

fn norm(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |sum, x| sum + x * x)
}

/// The half of the tokens whose residual rows are longest; equal ones lowest position first. The last token always stays.
#[derive(Debug)]
pub struct LargestHalf;

impl Thin for LargestHalf {
    fn score(&self, _: u16, _: u32, row: &[f32]) -> f32 {
        norm(row)
    }

    fn keep(&self, _: u16, scores: &[f32], _: &[u32], count: usize) -> Result<Vec<u32>, String> {
        let last = scores.len() as u32 - 1;
        let mut order: Vec<u32> = (0..last).collect();
        order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
        order.truncate(count - 1);
        order.push(last);
        order.sort_unstable();
        Ok(order)
    }
}

/// A rule that never finds anything to keep.
#[derive(Debug)]
pub struct GivesUp;

impl Thin for GivesUp {
    fn score(&self, _: u16, _: u32, _: &[f32]) -> f32 {
        f32::NAN
    }

    fn keep(&self, _: u16, _: &[f32], _: &[u32], _: usize) -> Result<Vec<u32>, String> {
        Err("no score is a number".to_owned())
    }
}

/// The slow way: the whole sequence anew for every token, one sequence alone, eagerly, its keys one after the other.
pub struct Slow {
    runner: Runner<CpuDevice>,
}

impl Slow {
    pub fn new() -> Self {
        let arena = Arena::plan(BlockSize::new(16).unwrap(), 64, &groups()).unwrap();
        Self { runner: runner(&arena) }
    }

    /// The logits behind the last of `tokens`, of which the first `prompt` are the prompt.
    fn logits(&mut self, tokens: &[u32], prompt: usize, thins: bool) -> Vec<f32> {
        let arena = self.runner.device().arena().plan().clone();
        let row = |group: usize, first: u32, count: u32| {
            let per_page = arena.group(GroupId(group as u8)).unwrap().per_page;
            let table: Vec<BlockId> = (first..first + 6).map(|page| BlockId(page * per_page)).collect();
            let mut builder = MetadataBuilder::new(16).unwrap();
            builder.push(MetadataRow::causal(0, count, &table)).unwrap();
            builder.finish().clone()
        };
        let nowhere = |rows: usize| AttentionMetadata { slot_mapping: vec![-1; rows], ..Default::default() };
        let (n, empty) = (tokens.len(), AttentionMetadata::default);
        let positions: Vec<u32> = (0..n as u32).collect();
        let groups = vec![row(0, 0, n as u32), empty(), nowhere(n)];
        self.runner.segment_eager(0, &StepInputs { tokens: tokens.to_vec(), positions, groups }).unwrap();
        let residual = self.runner.residual(n).unwrap();
        let norms: Vec<f32> = residual.chunks(32).take(prompt).map(norm).collect();
        let mut stay: Vec<u32> = (0..n as u32).collect();
        if thins {
            // A token stays when fewer than the count (but for the last, which always does) are before it.
            let count = prompt.div_ceil(2) - 1;
            let before = |a: usize, b: usize| norms[a] > norms[b] || (norms[a] == norms[b] && a < b);
            let rank = |b: usize| (0..prompt - 1).filter(|&a| before(a, b)).count();
            stay.retain(|&p| p as usize + 1 >= prompt || rank(p as usize) < count);
        }
        self.runner.compact(&stay).unwrap();
        let kept = stay.len();
        let tokens = stay.iter().map(|&p| tokens[p as usize]).collect();
        let groups = vec![empty(), row(1, 8, kept as u32), nowhere(kept)];
        self.runner.segment_eager(1, &StepInputs { tokens, positions: stay, groups }).unwrap();
        self.runner.logits(&[kept as u32 - 1]).unwrap().row(0).to_vec()
    }

    /// What a request gives, and the logits that each token was chosen from.
    pub fn run(
        &mut self,
        prompt: &[u32],
        thins: bool,
        sampling: &SamplingParams,
        max_tokens: u32,
    ) -> (Vec<u32>, Vec<Vec<f32>>) {
        let mut tokens = prompt.to_vec();
        let mut all = Vec::new();
        for _ in 0..max_tokens {
            let logits = self.logits(&tokens, prompt.len(), thins);
            let position = tokens.len() as u32;
            tokens.push(Sampler::default().choose(&logits, sampling, position).unwrap());
            all.push(logits);
        }
        (tokens.split_off(prompt.len()), all)
    }

    pub fn tokens(
        &mut self,
        prompt: &[u32],
        thins: bool,
        sampling: &SamplingParams,
        max_tokens: u32,
    ) -> Vec<u32> {
        self.run(prompt, thins, sampling, max_tokens).0
    }
}
