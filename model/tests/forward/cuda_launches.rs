//! The checks that the CUDA bench makes of single kernels on a GPU, here at small sizes on emulated ones: they pass on sound kernels, and
//! see what is wrong.

use pagedraft_block_manager::{Arena, BlockSize};
use pagedraft_model::Dtype;
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::cuda::{CudaDevice, CudaOptions, KvStorage, part_bytes};
use pagedraft_model::dense::kv_groups;

use crate::emulated::{self, Emulated};
use crate::emulator;
use crate::launches::{self, Finding, attention, products, rows};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
const NUM_BLOCKS: u32 = 64;

fn device(dtype: Dtype, kv: KvStorage) -> (CudaDevice<Emulated>, ModelConfig, CudaOptions) {
    let config = ModelConfig::parse("config.json".as_ref(), CONFIG.as_bytes()).unwrap();
    let options = CudaOptions {
        dtype,
        kv,
        block_size: 16,
        token_rows: 96,
        logit_rows: 16,
        max_model_len: 640,
        deterministic: true,
        overlap: false,
    };
    let bytes = part_bytes(&config, dtype, kv, 16);
    let groups = kv_groups(&config.windows, options.max_model_len, bytes / 16);
    let plan = Arena::plan(BlockSize::new(16).unwrap(), NUM_BLOCKS, &groups).unwrap();
    (emulated::device(&config, &options, &plan, (4, 1)), config, options)
}

fn all_pass(findings: Vec<Finding>) {
    assert!(!findings.is_empty());
    for (name, found) in findings {
        assert_eq!(found, Ok(()), "{name}");
    }
}

#[test]
fn sound_kernels_pass_the_checks_that_a_gpu_is_put_to() {
    if !emulator::available() {
        return;
    }
    let (mut gpu, ..) = device(Dtype::Bf16, KvStorage::Model);
    let sizes = products::Sizes { weights: &[(68, 520)], rows: 67, times: 2 };
    all_pass(products::check(gpu.backend(), Dtype::Bf16, sizes));
    all_pass(rows::check(gpu.backend(), Dtype::Bf16, 3, 1032));
    for (dtype, kv) in [(Dtype::Bf16, KvStorage::Model), (Dtype::F16, KvStorage::Fp8)] {
        let (mut gpu, config, options) = device(dtype, kv);
        let sizes = attention::Sizes { lengths: &[530, 24], num_blocks: NUM_BLOCKS, times: 1 };
        all_pass(attention::check(&mut gpu, &config, &options, sizes));
    }
}

#[test]
fn a_difference_is_told_with_its_place_both_patterns_and_whether_it_repeats() {
    let want = [1.0f32, 2.0, 3.0, 4.0].map(f32::to_bits);
    let mut got = want;
    assert_eq!(
        launches::same_bits(&got, &want, 2, f32::from_bits, || panic!("nothing is run again")),
        Ok(())
    );
    got[3] = 4.5f32.to_bits();
    got[2] = f32::NAN.to_bits();
    let said = launches::same_bits(&got, &want, 2, f32::from_bits, || want.to_vec()).unwrap_err();
    for part in
        ["2 of 4", "in 1 rows", "row 1, column 0", "0x40400000", "5e-1", "NaNs: 1 where 0", "OTHER bits"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let mut near = launches::Nearness::default();
    near.add(|| "here".to_owned(), f64::NAN, 1.0, 1.0);
    assert!(near.verdict().unwrap_err().contains("here"));
    assert!(launches::Nearness::default().verdict().is_err(), "nothing compared is nothing proved");
}
