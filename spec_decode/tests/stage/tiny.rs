//! Tiny models of weights out of a seed, and the slow way to a draft: the whole sequence anew for each token.
#![allow(dead_code, reason = "each test file takes what it needs")]

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{MaskKind, MetadataBuilder};
use pagedraft_block_manager::{Arena, BlockId, BlockManager, BlockSize, GroupId, KvGroup};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena};
use pagedraft_model::{CaptureSizes, Dtype, Runner, StepInputs, StepLimits};
use pagedraft_spec_decode::proposer::{DraftModel, DraftOptions, Proposer};

pub const VOCAB: u32 = 50;
pub const MAX_MODEL_LEN: usize = 160;

const CONFIG: &[u8] = br#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 50, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 160, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;

/// How a draft model is held in a test.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub block_size: u32,
    pub num_blocks: u32,
    pub caching: bool,
    pub token_rows: usize,
    pub logit_rows: usize,
    pub catch_up: usize,
    pub threads: usize,
    pub graphs: bool,
    pub probabilities: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_blocks: 80,
            caching: true,
            token_rows: 256,
            logit_rows: 64,
            catch_up: 2048,
            threads: 1,
            graphs: false,
            probabilities: false,
        }
    }
}

/// The group of the draft model's KV beside a target's, which has next to none.
pub const DRAFT: GroupId = GroupId(1);

fn checkpoint() -> Checkpoint {
    Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), CONFIG).unwrap(), 9)
}

/// The KV of the model alone, as group 0.
fn group(block_size: u32) -> KvGroup {
    let layout = CpuDevice::kv_layout(checkpoint().config(), Dtype::F32, block_size).unwrap();
    KvGroup::dense(2, layout.token_bytes())
}

/// A pool in which the model's KV is a group that lags.
pub fn blocks(setup: &Setup) -> BlockManager {
    let draft = KvGroup { id: DRAFT, name: "draft".to_owned(), lags: true, ..group(setup.block_size) };
    let size = BlockSize::new(setup.block_size).unwrap();
    BlockManager::new(size, setup.num_blocks, vec![KvGroup::dense(1, 1), draft], setup.caching).unwrap()
}

/// A target and a draft model of the same shape: groups 0 and 1.
pub fn groups(block_size: u32) -> Vec<KvGroup> {
    let draft = KvGroup { id: DRAFT, name: "draft".to_owned(), lags: true, ..group(block_size) };
    vec![group(block_size), draft]
}

pub fn runner_in(
    arena: &Arena,
    id: GroupId,
    block_size: u32,
    limits: StepLimits,
    threads: usize,
) -> Runner<CpuDevice> {
    let options = CpuOptions { isa: Isa::detect(), threads, dtype: Dtype::F32, block_size };
    let device = CpuDevice::new(&options, &KvArena::new(arena).unwrap(), &[id]).unwrap();
    Runner::load(device, &checkpoint(), limits).unwrap()
}

pub fn runner(block_size: u32, num_blocks: u32, limits: StepLimits, threads: usize) -> Runner<CpuDevice> {
    let size = BlockSize::new(block_size).unwrap();
    let arena = Arena::plan(size, num_blocks, &[group(block_size)]).unwrap();
    runner_in(&arena, GroupId(0), block_size, limits, threads)
}

pub fn options(setup: &Setup) -> DraftOptions {
    DraftOptions {
        group: DRAFT,
        block_size: setup.block_size,
        num_blocks: setup.num_blocks,
        catch_up_tokens: setup.catch_up,
        target_vocab: VOCAB as usize,
    }
}

pub fn draft_model(setup: &Setup) -> DraftModel<CpuDevice> {
    draft_model_in(blocks(setup).arena(), setup)
}

pub fn draft_model_in(arena: &Arena, setup: &Setup) -> DraftModel<CpuDevice> {
    let Setup { token_rows, logit_rows, .. } = *setup;
    let limits = StepLimits { token_rows, logit_rows, max_model_len: MAX_MODEL_LEN };
    let mut runner = runner_in(arena, DRAFT, setup.block_size, limits, setup.threads);
    if setup.graphs {
        runner.capture(&CaptureSizes::new(CaptureSizes::default_token_rows(16), vec![1, 2])).unwrap();
    }
    let mut model = DraftModel::new(runner, options(setup)).unwrap();
    model.keep_probabilities(setup.probabilities);
    model
}

/// Runs the whole sequence in one pass, each time.
pub struct Reference {
    runner: Runner<CpuDevice>,
    builder: MetadataBuilder,
    table: Vec<BlockId>,
}

impl Reference {
    pub fn new() -> Self {
        let limits = StepLimits { token_rows: MAX_MODEL_LEN, logit_rows: 1, max_model_len: MAX_MODEL_LEN };
        let blocks = MAX_MODEL_LEN.div_ceil(16) as u32;
        Self {
            runner: runner(16, blocks, limits, 1),
            builder: MetadataBuilder::new(16).unwrap(),
            table: (0..blocks).map(BlockId).collect(),
        }
    }

    /// The logits behind the last of `tokens`.
    pub fn logits(&mut self, tokens: &[u32]) -> Vec<f32> {
        let len = tokens.len() as u32;
        self.builder.begin();
        self.builder.push_row(0, len, &self.table, MaskKind::Causal).unwrap();
        let metadata = self.builder.finish().clone();
        let inputs = StepInputs::dense(tokens.to_vec(), (0..len).collect(), metadata);
        self.runner.forward_eager(&inputs).unwrap();
        self.runner.logits(&[len - 1]).unwrap().row(0).to_vec()
    }
}
