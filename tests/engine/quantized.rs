//! Weights in 8 bits: the same tokens and bits under every schedule, and those of the widened weights where activations stay in f32.

use pagedraft::attention::isa::Isa;
use pagedraft::model::{ActivationType, Dtype, Quantization};
use pagedraft::quantize::quantize;
use pagedraft::session::{DraftRef, EngineOptions, LoadFormat, ModelRef, SpeculationOptions};
use pagedraft::spec_decode::Scorer;

use crate::models::{directory, glm, small};
use crate::requests::{options, requests, speculation};
use crate::schedule::{Events, Output, alone, check, every_schedule, run};

fn quantized(model: &ModelRef, dtype: Dtype, isa: Isa) -> EngineOptions {
    let quantization = Some(Quantization::Int8(ActivationType::Int8));
    EngineOptions { quantization, ..options(model, dtype, isa) }
}

#[test]
fn quantised_models_give_the_same_bits_under_every_schedule_on_every_instruction_set() {
    let model = small("quantised-qwen2", "Qwen2");
    let mut events = Events::default();
    let requests = requests(20_261_201, 12, 300, 120);
    let mut fused = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let base = quantized(&model, Dtype::Bf16, isa);
        let alone = alone(&base, &requests);
        events.add(every_schedule(&format!("int8, {isa}"), &base, 14, &requests, &alone));
        // Products are the same on every set; what is between them is, too, where multiply-adds are fused and the head is no AMX product.
        if !matches!(isa, Isa::Portable | Isa::Amx | Isa::Avx512Bf16) {
            fused.push((isa, alone));
        }
    }
    for pair in fused.windows(2) {
        check(&format!("int8, {} and {}", pair[0].0, pair[1].0), &requests, &pair[0].1, &pair[1].1);
    }
    events.check();
}

#[test]
fn quantised_weights_give_other_logits_than_plain_ones_and_nearly_the_same() {
    let model = small("quantised-differs", "Llama");
    let requests = requests(5, 4, 300, 60);
    let plain = alone(&options(&model, Dtype::F32, Isa::detect()), &requests);
    let base = quantized(&model, Dtype::F32, Isa::detect());
    let found = alone(&base, &requests);
    let (far, widest) = apart(&plain, &found);
    assert!(far > 0.0 && far < 0.05 * widest, "logits of up to {widest} are {far} apart");
}

/// How far the logits of the first tokens lie apart at most, and the greatest logit. Behind the first other token the contexts differ.
fn apart(some: &[Output], others: &[Output]) -> (f32, f32) {
    let (mut far, mut widest) = (0.0f32, 0.0f32);
    for (a, b) in some.iter().zip(others) {
        for (&a, &b) in a.logits[0].iter().zip(&b.logits[0]) {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            (far, widest) = (far.max((a - b).abs()), widest.max(a.abs()));
        }
    }
    (far, widest)
}

#[test]
fn drafts_of_a_quantised_model_change_no_bit_of_a_quantised_target() {
    let model = small("quantised-drafts", "Llama");
    let requests = requests(8, 8, 300, 100);
    let base = quantized(&model, Dtype::Bf16, Isa::detect());
    let alone = alone(&base, &requests);
    for (scorer, draft) in [
        (Scorer::Mqa, DraftRef::Model(model.clone())),
        (Scorer::BatchExpansion, DraftRef::Model(model.clone())),
        (Scorer::Mqa, DraftRef::Ngram),
    ] {
        let options = EngineOptions { speculation: speculation(draft, 3, scorer), ..base.clone() };
        check(&format!("int8, drafts, {scorer}"), &requests, &alone, &run(&options, &requests, 1).0);
    }
    assert!(SpeculationOptions::default().draft.is_none());
}

#[test]
fn a_quantised_model_with_sparse_attention_and_experts_gives_the_same_bits_under_every_schedule() {
    let model = glm("quantised-glm");
    let requests = requests(21, 8, 300, 150);
    let base = quantized(&model, Dtype::Bf16, Isa::detect());
    every_schedule("int8, sparse", &base, 17, &requests, &alone(&base, &requests));
}

#[test]
fn a_directory_that_was_quantised_gives_the_bits_of_its_model_quantised_when_loaded() {
    for (name, from) in [("target", "target"), ("dsa", "dsa")] {
        let (dir, model) = (directory(&format!("quantised-{name}")), ModelRef::Builtin(from.into()));
        let written = quantize(&model, &dir).unwrap();
        assert!(written.matrices > 0 && written.bytes.1 < written.bytes.0, "{written:?}");
        let stored = ModelRef::Directory(dir);
        let requests = requests(3, 4, 1000, 60);
        let loaded = |options: EngineOptions| EngineOptions { load_format: LoadFormat::Auto, ..options };
        let at_load = alone(&quantized(&model, Dtype::Bf16, Isa::detect()), &requests);
        // What is stored in 8 bits is computed with in 8 bits if nothing is said.
        let found = alone(&loaded(options(&stored, Dtype::Bf16, Isa::detect())), &requests);
        check(&format!("{name}, as it is stored"), &requests, &at_load, &found);
        // Activations in f32 multiply the very weights that are stored, widened. The head is the embedding, which is stored in full and is
        // quantised when it is loaded.
        let mut in_f32 = loaded(options(&stored, Dtype::F32, Isa::detect()));
        in_f32.activations = Some(ActivationType::F32);
        let mut widened = loaded(options(&stored, Dtype::F32, Isa::detect()));
        widened.quantization = Some(Quantization::None);
        let (far, widest) = apart(&alone(&in_f32, &requests), &alone(&widened, &requests));
        // The sparse model's matrices of heads are cut out of a matrix that is stored in full: they are quantised when they are loaded, too.
        let bound = if name == "target" { 0.01 } else { 0.05 };
        assert!(far < bound * widest, "{name}: logits of up to {widest} are {far} apart");
    }
}
