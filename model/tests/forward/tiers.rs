//! Latents that lie in tiers: the same bits as in memory, whatever the tiers do, or a row that says that it is void.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_block_manager::{BlockCopy, BlockHash, BlockId, GroupId, PartKind};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::{CpuDevice, CpuOptions};
use pagedraft_model::tiers::{
    DirectoryPool, Key, LocalPool, MemoryPool, Policy, Pool, PoolError, TierId, TierOptions, Tiers, Watched,
};
use pagedraft_model::{Device, Dtype, Runner, StepInputs, StepLimits};

use crate::devices::{self, BLOCK_SIZE};

const NUM_BLOCKS: u32 = 40;
const LIMITS: StepLimits = StepLimits { token_rows: 256, logit_rows: 256, max_model_len: 256 };
const LENS: [u32; 3] = [150, 90, 19];

fn config() -> ModelConfig {
    let json = r#"{"architectures": ["GlmMoeDsaForCausalLM"], "vocab_size": 60, "hidden_size": 48, "intermediate_size": 40,
        "moe_intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "q_lora_rank": 28, "kv_lora_rank": 24,
        "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "index_n_heads": 3, "index_head_dim": 16,
        "index_topk": 20, "index_topk_pattern": "FSF", "first_k_dense_replace": 1, "n_routed_experts": 6,
        "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2, "max_position_embeddings": 256, "rope_theta": 10000.0,
        "torch_dtype": "float32"}"#;
    ModelConfig::parse("config.json".as_ref(), json.as_bytes()).unwrap()
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sequences lie in blocks of their own, which are not neighbours.
fn table(sequence: usize) -> Vec<BlockId> {
    (0..13).map(|i| BlockId((i * 3 + sequence as u32) % 39)).collect()
}

fn token(sequence: usize, position: u32) -> u32 {
    (position * 17 + position * position / 7 + sequence as u32 * 31) % 60
}

struct World {
    runner: Runner<CpuDevice>,
    builder: MetadataBuilder,
}

/// A metadata row: which sequence, how many tokens before it, how many of its own.
type Piece = (usize, u32, u32);

impl World {
    /// A model whose latents lie in tiers, or in memory.
    fn new(dtype: Dtype, threads: usize, tiers: Option<TierOptions>) -> Self {
        let checkpoint = Checkpoint::dummy(config(), 5);
        let mut groups = CpuDevice::kv_groups(checkpoint.config(), dtype, BLOCK_SIZE, 256).unwrap();
        if tiers.is_some() {
            let parts = groups.iter_mut().flat_map(|group| &mut group.parts);
            parts.for_each(|part| part.tiered = part.kind == PartKind::Latent);
        }
        let options = CpuOptions { isa: Isa::detect(), threads, dtype, block_size: BLOCK_SIZE };
        let (mut device, _) = devices::of_groups(&groups, &options, NUM_BLOCKS);
        if let Some(tiers) = tiers {
            device.keep_in_tiers(tiers);
        }
        let runner = Runner::load(device, &checkpoint, LIMITS).unwrap();
        Self { runner, builder: MetadataBuilder::new(BLOCK_SIZE).unwrap() }
    }

    fn tiers(&mut self) -> &mut Tiers {
        self.runner.device_mut().tiers().unwrap()
    }

    /// The bits of the logits of every token row of a step.
    fn step(&mut self, pieces: &[Piece], table: impl Fn(usize) -> Vec<BlockId>) -> Vec<Vec<u32>> {
        self.builder.begin();
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        for &(sequence, context, count) in pieces {
            let blocks = (context + count).div_ceil(BLOCK_SIZE) as usize;
            let table = table(sequence);
            self.builder.push_row(context, count, &table[..blocks], MaskKind::Causal).unwrap();
            tokens.extend((context..context + count).map(|p| token(sequence, p)));
            positions.extend(context..context + count);
        }
        let inputs = StepInputs::dense(tokens, positions, self.builder.finish().clone());
        self.runner.forward(&inputs).unwrap();
        let rows: Vec<u32> = (0..inputs.tokens.len() as u32).collect();
        let logits = self.runner.logits(&rows).unwrap().block(0..rows.len()).to_vec();
        let vocab = self.runner.config().vocab_size;
        logits.chunks_exact(vocab).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
    }
}

fn alone(dtype: Dtype) -> Vec<Vec<Vec<u32>>> {
    let mut whole = World::new(dtype, 1, None);
    (0..3).map(|s| whole.step(&[(s, 0, LENS[s])], table)).collect()
}

/// The bytes of a cell of the model.
fn cell(dtype: Dtype) -> usize {
    let groups = CpuDevice::kv_groups(&config(), dtype, BLOCK_SIZE, 256).unwrap();
    groups[0].parts[0].bytes_per_token * BLOCK_SIZE as usize
}

fn local(blocks: u64, cell: usize) -> (TierId, Box<dyn Pool>) {
    let pool = LocalPool { bytes: blocks * 3 * cell as u64, file: None };
    (TierId::LocalPool, Box::new(MemoryPool::open(&pool, cell).unwrap()))
}

/// Runs all sequences side by side in chunks, then verifies and decodes over what is stored. Checks every row that is not void, and
/// begins a sequence anew of which a row is. How many rows were checked.
fn serve(name: &str, world: &mut World, chunk: u32, alone: &[Vec<Vec<u32>>]) -> usize {
    let (mut done, mut checked, mut steps) = ([0u32; 3], 0, 0);
    let mut run = |world: &mut World, pieces: &[Piece], done: &mut [u32; 3]| {
        let found = world.step(pieces, table);
        let void = world.tiers().lost_rows().to_vec();
        // Whoever reads these blocks again is to be told again.
        world.tiers().take_lost_blocks();
        let mut at = 0;
        for &(s, first, n) in pieces {
            let own = at..at + n as usize;
            if void.iter().any(|&row| own.contains(&(row as usize))) {
                done[s] = 0;
            } else {
                assert!(
                    found[own.clone()] == alone[s][first as usize..(first + n) as usize],
                    "{name}: {pieces:?}, sequence {s}"
                );
                done[s] = done[s].max(first + n);
                checked += n as usize;
            }
            at = own.end;
        }
    };
    while done != LENS {
        let mut pieces: Vec<Piece> = (0..3)
            .filter(|&s| done[s] < LENS[s])
            .map(|s| (s, done[s], chunk.min(LENS[s] - done[s])))
            .collect();
        pieces.sort_by_key(|piece| piece.2 == 1);
        run(world, &pieces, &mut done);
        steps += 1;
        assert!(steps < 20_000, "{name}: no progress");
    }
    for pieces in [
        vec![(0, 145, 5), (1, 85, 5)],
        vec![(0, 145, 1), (0, 146, 1), (1, 85, 1), (0, 147, 1)],
        vec![(2, 10, 9), (1, 30, 40), (0, 60, 1)],
    ] {
        if done == LENS {
            run(world, &pieces, &mut done);
        }
    }
    checked
}

#[test]
fn latents_in_tiers_give_the_bits_of_latents_in_memory() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let alone = alone(dtype);
        let (mut gathered, mut passes, mut moved) = (0, 0, 0);
        for frames in [1, 2, 3, 7, 16, NUM_BLOCKS] {
            for (policy, chunk, threads) in [
                (Policy::Lru, 1, 1),
                (Policy::Frequency, 7, 2),
                (Policy::Frequency, 64, 1),
                (Policy::Lru, 80, 2),
            ] {
                // A local pool that holds all, one that hands on to a directory, and none at all.
                for size in [NUM_BLOCKS, 9, 0] {
                    let cell = cell(dtype);
                    let mut pools = Vec::new();
                    if size > 0 {
                        pools.push(local(u64::from(size), cell));
                    }
                    if size == 9 {
                        let within = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiers-exact");
                        pools.push((TierId::RemotePool, Box::new(DirectoryPool::open(&within).unwrap())));
                    }
                    let options = TierOptions { frames: Some(frames), pools, policy };
                    let mut world = World::new(dtype, threads, Some(options));
                    let name =
                        format!("{dtype}, {frames} frames, {policy}, chunks of {chunk}, pool of {size}");
                    let rows: u32 = LENS.iter().sum();
                    assert!(serve(&name, &mut world, chunk, &alone) >= rows as usize, "{name}");
                    let counts = world.tiers().counts();
                    assert_eq!((counts.lost_rows, counts.lost_cells), (0, 0), "{name}");
                    assert_eq!(counts.demoted > 0, frames < 16 + 3, "{name}: {counts:?}");
                    assert_eq!(counts.below.refuge_peak > 0, size == 0 && frames < 19, "{name}: {counts:?}");
                    gathered += counts.gathered_rows;
                    passes += counts.extra_passes;
                    moved += counts.below.moved_down;
                }
            }
        }
        assert!(
            gathered > 0 && passes > 0 && moved > 0,
            "{gathered} gathered, {passes} passes, {moved} moved"
        );
    }
}

/// How a pool misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    RefusesPuts,
    FailsPuts,
    Loses,
    CutsShort,
    ChangesABit,
    FailsGets,
    Hangs,
}

/// A pool that misbehaves in one of so many calls.
struct Faulty {
    kept: HashMap<Key, Vec<u8>>,
    fault: Fault,
    one_in: u64,
    state: u64,
    faults: Arc<AtomicU64>,
}

impl Pool for Faulty {
    fn put(&mut self, key: Key, bytes: &[u8]) -> Result<(), PoolError> {
        if matches!(self.fault, Fault::RefusesPuts | Fault::FailsPuts)
            && random(&mut self.state).is_multiple_of(self.one_in)
        {
            self.faults.fetch_add(1, Ordering::Relaxed);
            self.kept.remove(&key);
            return Err(match self.fault {
                Fault::RefusesPuts => PoolError::Full,
                _ => PoolError::Failed("the test wants it so".to_owned()),
            });
        }
        self.kept.insert(key, bytes.to_vec());
        Ok(())
    }

    fn get(&mut self, key: Key, into: &mut [u8]) -> Result<(), PoolError> {
        let bytes = self.kept.get(&key).ok_or(PoolError::Missing)?;
        into.copy_from_slice(bytes);
        if matches!(self.fault, Fault::RefusesPuts | Fault::FailsPuts)
            || !random(&mut self.state).is_multiple_of(self.one_in)
        {
            return Ok(());
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Loses => Err(PoolError::Missing),
            Fault::CutsShort => Err(PoolError::Length { found: 1, expected: into.len() }),
            Fault::FailsGets => Err(PoolError::Failed("the test wants it so".to_owned())),
            Fault::Hangs => {
                std::thread::sleep(Duration::from_secs(2));
                Ok(())
            }
            _ => {
                let bit = random(&mut self.state) as usize % (8 * into.len());
                into[bit / 8] ^= 1 << (bit % 8);
                Ok(())
            }
        }
    }

    fn forget(&mut self, key: Key) {
        self.kept.remove(&key);
    }
}

#[test]
fn a_pool_that_fails_in_any_way_voids_rows_and_changes_no_bit_of_the_others() {
    let alone = alone(Dtype::F32);
    for fault in [
        Fault::RefusesPuts,
        Fault::FailsPuts,
        Fault::Loses,
        Fault::CutsShort,
        Fault::ChangesABit,
        Fault::FailsGets,
        Fault::Hangs,
    ] {
        for (one_in, frames, chunk) in [(1, 3, 7), (50, 4, 64), (10, 2, 16)] {
            for place in [TierId::LocalPool, TierId::RemotePool] {
                let seed = 17 + one_in + u64::from(frames);
                let faults = Arc::new(AtomicU64::new(0));
                let state = seed;
                let pool = Faulty { kept: HashMap::new(), fault, one_in, state, faults: Arc::clone(&faults) };
                let mut pool: Box<dyn Pool> = Box::new(pool);
                if fault == Fault::Hangs {
                    pool = Box::new(Watched::new(pool, Duration::from_millis(40)).unwrap());
                }
                let mut pools = vec![(place, pool)];
                if place == TierId::RemotePool {
                    pools.insert(0, local(3, cell(Dtype::F32)));
                }
                let options = TierOptions { frames: Some(frames), pools, policy: Policy::Frequency };
                let mut world = World::new(Dtype::F32, 1, Some(options));
                let name =
                    format!("{fault:?} in one of {one_in} calls to {place:?}, {frames} frames, seed {seed}");
                assert!(serve(&name, &mut world, chunk, &alone) > 0);
                let counts = world.tiers().counts();
                let happened = faults.load(Ordering::Relaxed) > 0;
                assert!(happened || one_in > 1, "{name}: nothing failed");
                let puts = matches!(fault, Fault::RefusesPuts | Fault::FailsPuts);
                assert_eq!(counts.lost_cells > 0, happened && !puts, "{name}: {counts:?}");
                assert!(!puts || !happened || counts.below.refuge_peak > 0 || place == TierId::LocalPool);
                // A local pool that says that it is full may be given room, and takes the block then.
                if happened && (fault != Fault::RefusesPuts || place == TierId::RemotePool) {
                    let below = counts.below;
                    let counted = match fault {
                        Fault::RefusesPuts => below.full,
                        Fault::FailsPuts | Fault::FailsGets => below.failures,
                        Fault::Loses => below.missing,
                        Fault::CutsShort => below.wrong_length,
                        Fault::ChangesABit => below.wrong_checksum,
                        Fault::Hangs => below.timeouts,
                    };
                    assert!(counted > 0, "{name}: {below:?}");
                }
            }
        }
    }
}

#[test]
fn a_block_that_is_copied_or_saved_and_restored_is_the_same_wherever_it_lay() {
    let alone = alone(Dtype::F32);
    let pools = vec![local(u64::from(2 * NUM_BLOCKS), cell(Dtype::F32))];
    let options = TierOptions { frames: Some(3), pools, policy: Policy::Lru };
    let mut world = World::new(Dtype::F32, 1, Some(options));
    world.step(&[(1, 0, 80)], table);
    let own = table(1);
    // Five blocks are full. The first three are copied to others, and the last two go through the second level of the prefix cache.
    let mut moved: Vec<BlockId> = own.clone();
    for (at, dst) in [(0, 30), (1, 33), (2, 36)] {
        let copy = BlockCopy { group: GroupId(0), src: own[at], dst: BlockId(dst) };
        world.runner.copy_blocks(&[copy]).unwrap();
        moved[at] = BlockId(dst);
    }
    let hashes: Vec<BlockHash> = [3, 4]
        .map(|at| {
            let tokens: Vec<u32> = (0..16).map(|i| at * 16 + i).collect();
            BlockHash::of(&BlockHash::ROOT, &tokens, &Default::default())
        })
        .to_vec();
    for (at, hash) in [3, 4].into_iter().zip(&hashes) {
        assert!(world.tiers().save_prefix(hash, own[at].0) && world.tiers().has_prefix(hash));
    }
    // Somebody else writes into all of the old blocks.
    world.step(&[(0, 0, 80)], |_| own.clone());
    for (at, (hash, dst)) in [3, 4].into_iter().zip(hashes.iter().zip([31, 34])) {
        moved[at] = BlockId(dst);
        assert!(world.tiers().restore_prefix(hash, dst) && !world.tiers().has_prefix(hash));
        assert!(!world.tiers().restore_prefix(hash, dst), "a block is restored once");
    }
    let found = world.step(&[(1, 80, 10)], |_| moved.clone());
    assert!(found == alone[1][80..90]);
    assert_eq!(world.tiers().counts().lost_cells, 0);
}

#[test]
fn a_full_local_pool_gives_up_copies_then_prefixes_and_never_the_only_copy_of_a_cell() {
    use pagedraft_model::tiers::Below;
    let mut below = Below::new(vec![local(1, 64)]);
    let cell = |block| Key::Cell { layer: 0, block };
    let prefix = |i: u32| Key::Prefix(BlockHash::of(&BlockHash::ROOT, &[i], &Default::default()));
    let bytes = |value: u8, len: usize| vec![value; len];
    // Three slots: a prefix of two, and a cell.
    assert!(below.put_prefix(prefix(1), &bytes(9, 100)));
    below.put_cell(cell(1), &bytes(1, 64));
    below.put_cell(cell(2), &bytes(2, 64));
    assert_eq!(below.find(prefix(1)), None, "the prefix made room");
    below.put_cell(cell(3), &bytes(3, 64));
    assert!(!below.put_prefix(prefix(2), &bytes(8, 10)), "a prefix takes no cell's place");
    below.put_cell(cell(4), &bytes(4, 64));
    assert_eq!(below.find(cell(4)), Some(TierId::Refuge));
    below.set_spare(cell(2), true);
    below.put_cell(cell(5), &bytes(5, 64));
    assert_eq!((below.find(cell(2)), below.find(cell(5))), (None, Some(TierId::LocalPool)));
    let mut into = bytes(0, 64);
    for (block, tier) in [(1, TierId::LocalPool), (3, TierId::LocalPool), (4, TierId::Refuge)] {
        assert_eq!(below.get(cell(block), &mut into), Ok(tier));
        assert_eq!(into, bytes(block as u8, 64));
    }
    assert_eq!(below.get(cell(2), &mut into), Err(PoolError::Missing));
}

#[test]
fn a_mapped_file_is_a_pool_and_a_file_of_somebody_else_is_left_alone() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiers-file");
    std::fs::create_dir_all(&dir).unwrap();
    let pool = |name: &str, bytes| LocalPool { bytes, file: Some(dir.join(name)) };
    let key = Key::Cell { layer: 1, block: 2 };
    for round in 0..2 {
        let mut file = MemoryPool::open(&pool("pool", 1000), 100).unwrap();
        file.put(key, &[7; 250]).unwrap();
        let mut into = vec![0; 250];
        file.get(key, &mut into).unwrap();
        assert_eq!(into, [7; 250], "round {round}: an earlier pool's file is used anew");
        let busy = MemoryPool::open(&pool("pool", 1000), 100).err().unwrap().to_string();
        assert!(busy.contains("another engine uses the file"), "{busy}");
    }
    std::fs::write(dir.join("letter"), "dear reader").unwrap();
    let refused = MemoryPool::open(&pool("letter", 1000), 100).err().unwrap().to_string();
    assert!(refused.contains("no pool of an earlier run"), "{refused}");
    assert_eq!(std::fs::read_to_string(dir.join("letter")).unwrap(), "dear reader");
    let small = MemoryPool::open(&pool("small", 99), 100).err().unwrap().to_string();
    assert!(small.contains("takes 100 bytes"), "{small}");
}
