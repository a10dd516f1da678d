//! KV arenas on the CPU: two models share one, and what does not fit is refused by name.

use std::sync::Arc;

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{MetadataBuilder, MetadataRow};
use pagedraft_block_manager::{BlockCopy, BlockId, GroupId, KvGroup};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena};
use pagedraft_model::dense::heads_shape;
use pagedraft_model::{Device, Dtype, PartShape, Runner, StepInputs, StepLimits};

use crate::devices::{self, BLOCK_SIZE};

const NUM_BLOCKS: u32 = 12;
const LIMITS: StepLimits = StepLimits { token_rows: 48, logit_rows: 48, max_model_len: 64 };

/// A model of so many layers with heads of so many values.
fn checkpoint(layers: usize, head_dim: usize) -> Checkpoint {
    let text = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": {layers}, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": {head_dim},
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}}"#
    );
    Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap(), 9)
}

fn group(config: &ModelConfig, id: u8) -> KvGroup {
    let dense = KvGroup::dense(config.num_layers as u16, devices::token_bytes(config, Dtype::F32));
    KvGroup { id: GroupId(id), lags: id > 0, ..dense }
}

fn options() -> CpuOptions {
    CpuOptions { isa: Isa::detect(), threads: 2, dtype: Dtype::F32, block_size: BLOCK_SIZE }
}

/// The logits of some tokens, whose sequence has these blocks.
fn feed(runner: &mut Runner<CpuDevice>, tokens: std::ops::Range<u32>, first: u32) -> Vec<u32> {
    let table: Vec<_> = (0..4).map(|b| BlockId(first + b * 3 % 4)).collect();
    let mut builder = MetadataBuilder::new(BLOCK_SIZE).unwrap();
    let count = tokens.end - tokens.start;
    builder.push(MetadataRow::causal(tokens.start, count, &table)).unwrap();
    let ids = tokens.clone().map(|p| p * 7 % 50).collect();
    runner.forward(&StepInputs::dense(ids, tokens.collect(), builder.finish().clone())).unwrap();
    let rows: Vec<u32> = (0..count).collect();
    runner.logits(&rows).unwrap().block(0..rows.len()).iter().map(|x| x.to_bits()).collect()
}

/// Bytes of a block.
fn block(arena: &KvArena, group: u8, id: BlockId) -> Vec<u8> {
    let planned = arena.plan().group(GroupId(group)).unwrap();
    // SAFETY: the block lies in the arena, and no device writes it now.
    unsafe {
        let at = arena.base().add(id.0 as usize * planned.stride);
        std::slice::from_raw_parts(at, planned.block_bytes).to_vec()
    }
}

#[test]
fn two_models_share_an_arena_and_have_the_bits_they_have_alone() {
    let (target, draft) = (checkpoint(3, 8), checkpoint(1, 16));
    let groups = [group(target.config(), 0), group(draft.config(), 1)];
    let arena = KvArena::new(&devices::plan(&groups, NUM_BLOCKS)).unwrap();
    let padded = *arena.plan().group(GroupId(1)).unwrap();
    assert!(padded.stride > padded.block_bytes, "the draft's blocks are not padded: this proves less");
    let device = CpuDevice::new(&options(), &arena, &[GroupId(0)]).unwrap();
    let beside = device.beside(&options(), &arena, &[GroupId(1)]).unwrap();
    let mut shared =
        [(&target, device), (&draft, beside)].map(|(c, device)| Runner::load(device, c, LIMITS).unwrap());
    let mut alone = [&target, &draft].map(|c| {
        let own = group(c.config(), 0);
        let (device, _) = devices::of_groups(&[own], &options(), NUM_BLOCKS);
        Runner::load(device, c, LIMITS).unwrap()
    });
    // The pages behind the target's own are the draft's.
    let behind = arena.plan().primary_pages() * padded.per_page;
    for tokens in [0..37, 37..38, 38..43] {
        for model in [1, 0] {
            let found = feed(&mut shared[model], tokens.clone(), if model == 0 { 5 } else { behind });
            assert!(found == feed(&mut alone[model], tokens.clone(), 5), "model {model}, {tokens:?}");
        }
    }
    // Either device copies blocks of either group, whole and without a byte more.
    let (src, dst, next) = (BlockId(behind), BlockId(1), BlockId(2));
    let before = block(&arena, 1, next);
    shared[0].copy_blocks(&[BlockCopy { group: GroupId(1), src, dst }]).unwrap();
    assert!(block(&arena, 1, src) == block(&arena, 1, dst) && block(&arena, 1, next) == before);
    assert!(block(&arena, 1, src).iter().any(|&byte| byte != 0));
    let beyond = BlockId(padded.num_blocks);
    for (group, dst, what) in [(1, beyond, "and there are"), (2, dst, "no such group")] {
        let copy = BlockCopy { group: GroupId(group), src, dst };
        let said = shared[1].copy_blocks(&[copy]).unwrap_err().to_string();
        assert!(said.contains(what), "{said}");
    }
    // What is touched keeps its contents.
    let before = block(&arena, 1, src);
    shared[1].touch().unwrap();
    assert!(block(&arena, 1, src) == before);
}

#[test]
fn groups_that_the_arena_has_otherwise_are_refused_by_name() {
    let checkpoint = checkpoint(2, 8);
    let (config, own) = (checkpoint.config(), group(checkpoint.config(), 0));
    let arena = KvArena::new(&devices::plan(std::slice::from_ref(&own), NUM_BLOCKS)).unwrap();
    let device = |groups: &[GroupId]| CpuDevice::new(&options(), &arena, groups).unwrap();
    let refused = |groups: &[GroupId], kept: &[KvGroup], shapes: &[Vec<PartShape>], what: &str| {
        let said = device(groups).attach(kept, shapes).unwrap_err().to_string();
        assert!(said.contains(what), "{said}");
    };
    let heads = [vec![heads_shape(config)]];
    let one = std::slice::from_ref(&own);
    refused(&[], one, &heads, "keeps 1 KV groups, and the device was given 0");
    refused(&[GroupId(3)], one, &heads, "no group 3, which \"kv\" was to be");
    refused(&[GroupId(0)], one, &[Vec::new()], "has 1 parts and 0 shapes");
    let more = KvGroup { parts: group(self::checkpoint(3, 8).config(), 0).parts, ..own.clone() };
    refused(&[GroupId(0)], &[more], &heads, "and the arena gives it");
    device(&[GroupId(0)]).attach(one, &heads).unwrap();
}

#[test]
fn an_arena_that_no_machine_has_is_an_error() {
    let plan = devices::plan(&[KvGroup::dense(1000, 1 << 24)], 1 << 24);
    let said = KvArena::new(&plan).map(Arc::into_inner).unwrap_err().to_string();
    assert!(said.contains("no memory for a KV cache of") && said.contains("--num-blocks"), "{said}");
}
