//! Reference checkpoints with sparse attention over latents: what the original implementations choose and compute, this
//! engine must.
//!
//! The files are not part of the repository; without them these tests say so and pass.

use std::path::{Path, PathBuf};

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_attention::sparse::KeepScores;
use pagedraft_block_manager::BlockId;
use pagedraft_model::checkpoint::Checkpoint;
use pagedraft_model::cpu::CpuDevice;
use pagedraft_model::dsa::{SparseDecoder, SparseOp};
use pagedraft_model::{Architecture, Device, Dtype, Op, Runner, StepInputs, StepLimits};
use safetensors::SafeTensors;

use crate::agreement::{argmax, relative};
use crate::devices::{self, BLOCK_SIZE};

const NUM_BLOCKS: u32 = 32;
const LIMITS: StepLimits = StepLimits { token_rows: 256, logit_rows: 256, max_model_len: 512 };
/// What the fixtures' README asks of a float32 engine; better than a fifth of it is normal.
const TOLERANCE: f64 = 1e-4;

fn fixture(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference").join(name);
    if !dir.exists() {
        println!("skipped: no reference checkpoint at {}", dir.display());
        return None;
    }
    Some(dir)
}

fn sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

struct Expected(Vec<u8>);

impl Expected {
    fn open(dir: &Path) -> Self {
        Self(std::fs::read(dir.join("expected.safetensors")).unwrap())
    }

    fn get<T>(&self, name: &str, width: usize, read: impl Fn(&[u8]) -> T) -> Vec<T> {
        let all = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = all.tensor(name).unwrap();
        tensor.data().chunks_exact(width).map(read).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.get(name, 4, |b| f32::from_le_bytes(b.try_into().unwrap()))
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.get(name, 8, |b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
    }

    /// Rows of `width` ids, without their padding of -1.
    fn lists(&self, name: &str, width: usize) -> Vec<Vec<u32>> {
        let all = self.get(name, 4, |b| i32::from_le_bytes(b.try_into().unwrap()));
        all.chunks_exact(width)
            .map(|row| row.iter().filter(|&&id| id >= 0).map(|&id| id as u32).collect())
            .collect()
    }
}

/// One sequence, its blocks scattered over the pool.
struct Sequence {
    runner: Runner<CpuDevice>,
    builder: MetadataBuilder,
    table: Vec<BlockId>,
    len: u32,
}

fn table() -> Vec<BlockId> {
    (0..NUM_BLOCKS).map(|i| BlockId((i * 19 + 11) % NUM_BLOCKS)).collect()
}

impl Sequence {
    fn open(dir: &Path, isa: Isa, threads: usize) -> Self {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let device = devices::cpu(checkpoint.config(), (isa, threads, Dtype::F32), NUM_BLOCKS, 512);
        let mut runner = Runner::load(device, &checkpoint, LIMITS).unwrap();
        runner.tap_hidden().unwrap();
        runner.tap_selections(KeepScores::Nothing).unwrap();
        Self { runner, builder: MetadataBuilder::new(BLOCK_SIZE).unwrap(), table: table(), len: 0 }
    }

    /// Feeds tokens in one step; the logits of every one of them.
    fn feed(&mut self, tokens: &[u32]) -> Vec<f32> {
        let n = tokens.len() as u32;
        let inputs = inputs(&mut self.builder, &self.table, self.len, tokens);
        self.runner.forward(&inputs).unwrap();
        self.len += n;
        self.runner.logits(&(0..n).collect::<Vec<_>>()).unwrap().block(0..n as usize).to_vec()
    }

    fn selected(&mut self, layer: u16, row: usize) -> Vec<u32> {
        let place = self.runner.indexer_layers().iter().position(|&own| own == layer).unwrap();
        self.runner.selected_keys(place, row).unwrap().unwrap().to_vec()
    }
}

fn inputs(builder: &mut MetadataBuilder, table: &[BlockId], context: u32, tokens: &[u32]) -> StepInputs {
    let n = tokens.len() as u32;
    builder.begin();
    builder.push_row(context, n, table, MaskKind::Causal).unwrap();
    StepInputs::dense(tokens.to_vec(), (context..context + n).collect(), builder.finish().clone())
}

#[test]
fn selections_logits_hidden_states_and_greedy_tokens_are_those_of_deepseek() {
    for (name, layers, k) in [("dsa/plain", 2u16, 32), ("dsa/yarn-groups", 3, 64)] {
        let Some(dir) = fixture(name) else { continue };
        let expected = Expected::open(&dir);
        let prompt = expected.ids("input_ids");
        let next = expected.ids("sparse.next_tokens");
        for (isa, threads) in sets().zip([1, 2].into_iter().cycle()) {
            let mut sequence = Sequence::open(&dir, isa, threads);
            let logits = sequence.feed(&prompt);
            let vocab = logits.len() / prompt.len();
            let mut worst = relative(&logits, &expected.floats("sparse.prefill_logits"));
            for layer in 0..layers {
                let lists = expected.lists(&format!("sparse.layer{layer}.prefill_topk"), k);
                for (row, list) in lists.iter().enumerate() {
                    assert_eq!(
                        &sequence.selected(layer, row),
                        list,
                        "{name} on {isa}: layer {layer}, row {row}"
                    );
                }
                let hidden = expected.floats(&format!("sparse.layer{layer}.prefill_hidden"));
                let found = sequence.runner.hidden(usize::from(layer) + 1).unwrap().unwrap();
                worst = worst.max(relative(&found[..hidden.len()], &hidden));
            }
            assert_eq!(argmax(&logits[logits.len() - vocab..]), next[0], "{name} on {isa}");
            let decoded = expected.floats("sparse.decode_logits");
            let lists: Vec<_> = (0..layers)
                .map(|layer| expected.lists(&format!("sparse.layer{layer}.decode_topk"), k))
                .collect();
            let mut all = Vec::new();
            for (s, &token) in next[..next.len() - 1].iter().enumerate() {
                let logits = sequence.feed(&[token]);
                assert_eq!(argmax(&logits), next[s + 1], "{name} on {isa}: step {s}");
                for layer in 0..layers {
                    let list = &lists[usize::from(layer)][s];
                    assert_eq!(
                        &sequence.selected(layer, 0),
                        list,
                        "{name} on {isa}: layer {layer}, step {s}"
                    );
                }
                all.extend(logits);
            }
            worst = worst.max(relative(&all, &decoded));
            println!("{name} on {isa}: worst relative difference {worst:.1e}");
            assert!(worst <= TOLERANCE, "{name} on {isa}: {worst:e}");
        }
    }
}

#[test]
fn experts_and_their_weights_are_those_of_deepseek() {
    for (name, layers) in [("dsa/plain", 2usize), ("dsa/yarn-groups", 3)] {
        let Some(dir) = fixture(name) else { continue };
        let expected = Expected::open(&dir);
        let prompt = expected.ids("input_ids");
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let per_token = checkpoint.config().dsa.as_ref().unwrap().experts.per_token;
        let mut device = devices::cpu(checkpoint.config(), (Isa::detect(), 2, Dtype::F32), NUM_BLOCKS, 512);
        let model = SparseDecoder::load(&mut device, &checkpoint, LIMITS).unwrap();
        device.attach(model.kv(), model.shapes()).unwrap();
        let mut builder = MetadataBuilder::new(BLOCK_SIZE).unwrap();
        device.bind(&inputs(&mut builder, &table(), 0, &prompt), None).unwrap();
        let mut ops = Vec::new();
        model.segment(0, prompt.len(), &mut ops);
        let mut layer = 1;
        for op in ops {
            device.run(std::slice::from_ref(&op)).unwrap();
            let Op::Sparse(SparseOp::Route { out, weights, .. }) = op else { continue };
            let experts = expected.lists(&format!("sparse.layer{layer}.router_indices"), per_token);
            for (row, experts) in experts.iter().take(prompt.len()).enumerate() {
                assert_eq!(
                    device.read_choices(out, row).unwrap(),
                    experts,
                    "{name}: layer {layer}, row {row}"
                );
            }
            let found = device.read(weights, prompt.len()).unwrap();
            let all = expected.floats(&format!("sparse.layer{layer}.router_weights"));
            let worst = relative(found, &all[..found.len()]);
            assert!(worst <= TOLERANCE, "{name}: layer {layer}: {worst:e}");
            layer += 1;
        }
        assert_eq!(layer, layers);
    }
}

#[test]
fn a_model_whose_layers_share_indexers_chooses_and_computes_as_glm() {
    let Some(dir) = fixture("glm/five-layers") else { return };
    let expected = Expected::open(&dir);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    for isa in sets() {
        for case in ["p1", "p40", "p150"] {
            let (prompt, tokens) =
                (ids(&json["cases"][case]["prompt_token_ids"]), ids(&json["cases"][case]["token_ids"]));
            let selected = &json["cases"][case]["selected"];
            let mut sequence = Sequence::open(&dir, isa, 2);
            assert_eq!(sequence.runner.indexer_layers(), [0, 3]);
            let check = |sequence: &mut Sequence, first: usize, rows: usize| {
                for layer in [0u16, 3] {
                    for row in 0..rows {
                        let list = ids(&selected[layer.to_string()][first + row]);
                        let found = sequence.selected(layer, row);
                        assert_eq!(found, list, "{case} on {isa}: layer {layer}, position {}", first + row);
                    }
                }
            };
            let logits = sequence.feed(&prompt);
            check(&mut sequence, 0, prompt.len());
            let vocab = logits.len() / prompt.len();
            let mut all = logits[logits.len() - vocab..].to_vec();
            for (s, &token) in tokens[..tokens.len() - 1].iter().enumerate() {
                assert_eq!(argmax(&all[s * vocab..]), token, "{case} on {isa}: step {s}");
                all.extend(sequence.feed(&[token]));
                check(&mut sequence, prompt.len() + s, 1);
            }
            assert_eq!(argmax(&all[(tokens.len() - 1) * vocab..]), tokens[tokens.len() - 1]);
            let worst = relative(&all, &expected.floats(&format!("{case}.logits")));
            println!("glm {case} on {isa}: worst relative difference {worst:.1e}");
            assert!(worst <= TOLERANCE, "{case} on {isa}: {worst:e}");
        }
    }
}
