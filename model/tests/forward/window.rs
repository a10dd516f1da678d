//! Models with sliding windows compute what the reference computes, in any chunks, with what is behind the window gone.
//!
//! The reference's files are not part of the repository; without them these tests say so and pass.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{MetadataBuilder, MetadataRow};
use pagedraft_block_manager::{BlockId, KvGroup};
use pagedraft_model::checkpoint::Checkpoint;
use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena};
use pagedraft_model::dense::kv_groups;
use pagedraft_model::{CaptureSizes, Dtype, Ran, Runner, StepInputs, StepLimits};
use safetensors::SafeTensors;

use crate::devices::{self, BLOCK_SIZE};

const WINDOW: u32 = 24;
const LENGTH: usize = 512;
const NUM_BLOCKS: u32 = 40;
const TOLERANCE: f64 = 1e-4;
/// Lengths of the prompts.
const PROMPTS: [usize; 6] = [1, 23, 24, 25, 100, 259];

/// The reference's models, whose layers have these windows.
fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/window");
    if !root.exists() {
        println!("skipped: no reference checkpoints at {}", root.display());
        return Vec::new();
    }
    let (w, full) = (Some(WINDOW), None);
    let models = [("mistral", [w, w, w, w]), ("qwen3-alternating", [full, w, full, w])];
    let checked = |(name, windows): (&str, [Option<u32>; 4])| {
        let dir = root.join(name);
        assert_eq!(Checkpoint::open(&dir).unwrap().config().windows, windows, "{name}");
        dir
    };
    models.map(checked).into()
}

struct Case {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

fn cases(dir: &Path) -> Vec<Case> {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let case = |length: &usize| {
        let case = &json["cases"][format!("p{length}")];
        let ids = |name: &str| -> Vec<u32> {
            case[name].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let logits = tensors.tensor(&format!("p{length}.logits")).unwrap().data();
        let logits = logits.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect();
        Case { prompt: ids("prompt_token_ids"), tokens: ids("token_ids"), logits }
    };
    PROMPTS.iter().map(case).collect()
}

/// One sequence on a runner. Each of its blocks has a page of the arena, and the pages are scattered.
struct Sequence {
    runner: Runner<CpuDevice>,
    arena: Arc<KvArena>,
    groups: Vec<KvGroup>,
    tables: Vec<Vec<BlockId>>,
    pages: Vec<u32>,
    len: u32,
}

impl Sequence {
    fn open(dir: &Path, isa: Isa) -> Self {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let config = checkpoint.config();
        let groups = kv_groups(&config.windows, LENGTH, devices::token_bytes(config, Dtype::F32));
        let options = CpuOptions { isa, threads: 2, dtype: Dtype::F32, block_size: BLOCK_SIZE };
        let (device, arena) = devices::of_groups(&groups, &options, NUM_BLOCKS);
        let limits = StepLimits { token_rows: 320, logit_rows: 64, max_model_len: LENGTH };
        let runner = Runner::load(device, &checkpoint, limits).unwrap();
        let pages = arena.plan().num_pages();
        let mut pages: Vec<u32> = (0..pages).collect();
        pages.sort_by_key(|page| page * 37 % 41);
        let tables = vec![Vec::new(); groups.len()];
        Self { runner, arena, groups, tables, pages, len: 0 }
    }

    /// Feeds tokens in one step; the logits of the last one.
    fn feed(&mut self, tokens: &[u32]) -> (Ran, Vec<f32>) {
        let n = tokens.len() as u32;
        let mut inputs = StepInputs {
            tokens: tokens.to_vec(),
            positions: (self.len..self.len + n).collect(),
            groups: Vec::new(),
        };
        for (group, table) in self.groups.iter().zip(&mut self.tables) {
            let per_page = self.arena.plan().group(group.id).unwrap().per_page;
            while table.len() < (self.len + n).div_ceil(BLOCK_SIZE) as usize {
                table.push(BlockId(self.pages.pop().unwrap() * per_page));
            }
            let mut builder = MetadataBuilder::new(BLOCK_SIZE).unwrap();
            builder.set_window(group.window);
            builder.push(MetadataRow::causal(self.len, n, table)).unwrap();
            inputs.groups.push(builder.finish().clone());
        }
        let ran = self.runner.forward(&inputs).unwrap();
        self.len += n;
        (ran, self.runner.logits(&[n - 1]).unwrap().row(0).to_vec())
    }

    /// Frees every block that no later query sees, fills it with NaNs, and gives its page to others.
    fn free_behind(&mut self) {
        let plan = self.arena.plan();
        for (group, table) in self.groups.iter().zip(&mut self.tables) {
            let Some(window) = group.window else { continue };
            let planned = plan.group(group.id).unwrap();
            let gone = (self.len + 1).saturating_sub(window) / BLOCK_SIZE;
            for block in table.iter_mut().take(gone as usize).filter(|block| **block != BlockId::FREED) {
                // SAFETY: the block lies in the arena, whose device is at rest.
                unsafe {
                    let at = self.arena.base().add(block.0 as usize * planned.stride).cast::<f32>();
                    std::slice::from_raw_parts_mut(at, planned.block_bytes / 4).fill(f32::NAN);
                }
                self.pages.insert(0, block.0 / planned.per_page);
                *block = BlockId::FREED;
            }
        }
    }
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let greatest = expected.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
    let differences = found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    // NaN must not slip through a fold by max.
    differences.fold(0.0f64, |m, d| if d > m || d.is_nan() { d } else { m }) / greatest
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

/// The greedy continuation of a prompt that is fed in chunks, and the logits that each token is chosen from.
fn greedy(
    sequence: &mut Sequence,
    case: &Case,
    chunk: usize,
    free: bool,
) -> (Vec<u32>, Vec<Vec<f32>>, usize) {
    let (mut tokens, mut chosen_from, mut replays) = (Vec::new(), Vec::new(), 0);
    let mut last = Vec::new();
    for part in case.prompt.chunks(chunk) {
        last = sequence.feed(part).1;
        if free {
            sequence.free_behind();
        }
    }
    while tokens.len() < case.tokens.len() {
        tokens.push(argmax(&last));
        chosen_from.push(std::mem::take(&mut last));
        let (ran, logits) = sequence.feed(&tokens[tokens.len() - 1..]);
        last = logits;
        replays += usize::from(matches!(ran, Ran::Graph(_)));
        if free {
            sequence.free_behind();
        }
    }
    (tokens, chosen_from, replays)
}

#[test]
fn greedy_continuations_beyond_the_window_are_those_of_the_reference() {
    for dir in models() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut worst = 0.0f64;
            for case in cases(&dir) {
                let p = case.prompt.len();
                let (tokens, logits, _) = greedy(&mut Sequence::open(&dir, isa), &case, usize::MAX, false);
                assert_eq!(tokens, case.tokens, "{} on {isa}, prompt {p}", dir.display());
                worst = worst.max(relative(&logits.concat(), &case.logits));
            }
            println!("{} on {isa}: worst relative difference {worst:.1e}", dir.display());
            assert!(worst <= TOLERANCE, "{} on {isa}: {worst:e}", dir.display());
        }
    }
}

#[test]
fn chunks_and_freed_blocks_and_graphs_show_in_no_bit() {
    let bits = |rows: &[Vec<f32>]| -> Vec<u32> { rows.iter().flatten().map(|x| x.to_bits()).collect() };
    for dir in models() {
        for case in cases(&dir) {
            let p = case.prompt.len();
            let isa = Isa::detect();
            let (_, whole, _) = greedy(&mut Sequence::open(&dir, isa), &case, usize::MAX, false);
            for (chunk, graphs) in [(1, false), (7, true), (64, false)] {
                let mut sequence = Sequence::open(&dir, isa);
                if graphs {
                    sequence.runner.capture(&CaptureSizes::new(vec![2, 8], vec![1, 7])).unwrap();
                }
                let (tokens, found, replays) = greedy(&mut sequence, &case, chunk, true);
                let what = format!("{}, prompt {p} in chunks of {chunk}", dir.display());
                assert_eq!(tokens, case.tokens, "{what}");
                assert!(bits(&found) == bits(&whole), "{what}: other bits than in one piece");
                assert_eq!(replays, if graphs { tokens.len() } else { 0 }, "{what}");
                for (group, table) in sequence.groups.iter().zip(&sequence.tables) {
                    let held = table.iter().filter(|block| **block != BlockId::FREED).count() as u32;
                    // The window of the next query ends with its own key, which is not stored yet.
                    let most = group.window.map_or(u32::MAX, |w| (w - 1).div_ceil(BLOCK_SIZE) + 1);
                    assert!(held <= most, "{what}: {held} blocks of group {:?}", group.name);
                }
            }
        }
    }
}
