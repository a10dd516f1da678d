//! A model of two segments: run a segment at a time, eagerly or by graphs, with rows that stop, wait and go on between them.

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{AttentionMetadata, MetadataBuilder, MetadataRow};
use pagedraft_block_manager::{BlockId, GroupId};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::{CpuDevice, CpuOptions};
use pagedraft_model::cut;
use pagedraft_model::{CaptureSizes, Dtype, Fallback, ModelError, Ran, Runner, StepInputs, StepLimits};

use crate::devices::{self, BLOCK_SIZE};

const CONFIG: &[u8] = br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
const LIMITS: StepLimits = StepLimits { token_rows: 48, logit_rows: 48, max_model_len: 64 };
/// The first page of each group: they share no memory.
const FIRST: [u32; 3] = [0, 10, 20];

fn checkpoint() -> Checkpoint {
    Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), CONFIG).unwrap(), 9)
}

fn in_two() -> Runner<CpuDevice> {
    let checkpoint = checkpoint();
    let config = checkpoint.config();
    let groups = CpuDevice::cut_groups(config, Dtype::F32, BLOCK_SIZE, &[0]).unwrap();
    let options = CpuOptions { isa: Isa::detect(), threads: 2, dtype: Dtype::F32, block_size: BLOCK_SIZE };
    let (mut device, _) = devices::of_groups(&groups, &options, 40);
    let model = cut::load(&mut device, &checkpoint, LIMITS, &[0]).unwrap();
    Runner::with(device, model, LIMITS).unwrap()
}

fn whole() -> Runner<CpuDevice> {
    let checkpoint = checkpoint();
    let device = devices::cpu(checkpoint.config(), (Isa::detect(), 2, Dtype::F32), 40, 64);
    Runner::load(device, &checkpoint, LIMITS).unwrap()
}

fn token(position: u32) -> u32 {
    (position * 7 + position / 5) % 50
}

/// The blocks of a group. Those of group 0 are half as large as the others', so that a page has two; only even ids are used.
fn table(runner: &Runner<CpuDevice>, group: usize) -> Vec<BlockId> {
    let planned = runner.device().arena().plan().group(GroupId(group as u8)).unwrap();
    (0..4).map(|b| BlockId((FIRST[group] + b * 3 % 4) * planned.per_page)).collect()
}

/// Metadata of one sequence that has `context` tokens in the group and gets `queries` more.
fn row(runner: &Runner<CpuDevice>, group: usize, context: u32, queries: u32) -> AttentionMetadata {
    let mut builder = MetadataBuilder::new(BLOCK_SIZE).unwrap();
    builder.push(MetadataRow::causal(context, queries, &table(runner, group))).unwrap();
    builder.finish().clone()
}

/// No slot for `rows` rows.
fn nowhere(rows: usize) -> AttentionMetadata {
    AttentionMetadata { slot_mapping: vec![-1; rows], ..AttentionMetadata::default() }
}

/// Inputs of tokens at these positions.
fn inputs(positions: &[u32], groups: Vec<AttentionMetadata>) -> StepInputs {
    let tokens = positions.iter().map(|&p| token(p)).collect();
    StepInputs { tokens, positions: positions.to_vec(), groups }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The logits of every row of a step in which every row goes through both segments.
fn both_segments(runner: &mut Runner<CpuDevice>, positions: &[u32]) -> ([Ran; 2], Vec<u32>) {
    let (context, n) = (positions[0], positions.len());
    let metadata = [0, 1].map(|group| row(runner, group, context, n as u32));
    let [before, behind] = metadata;
    let first = inputs(positions, vec![before, AttentionMetadata::default(), nowhere(n)]);
    let second = inputs(positions, vec![AttentionMetadata::default(), behind, nowhere(n)]);
    let ran = [(0, first), (1, second)].map(|(s, inputs)| runner.forward_segment(s, &inputs).unwrap());
    (ran, last_logits(runner, n))
}

fn last_logits(runner: &mut Runner<CpuDevice>, rows: usize) -> Vec<u32> {
    let all: Vec<u32> = (0..rows as u32).collect();
    bits(runner.logits(&all).unwrap().block(0..rows))
}

#[test]
fn two_segments_give_the_bits_of_one_eagerly_and_by_graphs() {
    let (mut whole, mut eager, mut graphs) = (whole(), in_two(), in_two());
    let report = graphs.capture(&CaptureSizes::new(vec![1, 8], vec![1, 5])).unwrap();
    assert_eq!(report.graphs % 2, 0, "each segment has its own graphs");
    let steps = [0..20, 20..25, 25..26, 26..31, 31..32, 32..34];
    for positions in steps.map(|range| range.collect::<Vec<u32>>()) {
        let n = positions.len() as u32;
        let one = inputs(&positions, vec![row(&whole, 0, positions[0], n)]);
        whole.forward(&one).unwrap();
        let want = last_logits(&mut whole, n as usize);
        let (ran, found) = both_segments(&mut eager, &positions);
        assert_eq!(ran, [Ran::Eager(None); 2]);
        assert!(found == want, "eager, {positions:?}");
        let (ran, found) = both_segments(&mut graphs, &positions);
        assert!(found == want, "by graphs, {positions:?}: {ran:?}");
        match n {
            1 | 5 => assert!(
                matches!(ran, [Ran::Graph(a), Ran::Graph(b)] if (a.segment, b.segment) == (0, 1)),
                "{ran:?}"
            ),
            2 => assert_eq!(ran, [Ran::Eager(Some(Fallback::NotCaptured)); 2]),
            _ => assert_eq!(ran, [Ran::Eager(Some(Fallback::QueryTooLong)); 2]),
        }
    }
    let counts = graphs.counts();
    assert_eq!((counts.replays, counts.eager), (8, 4), "segments are counted one by one");
}

/// Feeds 20 tokens in these chunks. Behind the first segment only the rows of even positions go on. Where `wait` is set, rows
/// of a chunk that go on wait in their slots until the last chunk, and then pass the second segment together. The logits of
/// all rows that went on.
fn thinned(runner: &mut Runner<CpuDevice>, chunks: &[std::ops::Range<u32>], wait: bool) -> Vec<u32> {
    let mut logits = Vec::new();
    let mut kept = 0;
    for (number, chunk) in chunks.iter().enumerate() {
        let positions: Vec<u32> = chunk.clone().collect();
        let going: Vec<u32> = positions.iter().copied().filter(|p| p % 2 == 0).collect();
        let n = positions.len() as u32;
        let before = row(runner, 0, chunk.start, n);
        let mut held = nowhere(n as usize);
        if wait {
            let slots = row(runner, 2, kept, going.len() as u32).slot_mapping;
            for (position, slot) in going.iter().zip(slots) {
                held.slot_mapping[(position - chunk.start) as usize] = slot;
            }
        }
        let first = inputs(&positions, vec![before, AttentionMetadata::default(), held]);
        runner.forward_segment(0, &first).unwrap();
        let seen = runner.residual(n as usize).unwrap().to_vec();
        assert!(seen.iter().all(|x| x.is_finite()) && seen.iter().any(|&x| x != 0.0));
        kept += going.len() as u32;
        if wait {
            if number + 1 < chunks.len() {
                continue;
            }
            let positions: Vec<u32> = (0..chunk.end).filter(|p| p % 2 == 0).collect();
            let fetched = AttentionMetadata {
                slot_mapping: row(runner, 2, 0, kept).slot_mapping,
                ..AttentionMetadata::default()
            };
            let behind = row(runner, 1, 0, kept);
            let second = inputs(&positions, vec![AttentionMetadata::default(), behind, fetched]);
            runner.forward_segment(1, &second).unwrap();
        } else {
            let rows: Vec<u32> = going.iter().map(|p| p - chunk.start).collect();
            runner.compact(&rows).unwrap();
            let width = seen.len() / n as usize;
            let compacted = runner.residual(rows.len()).unwrap();
            for (&row, found) in rows.iter().zip(compacted.chunks(width)) {
                assert!(bits(found) == bits(&seen[row as usize * width..][..width]));
            }
            let behind = row(runner, 1, kept - going.len() as u32, going.len() as u32);
            let second = inputs(&going, vec![AttentionMetadata::default(), behind, nowhere(going.len())]);
            runner.forward_segment(1, &second).unwrap();
        }
        logits.extend(last_logits(runner, if wait { kept as usize } else { going.len() }));
    }
    logits
}

#[test]
fn rows_that_stop_or_wait_between_segments_give_the_bits_of_one_step() {
    let at_once = thinned(&mut in_two(), std::slice::from_ref(&(0..20)), false);
    assert_eq!(at_once.len(), 10 * 50);
    // Of the second chunk, one row goes on.
    let chunks = [0..6, 6..8, 8..20];
    for graphs in [false, true] {
        let runner = || {
            let mut runner = in_two();
            if graphs {
                runner.capture(&CaptureSizes::new(vec![8, 16], (1..=12).collect())).unwrap();
            }
            runner
        };
        assert!(thinned(&mut runner(), &chunks, false) == at_once, "in chunks, graphs {graphs}");
        assert!(thinned(&mut runner(), &chunks, true) == at_once, "after waiting, graphs {graphs}");
    }
    let mut dense = in_two();
    let all: Vec<u32> = (0..20).collect();
    assert!(both_segments(&mut dense, &all).1[18 * 50..19 * 50] != at_once[9 * 50..], "nothing was thinned");
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let told = |result: Result<(), ModelError>, what: &str| {
        let said = result.unwrap_err().to_string();
        assert!(said.contains(what), "{said}");
    };
    let (mut one, mut two) = (whole(), in_two());
    let step = inputs(&[0, 1], vec![row(&one, 0, 0, 2)]);
    one.forward(&step).unwrap();
    told(one.compact(&[0]), "one segment");
    told(one.forward_segment(1, &step).map(drop), "segment 1 of a model that has 1");
    let mut other = step.clone();
    other.groups.push(AttentionMetadata::default());
    told(one.forward(&other).map(drop), "metadata of 2 KV groups, and the model keeps 1");
    let mut windowed = step.clone();
    windowed.groups[0].window = Some(4);
    told(one.forward(&windowed).map(drop), "window Some(4)");

    let metadata = row(&two, 0, 0, 2);
    let first = inputs(&[0, 1], vec![metadata, AttentionMetadata::default(), nowhere(2)]);
    told(two.forward(&first).map(drop), "2 segments");
    two.forward_segment(0, &first).unwrap();
    told(two.logits(&[0]).map(drop), "not the model's last");
    told(two.compact(&[0, 2]), "row 2 of a step of 2 rows");
    told(two.residual(3).map(drop), "3 rows");
    // The second segment's own group has no metadata in these inputs.
    told(two.forward_segment(1, &first).map(drop), "0 slots in KV group 1, and 2 token rows");
    let mut beyond = first.clone();
    beyond.groups[2].slot_mapping[1] = 1 << 40;
    told(two.forward_segment(0, &beyond).map(drop), "of held rows");
}
