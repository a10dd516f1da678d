//! A model with sparse attention: a token row chooses and computes the same bits whatever kind of row it is.

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_attention::sparse::KeepScores;
use pagedraft_block_manager::{BlockId, PartKind};
use pagedraft_model::checkpoint::{Checkpoint, IndexKeys, ModelConfig};
use pagedraft_model::cpu::CpuDevice;
use pagedraft_model::{CaptureSizes, Dtype, Ran, Runner, StepInputs, StepLimits};

use crate::devices::{self, BLOCK_SIZE};

const NUM_BLOCKS: u32 = 48;
const LIMITS: StepLimits = StepLimits { token_rows: 256, logit_rows: 256, max_model_len: 256 };
const TOPK: usize = 20;

/// A model of five layers, of which the second, third and fifth share an indexer.
fn config(more: &str) -> ModelConfig {
    let json = format!(
        r#"{{"architectures": ["GlmMoeDsaForCausalLM"], "vocab_size": 60, "hidden_size": 48, "intermediate_size": 40,
        "moe_intermediate_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3, "q_lora_rank": 28, "kv_lora_rank": 24,
        "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "index_n_heads": 3, "index_head_dim": 16,
        "index_topk": {TOPK}, "index_topk_pattern": "FSSFS", "first_k_dense_replace": 1, "n_routed_experts": 6,
        "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2, "max_position_embeddings": 256, "rope_theta": 10000.0,
        "torch_dtype": "float32"{more}}}"#
    );
    ModelConfig::parse("config.json".as_ref(), json.as_bytes()).unwrap()
}

/// A pass over one runner: a row's logits and what each indexer chose for it.
type Row = (Vec<u32>, Vec<Vec<u32>>);

struct World {
    runner: Runner<CpuDevice>,
    builder: MetadataBuilder,
    replays: usize,
}

/// A sequence of the same tokens as the first one, which has its first blocks: they were found in the prefix cache.
const HIT: usize = 3;
const HIT_BLOCKS: u32 = 144 / BLOCK_SIZE;

/// A metadata row: which sequence, how many tokens before it, how many of its own.
type Piece = (usize, u32, u32);

fn table(sequence: usize) -> Vec<BlockId> {
    if sequence == HIT {
        let own = (0..13 - HIT_BLOCKS).map(|i| BlockId(39 + i));
        return table(0)[..HIT_BLOCKS as usize].iter().copied().chain(own).collect();
    }
    (0..13).map(|i| BlockId((i * 3 + sequence as u32) % 39)).collect()
}

fn token(sequence: usize, position: u32) -> u32 {
    let sequence = if sequence == HIT { 0 } else { sequence };
    (position * 17 + position * position / 7 + sequence as u32 * 31) % 60
}

impl World {
    fn new((isa, threads, dtype): (Isa, usize, Dtype), keys: IndexKeys, captured: bool) -> Self {
        let mut checkpoint = Checkpoint::dummy(config(""), 5);
        checkpoint.set_index_keys(keys).unwrap();
        let device = devices::cpu(checkpoint.config(), (isa, threads, dtype), NUM_BLOCKS, 256);
        let mut runner = Runner::load(device, &checkpoint, LIMITS).unwrap();
        runner.tap_selections(KeepScores::Nothing).unwrap();
        if captured {
            runner.capture(&CaptureSizes::new(vec![1, 2, 4, 8, 16, 32], vec![1, 2, 5])).unwrap();
        }
        Self { runner, builder: MetadataBuilder::new(BLOCK_SIZE).unwrap(), replays: 0 }
    }

    /// Runs one step of these pieces.
    fn step(&mut self, pieces: &[Piece]) -> Vec<Row> {
        self.builder.begin();
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        for &(sequence, context, count) in pieces {
            let blocks = (context + count).div_ceil(BLOCK_SIZE) as usize;
            self.builder.push_row(context, count, &table(sequence)[..blocks], MaskKind::Causal).unwrap();
            tokens.extend((context..context + count).map(|p| token(sequence, p)));
            positions.extend(context..context + count);
        }
        let inputs = StepInputs::dense(tokens, positions, self.builder.finish().clone());
        if matches!(self.runner.forward(&inputs).unwrap(), Ran::Graph(_)) {
            self.replays += 1;
        }
        let rows: Vec<u32> = (0..inputs.tokens.len() as u32).collect();
        let logits = self.runner.logits(&rows).unwrap().block(0..rows.len()).to_vec();
        let vocab = self.runner.config().vocab_size;
        let layers = self.runner.indexer_layers().len();
        let bits =
            logits.chunks_exact(vocab).map(|row| row.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
        bits.enumerate()
            .map(|(row, bits)| {
                let chosen =
                    (0..layers).map(|l| self.runner.selected_keys(l, row).unwrap().unwrap().to_vec());
                (bits, chosen.collect())
            })
            .collect()
    }
}

const LENS: [u32; 3] = [150, 90, 19];

#[test]
fn prefill_chunk_verify_and_decode_rows_choose_and_compute_the_same_bits() {
    let mut differing = 0;
    let fp8 = |hadamard| IndexKeys::Fp8 { hadamard };
    let kinds = [
        (Dtype::F32, IndexKeys::Plain),
        (Dtype::F16, IndexKeys::Plain),
        (Dtype::Bf16, IndexKeys::Plain),
        (Dtype::F32, fp8(false)),
        (Dtype::Bf16, fp8(true)),
    ];
    for ((dtype, keys), isa) in kinds
        .into_iter()
        .flat_map(|kind| Isa::ALL.into_iter().filter(|isa| isa.available()).map(move |isa| (kind, isa)))
    {
        let mut whole = World::new((isa, 1, dtype), keys, false);
        let alone: Vec<Vec<Row>> = (0..3).map(|s| whole.step(&[(s, 0, LENS[s])])).collect();
        for rows in &alone {
            for (t, (_, chosen)) in rows.iter().enumerate() {
                assert!(chosen.iter().all(|list| list.len() == TOPK.min(t + 1)));
            }
        }
        let check = |name: &str, pieces: &[Piece], found: &[Row]| {
            let expected = pieces
                .iter()
                .flat_map(|&(s, first, n)| &alone[s % HIT][first as usize..(first + n) as usize]);
            for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_eq!(
                    found.1, expected.1,
                    "{name}, {dtype}, {isa}: selection of row {row} of {pieces:?}"
                );
                assert!(found.0 == expected.0, "{name}, {dtype}, {isa}: logits of row {row} of {pieces:?}");
            }
        };
        for (captured, threads) in [(false, 2), (true, 1), (true, 3)] {
            for chunk in [1, 7, 64] {
                let mut world = World::new((isa, threads, dtype), keys, captured);
                let name = format!("chunks of {chunk}, captured {captured}, {threads} threads, {keys:?}");
                let mut done = [0u32; 3];
                while done != LENS {
                    // All three advance side by side, those of one token last.
                    let mut pieces: Vec<Piece> = (0..3)
                        .filter(|&s| done[s] < LENS[s])
                        .map(|s| (s, done[s], chunk.min(LENS[s] - done[s])))
                        .collect();
                    pieces.sort_by_key(|piece| piece.2 == 1);
                    let found = world.step(&pieces);
                    check(&name, &pieces, &found);
                    pieces.iter().for_each(|&(s, _, n)| done[s] += n);
                }
                assert_eq!(captured && chunk == 1, world.replays > 20, "{}", world.replays);
                // Verify rows over what is stored: one row of five tokens, then five rows of one.
                let verify = [(0, 145, 5), (1, 85, 5)];
                let found = world.step(&verify);
                check("verify rows", &verify, &found);
                let expanded: Vec<Piece> = (0..5).flat_map(|i| [(0, 145 + i, 1), (1, 85 + i, 1)]).collect();
                let found = world.step(&expanded);
                check("expanded verify rows", &expanded, &found);
                // After a prefix hit, in one piece and then token by token.
                let first = HIT_BLOCKS * BLOCK_SIZE;
                let hit = [(HIT, first, LENS[0] - first)];
                let found = world.step(&hit);
                check("after a prefix hit", &hit, &found);
                for position in first..LENS[0] {
                    let hit = [(HIT, position, 1)];
                    let found = world.step(&hit);
                    check("decode rows after a prefix hit", &hit, &found);
                }
                differing += found.len();
            }
        }
    }
    assert!(differing > 0);
}

#[test]
fn another_number_of_keys_computes_something_else_and_enough_keys_are_dense() {
    let run = |topk: usize| {
        let mut checkpoint = Checkpoint::dummy(config(""), 5);
        checkpoint.set_index_topk(topk).unwrap();
        let device = devices::cpu(checkpoint.config(), (Isa::detect(), 1, Dtype::F32), NUM_BLOCKS, 256);
        let runner = Runner::load(device, &checkpoint, LIMITS).unwrap();
        let mut world = World { runner, builder: MetadataBuilder::new(BLOCK_SIZE).unwrap(), replays: 0 };
        world.runner.tap_selections(KeepScores::Nothing).unwrap();
        world.step(&[(0, 0, 150)]).into_iter().map(|(bits, _)| bits).collect::<Vec<_>>()
    };
    let (sparse, dense, all) = (run(TOPK), run(150), run(256));
    assert_eq!(dense, all, "a context of no more keys than may be chosen is dense");
    assert_eq!(sparse[..TOPK], all[..TOPK]);
    assert!(sparse[TOPK + 40..].iter().zip(&all[TOPK + 40..]).all(|(a, b)| a != b));
}

#[test]
fn a_layer_that_shares_an_indexer_owns_no_bytes_of_indexer_keys() {
    let bytes = |more: &str| {
        let config = config(more);
        let groups = CpuDevice::kv_groups(&config, Dtype::F32, BLOCK_SIZE, 256).unwrap();
        let [group] = &groups[..] else { unreachable!("one group") };
        let kinds: Vec<_> = group.parts.iter().map(|part| (part.kind, part.layers.len())).collect();
        let arena = devices::plan(&groups, NUM_BLOCKS);
        (kinds, arena.group(group.id).unwrap().block_bytes)
    };
    let block = BLOCK_SIZE as usize * size_of::<f32>();
    let (kinds, shared) = bytes("");
    assert_eq!(kinds, [(PartKind::Latent, 5), (PartKind::IndexKeys, 2)]);
    // Latents are 32 values, indexer keys 16.
    assert_eq!(shared, block * (5 * 32 + 2 * 16));
    // In fp8 a key of 16 values has a byte a value and a scale, in F32 as in any other dtype; one of 128 values has 132 bytes.
    for (values, expected) in [(16, 20), (128, 132)] {
        let mut config = config("");
        let dsa = config.dsa.as_mut().unwrap();
        (dsa.index_head_dim, dsa.index_keys) = (values, IndexKeys::Fp8 { hadamard: true });
        let groups = CpuDevice::kv_groups(&config, Dtype::F32, BLOCK_SIZE, 256).unwrap();
        let keys = groups[0].parts.iter().find(|part| part.kind == PartKind::IndexKeys).unwrap();
        assert_eq!(keys.bytes_per_token, expected);
    }
    let full = r#", "indexer_types": ["full", "full", "full", "full", "full"]"#;
    let (kinds, all) = bytes(full);
    assert_eq!(kinds, [(PartKind::Latent, 5), (PartKind::IndexKeys, 5)]);
    assert_eq!(all - shared, block * 3 * 16);
}
