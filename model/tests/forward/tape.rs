//! A captured list of operations, replayed over the same buffers, is the eager step: also on other inputs.

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{MaskKind, MetadataBuilder};
use pagedraft_block_manager::BlockId;
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::CpuDevice;
use pagedraft_model::dense::DenseDecoder;
use pagedraft_model::{Architecture, Device, Dtype, GraphKey, Op, StepInputs, StepLimits};

use crate::devices;

const CONFIG: &[u8] = br#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 50, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
const ROWS: usize = 5;

fn inputs(step: u32) -> StepInputs {
    let mut builder = MetadataBuilder::new(16).unwrap();
    let table = [BlockId(2), BlockId(0)];
    builder.push_row(step * ROWS as u32, ROWS as u32, &table, MaskKind::Causal).unwrap();
    let positions = step * ROWS as u32..(step + 1) * ROWS as u32;
    let tokens = positions.clone().map(|p| p * 7 % 50).collect();
    StepInputs::dense(tokens, positions.collect(), builder.finish().clone())
}

/// The logits of every row of three steps, each run by `run`.
fn three_steps(
    key: Option<GraphKey>,
    run: impl Fn(&mut CpuDevice, &DenseDecoder<pagedraft_model::BufferId>),
) -> Vec<u32> {
    let checkpoint = Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), CONFIG).unwrap(), 9);
    let mut device = devices::cpu(checkpoint.config(), (Isa::detect(), 2, Dtype::F32), 3, 64);
    let limits = StepLimits { token_rows: ROWS, logit_rows: ROWS, max_model_len: 64 };
    let model = DenseDecoder::load(&mut device, &checkpoint, limits).unwrap();
    device.attach(model.kv(), model.shapes()).unwrap();
    let mut bits = Vec::new();
    for step in 0..3 {
        device.bind(&inputs(step), key).unwrap();
        device.select(&(0..ROWS as u32).collect::<Vec<_>>()).unwrap();
        run(&mut device, &model);
        bits.extend(device.read(model.logits(), ROWS).unwrap().iter().map(|l| l.to_bits()));
    }
    bits
}

#[test]
fn a_tape_captured_once_replays_later_steps_bit_by_bit() {
    let key = GraphKey { token_rows: ROWS as u32, max_query_len: ROWS as u32, sequences: 1, segment: 0 };
    let eager = three_steps(None, |device, model| {
        let mut ops = Vec::new();
        model.segment(0, ROWS, &mut ops);
        model.head(ROWS, &mut ops);
        device.run(&ops).unwrap();
    });
    let tape = std::cell::RefCell::new(None);
    let replayed = three_steps(Some(key), |device, model| {
        let mut tape = tape.borrow_mut();
        let tape = tape.get_or_insert_with(|| {
            let mut ops = Vec::new();
            model.segment(0, ROWS, &mut ops);
            model.head(ROWS, &mut ops);
            device.capture(&ops, key).unwrap()
        });
        device.replay(tape).unwrap();
    });
    assert!(eager == replayed);

    assert!(eager[..250] != eager[250..500], "the steps are all the same: the test proves nothing");
}

#[test]
fn the_scale_of_attention_is_the_operations() {
    let scaled = |scale: Option<f32>| {
        three_steps(None, |device, model| {
            let mut ops = Vec::new();
            model.segment(0, ROWS, &mut ops);
            model.head(ROWS, &mut ops);
            for op in &mut ops {
                if let (Op::Attention { scale: own, .. }, Some(scale)) = (op, scale) {
                    *own = scale;
                }
            }
            device.run(&ops).unwrap();
        })
    };
    let own = scaled(None);
    assert!(scaled(Some(1.0 / 8f32.sqrt())) == own, "heads of 8 values");
    let flat = scaled(Some(0.0));
    // The first token sees only itself, whatever the scale.
    assert!(flat[..50] == own[..50] && flat[50..] != own[50..]);
}
