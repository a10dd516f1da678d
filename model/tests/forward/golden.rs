//! The reference checkpoints: what the original implementations compute, this engine must compute.
//!
//! The files are not part of the repository; without them these tests say so and pass.

use std::path::{Path, PathBuf};

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_block_manager::BlockId;
use pagedraft_model::checkpoint::Checkpoint;
use pagedraft_model::cpu::CpuDevice;
use pagedraft_model::{Dtype, Runner, StepInputs, StepLimits};
use safetensors::SafeTensors;

use crate::agreement::{argmax, relative};
use crate::devices::{self, BLOCK_SIZE};

const NUM_BLOCKS: u32 = 64;
/// What the fixtures' README asks of a float32 engine; better than a fifth of it is normal.
const TOLERANCE: f64 = 1e-4;

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference");
    let names = ["llama/llama3rope-untied", "llama/plain-tied", "qwen3/tied-headdim32", "qwen3/untied"];
    let found: Vec<_> = names.iter().map(|n| root.join(n)).filter(|p| p.exists()).collect();
    if found.is_empty() {
        println!("skipped: no reference checkpoints at {}", root.display());
    }
    found
}

struct Expected(Vec<u8>);

impl Expected {
    fn open(dir: &Path) -> Self {
        Self(std::fs::read(dir.join("expected.safetensors")).unwrap())
    }

    fn get<T>(&self, name: &str, width: usize, read: impl Fn(&[u8]) -> T) -> Option<Vec<T>> {
        let all = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = all.tensor(name).ok()?;
        Some(tensor.data().chunks_exact(width).map(read).collect())
    }

    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        self.get(name, 4, |b| f32::from_le_bytes(b.try_into().unwrap()))
    }

    fn ids(&self, name: &str) -> Option<Vec<u32>> {
        self.get(name, 8, |b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
    }
}

/// One sequence on a runner, its blocks scattered over the pool.
struct Sequence {
    runner: Runner<CpuDevice>,
    builder: MetadataBuilder,
    table: Vec<BlockId>,
    len: u32,
}

impl Sequence {
    fn open(dir: &Path, isa: Isa, threads: usize) -> Self {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let device = devices::cpu(checkpoint.config(), (isa, threads, Dtype::F32), NUM_BLOCKS, 1024);
        let limits = StepLimits { token_rows: 512, logit_rows: 512, max_model_len: 1024 };
        let mut runner = Runner::load(device, &checkpoint, limits).unwrap();
        runner.tap_hidden().unwrap();
        let table = (0..NUM_BLOCKS).map(|i| BlockId((i * 37 + 11) % NUM_BLOCKS)).collect();
        Self { runner, builder: MetadataBuilder::new(BLOCK_SIZE).unwrap(), table, len: 0 }
    }

    /// Feeds tokens in one step; the logits of every one of them.
    fn feed(&mut self, tokens: &[u32]) -> Vec<f32> {
        let n = tokens.len() as u32;
        self.builder.begin();
        self.builder.push_row(self.len, n, &self.table, MaskKind::Causal).unwrap();
        let positions = (self.len..self.len + n).collect();
        let inputs = StepInputs::dense(tokens.to_vec(), positions, self.builder.finish().clone());
        self.runner.forward(&inputs).unwrap();
        self.len += n;
        self.runner.logits(&(0..n).collect::<Vec<_>>()).unwrap().block(0..n as usize).to_vec()
    }
}

#[test]
fn logits_and_hidden_states_agree_with_the_references() {
    for dir in fixtures() {
        let expected = Expected::open(&dir);
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            let mut worst = 0.0f64;
            for p in 0..5 {
                let prompt = expected.ids(&format!("p{p}.input_ids")).unwrap();
                let mut sequence = Sequence::open(&dir, isa, 1 + p % 2);
                let logits = sequence.feed(&prompt);
                let vocab = logits.len() / prompt.len();
                if let Some(all) = expected.floats(&format!("p{p}.logits")) {
                    worst = worst.max(relative(&logits, &all));
                }
                if let Some(last) = expected.floats(&format!("p{p}.last_logits")) {
                    worst = worst.max(relative(&logits[logits.len() - vocab..], &last));
                }
                if p == 2 {
                    let norm = expected.floats("p2.hidden.final_norm").unwrap();
                    let rows: Vec<u32> = (0..prompt.len() as u32).collect();
                    let found = sequence.runner.final_hidden(&rows).unwrap();
                    worst = worst.max(relative(found.block(0..rows.len()), &norm));
                    let layers = sequence.runner.config().num_layers;
                    for layer in 0..=layers {
                        let hidden = expected.floats(&format!("p2.hidden.{layer}")).unwrap();
                        let found = sequence.runner.hidden(layer).unwrap().unwrap();
                        worst = worst.max(relative(&found[..hidden.len()], &hidden));
                    }
                }
            }
            println!("{} on {isa}: worst relative difference {worst:.1e}", dir.display());
            assert!(worst <= TOLERANCE, "{} on {isa}: {worst:e}", dir.display());
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_the_references() {
    for dir in fixtures() {
        let expected = Expected::open(&dir);
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for p in 0..5 {
                let prompt = expected.ids(&format!("p{p}.input_ids")).unwrap();
                let greedy = expected.ids(&format!("p{p}.greedy_ids")).unwrap();
                let chose = expected.floats(&format!("p{p}.greedy_logits"));
                let mut sequence = Sequence::open(&dir, isa, 2);
                let mut logits = sequence.feed(&prompt);
                let vocab = logits.len() / prompt.len();
                let mut found = Vec::new();
                for step in 0..greedy.len() {
                    let row = &logits[logits.len() - vocab..];
                    if let Some(chose) = &chose {
                        let difference = relative(row, &chose[step * vocab..(step + 1) * vocab]);
                        assert!(
                            difference <= TOLERANCE,
                            "{} on {isa} step {step}: {difference:e}",
                            dir.display()
                        );
                    }
                    found.push(argmax(row));
                    logits = sequence.feed(&found[step..]);
                }
                assert_eq!(found, greedy, "{} on {isa}, prompt {p}", dir.display());
            }
        }
    }
}

#[test]
fn the_rope_frequencies_are_those_of_the_references() {
    for dir in fixtures() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let config = checkpoint.config();
        let expected = Expected::open(&dir).floats("inv_freq").unwrap();
        let difference = relative(&config.rope.inv_freq(config.head_dim), &expected);
        assert!(difference < 1e-6, "{}: {difference:e}", dir.display());
    }
}
