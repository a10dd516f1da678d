//! Whole steps on the CUDA device, its kernels emulated: they agree with the CPU's, and have the same bits however a sequence
//! is computed.

use pagedraft_block_manager::{BlockCopy, BlockId, GroupId};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cuda::{Backend, CudaOptions, KvStorage, MemoryNeed, check};
use pagedraft_model::{
    CaptureSizes, Choice, Device, Dtype, GraphKey, ModelError, NO_CHOICE, Runner, StepInputs,
};

use crate::emulated::{self, Emulated};
use crate::emulator;
use crate::steps::{
    self, NUM_BLOCKS, ROWS, bits, checkpoint, cpu, limits, logits, options, step, steps, table,
};

type Gpu = steps::Gpu<Emulated>;

fn gpu(config: usize, dtype: Dtype, multiprocessors: u32, seed: u64) -> Gpu {
    gpu_of(config, options(dtype), multiprocessors, seed)
}

fn gpu_of(config: usize, options: CudaOptions, multiprocessors: u32, seed: u64) -> Gpu {
    let checkpoint = checkpoint(config);
    let plan = steps::plan(checkpoint.config(), &options);
    let device = emulated::device(checkpoint.config(), &options, &plan, (multiprocessors, seed));
    Runner::load(device, &checkpoint, limits()).unwrap()
}

#[test]
fn every_kind_of_step_agrees_with_the_cpu() {
    if !emulator::available() {
        return;
    }
    for (config, dtype, tolerance) in [(0, Dtype::Bf16, 0.02), (1, Dtype::F16, 0.004), (2, Dtype::Bf16, 0.02)]
    {
        steps::agrees_with_the_cpu(config, dtype, tolerance, gpu(config, dtype, 3, 1));
    }
}

#[test]
fn a_sequence_has_the_same_bits_in_chunks_in_verify_rows_among_others_and_on_any_gpu() {
    if !emulator::available() {
        return;
    }
    for (config, dtype, multiprocessors) in [(0, Dtype::Bf16, 1), (0, Dtype::Bf16, 7), (2, Dtype::F16, 4)] {
        let (alone, cut) = (gpu(config, dtype, 132, 1), gpu(config, dtype, multiprocessors, 2));
        steps::has_the_same_bits_however_it_is_cut(config, alone, cut);
    }
}

#[test]
fn replays_give_the_bits_of_eager_steps_and_touch_no_block_that_is_not_theirs() {
    if !emulator::available() {
        return;
    }
    for (config, dtype) in [(0, Dtype::F16), (1, Dtype::Bf16)] {
        steps::replays_as_eager_and_touches_nothing_else(
            config,
            gpu(config, dtype, 3, 1),
            gpu(config, dtype, 3, 2),
        );
    }
}

#[test]
fn the_injected_fault_shows_in_the_logits() {
    if !emulator::available() {
        return;
    }
    let (mut sound, mut faulty) = (gpu(0, Dtype::Bf16, 3, 1), gpu(0, Dtype::Bf16, 3, 1));
    faulty.capture(&CaptureSizes::new(vec![2, 16], (1..=5).collect())).unwrap();
    faulty.inject_decode_graph_for_verify(16).unwrap();
    let mut differ = false;
    for rows in &steps()[..5] {
        let ((_, want), (_, got)) = (logits(&mut sound, rows), logits(&mut faulty, rows));
        differ = bits(&want) != bits(&got);
    }
    assert!(differ, "verify rows on a graph of single tokens gave the right logits");
}

#[test]
fn tokens_are_chosen_from_the_logits_that_stay_on_the_device() {
    if !emulator::available() {
        return;
    }
    let greedy = |temperature: f32| Choice {
        temperature,
        top_k: if temperature > 0.0 { 1 } else { 0 },
        top_p: 1.0,
        min_p: 0.0,
        seed: 1,
        sample: 0,
        position: 3,
    };
    let best = |logits: &[f32]| {
        (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
    };
    for graphs in [false, true] {
        let mut gpu = gpu(0, Dtype::Bf16, 3, 1);
        if graphs {
            gpu.capture(&CaptureSizes::new(vec![4, 16], (1..=5).collect())).unwrap();
        }
        for rows in &steps()[1..6] {
            let inputs = step(rows);
            gpu.forward(&inputs).unwrap();
            // Some of the rows, not in their order.
            let picked: Vec<u32> = (0..inputs.tokens.len() as u32).rev().step_by(2).collect();
            let want: Vec<u32> = {
                let logits = gpu.logits(&picked).unwrap();
                (0..picked.len()).map(|i| best(logits.row(i))).collect()
            };
            // Of one candidate the noise picks that: the sampler's way to the argmax.
            for temperature in [0.0, 0.7] {
                let choices = vec![greedy(temperature); picked.len()];
                assert_eq!(gpu.choose(&picked, &choices).unwrap(), want, "{rows:?} at {temperature}");
            }
        }
        assert!(gpu.choose(&[0], &[greedy(0.0)]).unwrap()[0] != NO_CHOICE);
    }
}

#[test]
fn a_graph_of_another_device_is_refused() {
    if !emulator::available() {
        return;
    }
    let (mut one, mut other) = (gpu(0, Dtype::Bf16, 3, 1), gpu(0, Dtype::Bf16, 3, 1));
    let key = GraphKey { token_rows: 2, max_query_len: 1, sequences: 2, segment: 0 };
    let graph = one.device_mut().capture(&[], key).unwrap();
    for (runner, own) in [(&mut one, true), (&mut other, false)] {
        runner.device_mut().bind(&StepInputs::default(), Some(key)).unwrap();
        let replayed = runner.device_mut().replay(&graph);
        assert_eq!(replayed.is_ok(), own, "{replayed:?}");
        assert!(own || replayed.unwrap_err().to_string().contains("captured on another device"));
    }
}

#[test]
fn a_device_that_cannot_choose_by_the_batch_says_so_and_stays_as_it_is() {
    let mut cpu = cpu(0, Dtype::Bf16);
    let rows = &steps()[1];
    let (_, before) = logits(&mut cpu, rows);
    assert!(cpu.set_deterministic(true).is_ok());
    assert!(cpu.set_deterministic(false).unwrap_err().to_string().contains("one way only"));
    assert_eq!(bits(&logits(&mut cpu, rows).1), bits(&before));
    if !emulator::available() {
        return;
    }
    let mut gpu = gpu(0, Dtype::Bf16, 3, 1);
    gpu.capture(&CaptureSizes::new(vec![4, 16], (1..=5).collect())).unwrap();
    let (_, before) = logits(&mut gpu, rows);
    assert!(gpu.set_deterministic(false).unwrap_err().to_string().contains("no library"));
    assert!(gpu.device().is_deterministic() && gpu.replays(&step(rows)));
    assert_eq!(bits(&logits(&mut gpu, rows).1), bits(&before));
}

#[test]
fn a_step_of_more_rows_than_the_buffers_have_is_refused_before_anything_runs() {
    if !emulator::available() {
        return;
    }
    for deterministic in [true, false] {
        let mut gpu = gpu_of(0, CudaOptions { deterministic, ..options(Dtype::Bf16) }, 3, 1);
        let (head, mut refused) = (gpu.operations(0).len(), 0);
        let ops = gpu.operations(ROWS + 1);
        for op in &ops[..head - 3] {
            match gpu.device_mut().run(std::slice::from_ref(op)) {
                Err(ModelError::StepTooLarge { rows, limit }) => assert_eq!((rows, limit), (ROWS + 1, ROWS)),
                other => panic!("{op:?}: {other:?}"),
            }
            refused += 1;
        }
        assert!(refused > 10 && gpu.device_mut().backend().ran.is_empty());
        let beyond = gpu.device_mut().select(&[ROWS as u32]).unwrap_err().to_string();
        assert!(beyond.contains(&format!("row {ROWS} of a step of {ROWS} rows")), "{beyond}");
    }
}

#[test]
fn an_embedding_that_is_the_heads_weight_too_is_on_the_device_once() {
    if !emulator::available() {
        return;
    }
    let bytes = |tied: bool| {
        let text = steps::CONFIGS[0]
            .replace("\"tie_word_embeddings\": true", &format!("\"tie_word_embeddings\": {tied}"));
        let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap();
        assert_eq!(config.tie_word_embeddings, tied);
        let options = options(Dtype::Bf16);
        let device = emulated::device(&config, &options, &steps::plan(&config, &options), (3, 1));
        let mut runner = Runner::load(device, &Checkpoint::dummy(config, 9), limits()).unwrap();
        runner.device_mut().backend().allocated
    };
    assert_eq!(bytes(false) - bytes(true), steps::VOCAB as usize * 64 * 2);
}

#[test]
fn what_a_model_takes_of_the_memory_is_known_before() {
    if !emulator::available() {
        return;
    }
    for (config, kv) in [(0, KvStorage::Model), (1, KvStorage::Fp8), (2, KvStorage::Model)] {
        let options = CudaOptions { kv, ..options(Dtype::Bf16) };
        let mut gpu = gpu_of(config, options, 3, 1);
        // The first step takes what its kernels share.
        logits(&mut gpu, &[(1, 0, 3)]);
        let need = MemoryNeed::of(checkpoint(config).config(), &options, 0, 3).unwrap();
        assert_eq!(need.total(), gpu.device_mut().backend().allocated as u64, "model {config}: {need:?}");
        // The arena is no model's own, and is counted for one of them.
        let arena = steps::plan(checkpoint(config).config(), &options).bytes() as u64;
        let with = MemoryNeed::of(checkpoint(config).config(), &options, arena, 3).unwrap();
        assert_eq!((with.kv_cache, with.total()), (arena, need.total() + arena));
        assert_eq!(arena, u64::from(NUM_BLOCKS) * gpu.device().geometry().block_stride() as u64);
    }
}

#[test]
fn a_vocabulary_beyond_what_can_be_drawn_from_is_refused() {
    let of = |vocab: u32| {
        let text = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": {vocab}, "hidden_size": 64, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": false}}"#
        );
        check(&ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap(), Dtype::Bf16, 16, 64)
    };
    assert!(of(1 << 18).is_ok());
    assert!(of((1 << 18) + 4).unwrap_err().to_string().contains("vocab_size is 262148"));
}

#[test]
fn copied_blocks_hold_what_their_sources_held() {
    if !emulator::available() {
        return;
    }
    let mut gpu = gpu(0, Dtype::Bf16, 3, 1);
    logits(&mut gpu, &[(1, 0, 37)]);
    let (cache, stride) = (gpu.device().cache(), gpu.device().geometry().block_stride());
    let source = table(1)[1];
    let target = BlockId((0..NUM_BLOCKS).find(|&b| !table(1).contains(&BlockId(b))).unwrap());
    gpu.copy_blocks(&[BlockCopy { group: GroupId(0), src: source, dst: target }]).unwrap();
    let memory = gpu.device_mut().backend().fetch(cache, NUM_BLOCKS as usize * stride / 4).unwrap();
    let block = |id: BlockId| &memory[id.0 as usize * stride / 4..][..stride / 4];
    assert!(block(source) == block(target) && block(source).iter().any(|&word| word != 0));
    assert!(
        gpu.copy_blocks(&[BlockCopy { group: GroupId(0), src: source, dst: BlockId(NUM_BLOCKS) }]).is_err()
    );
}

#[test]
fn eight_bit_keys_and_values_stay_near_sixteen() {
    if !emulator::available() {
        return;
    }
    let (mut cpu, mut gpu) =
        (cpu(0, Dtype::Bf16), gpu_of(0, CudaOptions { kv: KvStorage::Fp8, ..options(Dtype::Bf16) }, 3, 1));
    for rows in &steps()[..7] {
        let ((_, want), (_, got)) = (logits(&mut cpu, rows), logits(&mut gpu, rows));
        let greatest = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let worst = got.iter().zip(&want).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(worst <= 0.1 * greatest, "{worst} of {greatest}: {rows:?}");
    }
}
