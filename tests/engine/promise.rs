//! Promise 1: the same tokens, and the same bits of every logit, whatever the schedule.
//!
//! Every request is run alone first, on one thread, its prompt in one piece. Then all of them run under each
//! line of a table of schedules. Nothing may differ.

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::session::{ModelRef, Request};
use pagedraft::spec_decode::sampling::SamplingParams;

use crate::models::small;
use crate::requests::{Random, options, requests};
use crate::schedule::{Events, Output, alone, check, every_schedule, run};

fn gives_the_same(model: &ModelRef, vocab: usize, dtype: Dtype, isa: Isa, seed: u64) -> Events {
    println!("seed {seed}, {model}, {dtype:?}, {isa}");
    let requests = requests(seed, 12, vocab, 120);
    let base = options(model, dtype, isa);
    let name = format!("seed {seed}, {dtype:?}, {isa}");
    every_schedule(&name, &base, 14, &requests, &alone(&base, &requests))
}

#[test]
fn a_small_model_gives_the_same_bits_under_every_schedule_on_every_instruction_set_and_dtype() {
    let model = small("promise-llama", "Llama");
    let mut events = Events::default();
    for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            events.add(gives_the_same(&model, 300, dtype, isa, 20_261_121));
        }
    }
    events.check();
}

#[test]
fn a_model_with_norms_on_its_heads_gives_the_same_bits_under_every_schedule() {
    let model = small("promise-qwen3", "Qwen3");
    let mut events = Events::default();
    for seed in 1..4 {
        events.add(gives_the_same(&model, 300, Dtype::Bf16, Isa::detect(), seed));
    }
    events.check();
}

#[test]
fn a_model_with_biases_gives_the_same_bits_under_every_schedule() {
    let model = small("promise-qwen2", "Qwen2");
    gives_the_same(&model, 300, Dtype::F32, Isa::detect(), 11).check();
    gives_the_same(&model, 300, Dtype::Bf16, Isa::detect(), 12).check();
}

#[test]
#[ignore = "a campaign of some minutes"]
fn twenty_more_seeds_give_the_same_bits_under_every_schedule() {
    let model = small("promise-campaign", "Qwen3");
    let mut events = Events::default();
    for seed in 100..120 {
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                events.add(gives_the_same(&model, 300, dtype, isa, seed));
            }
        }
    }
    events.check();
}

#[test]
fn the_embedded_target_gives_the_same_bits_under_every_schedule() {
    let model = ModelRef::Builtin("target".into());
    gives_the_same(&model, 2048, Dtype::Bf16, Isa::detect(), 5).check();
}

#[test]
fn samples_of_one_prompt_are_those_of_requests_of_their_own() {
    let model = small("promise-forks", "Llama");
    let mut base = options(&model, Dtype::Bf16, Isa::detect());
    let (mut random, mut preempted) = (Random(99), 0);
    for len in [1usize, 15, 16, 17, 33, 70] {
        let prompt: Vec<u32> = (0..len).map(|_| random.below(300) as u32).collect();
        let sampling = SamplingParams { seed: 3, ..SamplingParams::default() };
        let request = Request { sampling, ignore_eos: true, n: 4, ..Request::new("fork", prompt, 20) };
        let alone: Vec<Output> = (0..4)
            .flat_map(|sample| {
                let mut one = request.clone();
                one.n = 1;
                one.sampling.sample = sample;
                run(&base, &[one], 0).0
            })
            .collect();
        for (chunk, threads, blocks) in [(None, 1, 256), (Some(7), 2, 256), (None, 1, 7)] {
            (base.prefill_chunk, base.threads, base.num_blocks) = (chunk, threads, Some(blocks));
            let (found, happened) = run(&base, std::slice::from_ref(&request), 0);
            preempted += happened.preempted;
            let name = format!("{len} prompt tokens, chunk {chunk:?}, {blocks} blocks");
            let four: Vec<Request> = (0..4).map(|_| request.clone()).collect();
            check(&name, &four, &alone, &found);
        }
        (base.prefill_chunk, base.threads, base.num_blocks) = (None, 1, Some(256));
        let distinct: std::collections::BTreeSet<_> = alone.iter().map(|o| &o.tokens).collect();
        assert!(distinct.len() > 1, "the samples of a prompt are all the same");
    }
    assert!(preempted > 0, "the tight pool preempted no fork");
}
