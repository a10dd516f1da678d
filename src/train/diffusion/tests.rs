use super::converted;
use crate::session::{Diffusion, EngineOptions, ModelRef, Request, Session};
use crate::train::corpus::Batch;
use crate::train::llama::{Config, Llama};
use crate::train::loss::weighted_cross_entropy;
use crate::train::masking::masked;
use crate::train::noise::Noise;
use crate::train::tests::{corpus, folder, recipe, resumes_as_if_uninterrupted, slope, tiny};
use crate::train::{bpe, checkpoint, export};
use pagedraft_model::Dtype;
use std::sync::Arc;

/// A model that fills masks, made of a causal one whose heads make up the hidden size, as they do in LLaDA.
fn made(vocab_size: usize, seed: u64) -> Llama {
    let config = Config { head_dim: 4, ..tiny(vocab_size) };
    converted(&Llama::new(config, seed).unwrap(), 3).unwrap()
}

fn filler() -> Llama {
    made(270, 5)
}

#[test]
fn a_masked_batch_hides_a_drawn_share_of_each_row_and_counts_what_is_hidden_by_it() {
    let (rows, time) = (16, 200);
    let truth: Vec<u32> = (0..rows * time).map(|at| at as u32 % 90).collect();
    let (mut all, mut counted) = (0.0, 0.0);
    for seed in 0..20 {
        let batch =
            Batch { inputs: truth.clone(), next: Vec::new(), time: time as usize, weights: Vec::new() };
        let Batch { inputs, next, weights, .. } = masked(batch, 99, Noise::new(seed, "masks", 0));
        assert_eq!(next, truth);
        for row in 0..rows as usize {
            let places = row * time as usize..(row + 1) * time as usize;
            let hidden: Vec<usize> = places.clone().filter(|&at| inputs[at] == 99).collect();
            let weight = hidden.first().map_or(0.0, |&at| weights[at]);
            for at in places {
                let is_hidden = inputs[at] == 99;
                assert!(is_hidden || inputs[at] == truth[at]);
                assert_eq!(weights[at], if is_hidden { weight } else { 0.0 });
            }
            // The weight is one over the share that was drawn, of which the row shows a sample.
            let (share, drawn) = (hidden.len() as f32 / time as f32, 1.0 / weight.max(1.0));
            assert!(hidden.is_empty() || (share - drawn).abs() < 0.2, "{share} hidden of {drawn}");
            all += share / (20 * rows) as f32;
        }
        counted += weights.iter().sum::<f32>() / (20 * rows * time) as f32;
    }
    assert!((all - 0.5).abs() < 0.02, "{all}");
    assert!((counted - 1.0).abs() < 0.05, "{counted}");
}

#[test]
fn tokens_see_what_follows_them_and_the_gradient_is_the_slope_of_the_weighted_loss() {
    let model = made(10, 3);
    let row = |tokens: [u32; 5]| model.forward(&tokens, 5, None).unwrap().to_vec2::<f32>().unwrap().remove(0);
    assert_ne!(row([1, 4, 2, 9, 7]), row([1, 4, 2, 9, 3]));
    let inputs = [1, 10, 2, 10, 7, 10, 10, 4, 0, 3];
    let next = [1, 4, 2, 9, 7, 3, 1, 4, 0, 3];
    let weights = [0.0, 2.5, 0.0, 2.5, 0.0, 1.6, 1.6, 0.0, 0.0, 0.0];
    let loss = || {
        let logits = model.forward(&inputs, 5, None).unwrap();
        weighted_cross_entropy(&logits, &next, &weights, None).unwrap().objective
    };
    let gradients = loss().backward().unwrap();
    for (name, var) in &model.weights {
        slope(name, var, gradients.get(var).unwrap(), &loss);
    }
}

#[test]
fn a_resumed_conversion_ends_where_an_uninterrupted_one_does() {
    resumes_as_if_uninterrupted("diffusion", filler);
}

#[test]
fn the_engine_fills_the_masks_of_a_trained_model_as_the_trainer_does() {
    let (tokenizer, corpus) = corpus();
    let out = folder("diffusion-engine");
    let recipe = recipe(out.clone(), 30);
    recipe.run(filler(), None, &corpus, (0, 1), false).unwrap();
    bpe::save(&tokenizer, &out).unwrap();
    // What was exported, read back as the trainer's.
    let state = checkpoint::load(&recipe.checkpoint).unwrap();
    let model = Llama::from_tensors(filler().config, &state.best).unwrap();
    let mut ids = corpus.validation[..40].to_vec();
    (10..40).filter(|at| at % 3 > 0).for_each(|at| ids[at] = 270);

    let options =
        EngineOptions { dtype: Some(Dtype::F32), ..EngineOptions::new(ModelRef::Directory(out.clone())) };
    let mut session = Session::open(&options).unwrap();
    session.keep_logits();
    let given: Arc<[u32]> = ids[10..].into();
    let how = Diffusion { block_length: 30, steps: Some(1), given, ..Diffusion::default() };
    let request = Request { diffusion: Some(how), ..Request::new("0", ids[..10].to_vec(), 30) };
    session.submit(request).unwrap();
    session.step().unwrap();
    let rows = model.forward(&ids, ids.len(), None).unwrap().to_vec2::<f32>().unwrap();
    let pass = &session.last_step().1.passes[0];
    assert_eq!(pass.logits.len(), 20);
    for (position, logits) in &pass.logits {
        let wanted = &rows[*position as usize];
        let scale = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
        // The export is rounded to bf16.
        let off = logits.iter().zip(wanted).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off / scale < 3e-2, "position {position}: off by {off} of {scale}");
    }
    // A causal model's trainer does not take it for one of its own.
    assert!(export::load(&out).err().unwrap().to_string().contains("both directions"));
    std::fs::remove_dir_all(out).unwrap();
}
