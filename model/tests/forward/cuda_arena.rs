//! KV arenas on CUDA devices, their kernels emulated: two models share one, and what has no kernels is refused by name.

use pagedraft_attention::{MetadataBuilder, MetadataRow};
use pagedraft_block_manager::{Arena, BlockCopy, BlockId, BlockSize, GroupId, KvGroup};
use pagedraft_model::cuda::{Backend, CudaArena, CudaDevice, check, part_bytes};
use pagedraft_model::dense::heads_shape;
use pagedraft_model::{Device, Dtype, PartShape, Runner, StepInputs};

use crate::emulated::{self, Emulated};
use crate::emulator;
use crate::steps::{NUM_BLOCKS, bits, checkpoint, limits, options, token};

/// The model that is the draft, and the one that is the target.
const DRAFT: usize = 1;
const TARGET: usize = 0;

/// The one KV group of a model.
fn group(config: usize, id: u8) -> KvGroup {
    let (checkpoint, options) = (checkpoint(config), options(Dtype::Bf16));
    let config = checkpoint.config();
    let bytes = part_bytes(config, options.dtype, options.kv, options.block_size);
    let dense = KvGroup::dense(config.num_layers as u16, bytes / options.block_size as usize);
    KvGroup { id: GroupId(id), lags: id > 0, ..dense }
}

fn runner(config: usize, arena: &CudaArena<Emulated>, id: u8) -> Runner<CudaDevice<Emulated>> {
    let (checkpoint, options) = (checkpoint(config), options(Dtype::Bf16));
    let backend = Emulated::new(checkpoint.config(), &options, 3, 1);
    let device = CudaDevice::on(backend, &options, checkpoint.config(), arena, GroupId(id)).unwrap();
    Runner::load(device, &checkpoint, limits()).unwrap()
}

fn plan(groups: &[KvGroup]) -> Arena {
    Arena::plan(BlockSize::new(16).unwrap(), NUM_BLOCKS, groups).unwrap()
}

/// The logits of the last of some tokens, whose sequence has these blocks.
fn feed(runner: &mut Runner<CudaDevice<Emulated>>, tokens: std::ops::Range<u32>, first: u32) -> Vec<u32> {
    let table: Vec<_> = (0..4).map(|b| BlockId(first + b * 3 % 4)).collect();
    let mut builder = MetadataBuilder::new(16).unwrap();
    let count = tokens.end - tokens.start;
    builder.push(MetadataRow::causal(tokens.start, count, &table)).unwrap();
    let ids = tokens.clone().map(|p| token(1, p)).collect();
    runner.forward(&StepInputs::dense(ids, tokens.collect(), builder.finish().clone())).unwrap();
    bits(runner.logits(&[count - 1]).unwrap().row(0))
}

#[test]
fn two_models_share_an_arena_and_have_the_bits_they_have_alone() {
    if !emulator::available() {
        return;
    }
    let both = plan(&[group(TARGET, 0), group(DRAFT, 1)]);
    let padded = both.group(GroupId(1)).unwrap();
    assert!(padded.stride > padded.block_bytes, "the draft's blocks are not padded: this proves less");
    let arena = emulated::arena(&both);
    let (mut target, mut draft) = (runner(TARGET, &arena, 0), runner(DRAFT, &arena, 1));
    let alone = |config| runner(config, &emulated::arena(&plan(&[group(config, 0)])), 0);
    let (mut target_alone, mut draft_alone) = (alone(TARGET), alone(DRAFT));
    // The pages behind the target's own are the draft's.
    let behind = both.primary_pages() * padded.per_page;
    for tokens in [0..37, 37..38, 38..43] {
        for (shared, alone, first) in
            [(&mut draft, &mut draft_alone, behind), (&mut target, &mut target_alone, 5)]
        {
            let found = feed(shared, tokens.clone(), first);
            assert!(found == feed(alone, tokens.clone(), 5), "{tokens:?}");
        }
    }
    // Either device copies blocks of either group.
    let (src, dst) = (BlockId(behind), BlockId(behind + 9));
    target.copy_blocks(&[BlockCopy { group: GroupId(1), src, dst }]).unwrap();
    let (cache, words) = (target.device().cache(), both.bytes() / 4);
    let memory = target.device_mut().backend().fetch(cache, words).unwrap();
    let block = |id: BlockId| &memory[id.0 as usize * padded.stride / 4..][..padded.block_bytes / 4];
    assert!(block(src) == block(dst) && block(src).iter().any(|&word| word != 0));
    let beyond = BlockId(padded.num_blocks);
    for (group, dst) in [(1, beyond), (2, dst)] {
        assert!(draft.copy_blocks(&[BlockCopy { group: GroupId(group), src, dst }]).is_err());
    }
}

#[test]
fn groups_that_have_no_kernels_are_refused_by_name() {
    if !emulator::available() {
        return;
    }
    let one = group(TARGET, 0);
    let (checkpoint, options) = (checkpoint(TARGET), options(Dtype::Bf16));
    let heads = heads_shape(checkpoint.config());
    let mut device =
        emulated::device(checkpoint.config(), &options, &plan(std::slice::from_ref(&one)), (3, 1));
    let mut refused = |groups: &[KvGroup], shapes: &[Vec<PartShape>], what: &str| {
        let said = device.attach(groups, shapes).unwrap_err().to_string();
        assert!(said.contains(what), "{said}");
    };
    let two = [one.clone(), KvGroup { id: GroupId(1), name: "window".to_owned(), ..one.clone() }];
    refused(&two, &[vec![heads], vec![heads]], "2 KV groups (kv, window)");
    let windowed = KvGroup { window: Some(24), ..one.clone() };
    refused(&[windowed], &[vec![heads]], "a sliding window of 24 tokens");
    refused(
        std::slice::from_ref(&one),
        &[vec![PartShape::Rows { width: 64 }]],
        "other parts than the keys and values",
    );
    let fewer = KvGroup { parts: KvGroup::dense(1, 512).parts, ..one.clone() };
    refused(&[fewer], &[vec![heads]], "other parts than the keys and values");
    device.attach(&[one], &[vec![heads]]).unwrap();
    assert!(device.token_bytes(PartShape::Rows { width: 64 }).is_err());
}

#[test]
fn a_window_shorter_than_the_engines_sequences_is_refused_by_name() {
    let checkpoint = checkpoint(TARGET);
    let mut config = checkpoint.config().clone();
    config.windows[1] = Some(24);
    let of = |length| check(&config, Dtype::Bf16, 16, length);
    assert!(of(24).is_ok());
    let said = of(25).unwrap_err().to_string();
    assert!(said.contains("a sliding window of 24 tokens") && said.contains("--max-model-len 24"), "{said}");
}
