use super::keep::Way;
use super::losses::{ranking, targets};
use super::scorers::Scorers;
use super::training::{By, Recipe};
use crate::prune::{PruneChoice, PruneSpec};
use crate::session::{EngineOptions, ModelRef, Request, RequestPrune, Session};
use crate::train::kernels::with_floats;
use crate::train::llama::{Config, Llama};
use crate::train::loss::cross_entropy;
use crate::train::noise::Noise;
use crate::train::saliency::{Salience, saliency};
use crate::train::samples::Sample;
use crate::train::{bpe, checkpoint, export};
use candle_core::{Device, Tensor};
use pagedraft_model::Dtype;
use serde_json::json;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("pagedraft-train-pruning-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn model(vocab_size: usize) -> Llama {
    let config = Config {
        vocab_size,
        hidden_size: 16,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        intermediate_size: 20,
        rope_theta: 10000.0,
        rms_norm_eps: 1e-5,
        attention_bias: false,
        head_norms: false,
        tied: true,
        mask: None,
    };
    // Larger weights than fresh ones have: attention then looks at something.
    let mut values = Llama::values(&config, 3);
    let projections = values.iter_mut().filter(|(name, _)| name.contains("_proj"));
    projections.for_each(|(_, values)| values.iter_mut().for_each(|x| *x *= 4.0));
    Llama::from_values(config, values).unwrap()
}

fn sample(seed: u64, prompt: usize, response: usize, vocab: usize) -> Sample {
    let mut noise = Noise::new(seed, "sample", 0);
    Sample::new((0..prompt + response).map(|_| noise.below(vocab) as u32).collect(), prompt)
}

fn spec(ratio: f64) -> PruneSpec {
    let json = json!({"layers": [0, 2], "keep_ratio": ratio, "min_head_tokens": 1, "min_tail_tokens": 2, "scorer": "random"});
    PruneSpec::from_json(json, Path::new("")).unwrap()
}

/// A token's saliency is what T rises by, for each part of its residual row that is added to it.
#[test]
fn saliency_is_the_slope_of_the_response_s_log_probability_along_a_token_s_row() {
    let model = model(11).frozen().unwrap();
    let sample = sample(1, 7, 3, 11);
    let found = saliency(&model, &sample).unwrap();
    assert_eq!((found.len(), found[0].len()), (4, 7));
    let value = |layer: usize, token: usize, factor: f32| {
        let inputs = sample.inputs();
        let hidden = model.hidden(inputs, inputs.len(), None, &mut |at, x| {
            let factors = (0..inputs.len()).map(|i| if (at, i) == (layer, token) { factor } else { 1.0 });
            let factors: Vec<f32> = factors.collect();
            let factors = Tensor::from_vec(factors, (inputs.len(), 1), &Device::Cpu)?;
            Ok((x.broadcast_mul(&factors)?, None))
        });
        let (places, next) = sample.predictions();
        let logits = model.logits(&hidden.unwrap(), places).unwrap();
        -f64::from(cross_entropy(&logits, next, None).unwrap().text)
    };
    let mut greatest = 0f64;
    for (layer, found) in found.iter().enumerate() {
        for (token, &found) in found.iter().enumerate() {
            let slope = (value(layer, token, 1.02) - value(layer, token, 0.98)) / 0.04;
            assert!(
                (slope - f64::from(found)).abs() < 1e-3,
                "layer {layer}, token {token}: {slope}, {found}"
            );
            greatest = greatest.max(slope.abs());
        }
    }
    assert!(greatest > 0.02, "all slopes are small: {greatest}");
}

/// Sorted anew for each token: how many candidates come before it.
#[test]
fn a_cut_keeps_the_tokens_that_a_slow_reference_keeps() {
    for seed in 0..200 {
        let mut noise = Noise::new(seed, "scores", 0);
        let (prompt, ratio) = (1 + noise.below(40), 0.1 + 0.8 * f64::from(noise.uniform()));
        let spec = spec(ratio);
        // Few different scores: many are equal.
        let scores: Vec<f32> = (0..prompt).map(|_| noise.below(5) as f32).collect();
        let mut way = Way::new(&spec, prompt);
        for _ in 0..2 {
            let before = way.kept.clone();
            let n = before.len() as u32;
            let stays = |p: u32| spec.stays(p, n, prompt as u32);
            let count = spec.count(ratio, n, prompt as u32) as usize;
            let always = before.iter().filter(|&&p| stays(p)).count();
            let wanted = before.iter().copied().filter(|&p| {
                let score = |p: u32| scores[p as usize];
                let better =
                    |&&q: &&u32| !stays(q) && (score(q) > score(p) || (score(q) == score(p) && q < p));
                stays(p) || before.iter().filter(better).count() + always < count
            });
            let wanted: Vec<u32> = wanted.collect();
            way.cut(ratio, &scores).unwrap();
            assert_eq!(way.kept, wanted, "seed {seed}");
        }
    }
    assert!(Way::new(&spec(0.5), 30).cut(0.5, &[f32::NAN; 30]).is_err());
}

#[test]
fn no_later_token_sees_a_hidden_one() {
    let model = model(11).frozen().unwrap();
    let tokens = sample(4, 12, 1, 11).tokens;
    let spec = spec(0.5);
    // The row of token 5 behind the first layer is multiplied, and some token is hidden there.
    let last = |hidden: u32, factor: f32| {
        let mut way = Way::new(&spec, 12);
        way.kept.retain(|&position| position != hidden);
        let hidden = model.hidden(&tokens, 13, None, &mut |layer, x| {
            let mut factors = [1.0; 13];
            factors[5] = if layer == 0 { factor } else { 1.0 };
            let x = x.broadcast_mul(&Tensor::from_slice(&factors, (13, 1), &Device::Cpu)?)?;
            Ok((x, Some(way.hard(13)?)))
        });
        hidden.unwrap().get(12).unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(last(5, 1.0), last(5, -3.0));
    assert_ne!(last(6, 1.0), last(6, -3.0));
}

/// One prune point: what a second one sees jumps where the first one drops another token, and is no part of the gradient.
#[test]
fn the_gradient_of_modules_is_the_slope_of_all_three_losses() {
    let model = model(11).frozen().unwrap();
    let sample = sample(2, 24, 4, 11);
    let mut salience = Salience::default();
    salience.by_id.insert(sample.id.clone(), saliency(&model, &sample).unwrap());
    let scorers = Scorers::new(&[2], 16, 5).unwrap();
    let spec = PruneSpec { layers: vec![(2, 0.5)], ..spec(0.5) };
    for weights in [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 30.0)] {
        let recipe = Recipe {
            mse_weight: weights.0,
            rank_weight: weights.1,
            lm_weight: weights.2,
            specs: vec![spec.clone()],
            ..recipe(PathBuf::new())
        };
        let loss = || {
            let (losses, gradients) = recipe.work(&model, &scorers, &salience, (7, &sample)).unwrap();
            (weights.0 * losses.mse + weights.1 * losses.rank + weights.2 * losses.lm, gradients)
        };
        // The threshold moves with the scores and is no part of the gradient: the language model's loss rises less steeply.
        for (name, var) in scorers.weights.iter().filter(|(name, _)| name.ends_with("0.weight")) {
            let gradients = loss().1;
            let Some(grad) = gradients.get(var) else { panic!("{name} got no gradient") };
            let length = f64::from(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt());
            let at = |distance: f64| {
                let before = var.as_tensor().copy().unwrap();
                let moved = grad.affine(distance / length, 0.0).unwrap();
                var.set(&(&before + moved).unwrap()).unwrap();
                let value = loss().0;
                var.set(&before).unwrap();
                value
            };
            let slope = (at(3e-3) - at(-3e-3)) / 6e-3;
            if weights.2 == 0.0 {
                assert!(
                    (slope - length).abs() < 3e-2 * length,
                    "{weights:?} {name}: slope {slope}, gradient {length}"
                );
            } else {
                assert!(slope > 0.0, "{weights:?} {name}: slope {slope}, gradient {length}");
            }
        }
    }
}

#[test]
fn targets_have_no_mean_and_deviation_one_and_keep_the_order() {
    let found = targets([4.0, -1.0, 0.0, 9.0].into_iter());
    let mean = found.iter().sum::<f32>() / 4.0;
    let deviation = found.iter().map(|x| x * x).sum::<f32>() / 4.0;
    assert!(mean.abs() < 1e-6 && (deviation - 1.0).abs() < 1e-5, "{found:?}");
    assert!(found[1] < found[2] && found[2] < found[0] && found[0] < found[3]);
    assert_eq!(targets([2.0, 2.0].into_iter()), [0.0, 0.0]);
    let scores = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
    let mut noise = Noise::new(1, "pairs", 0);
    assert!(ranking(&scores, &[1.0; 3], &mut noise).unwrap().is_none());
    let loss = |targets: &[f32]| {
        let loss = ranking(&scores, targets, &mut Noise::new(1, "pairs", 0)).unwrap().unwrap();
        loss.to_scalar::<f32>().unwrap()
    };
    assert!(loss(&[1.0, 2.0, 3.0]) < 0.32 && loss(&[3.0, 2.0, 1.0]) > 1.2);
}

fn recipe(out: PathBuf) -> Recipe {
    Recipe {
        specs: vec![spec(0.7), spec(0.5)],
        epochs: 2,
        until: u64::MAX,
        batch: 3,
        shards: 2,
        lr: 1e-2,
        warmup: 2,
        weight_decay: 0.1,
        temperature: 0.5,
        mse_weight: 1.0,
        rank_weight: 1.0,
        lm_weight: 1.0,
        checkpoint_every: 1,
        seed: 5,
        checkpoint: out.join("checkpoint"),
        out: out.join("modules.safetensors"),
    }
}

#[test]
fn a_resumed_run_gives_the_modules_of_an_uninterrupted_one_and_finds_saliency_by_id() {
    let model = model(11).frozen().unwrap();
    let samples: Vec<Sample> = (0..8).map(|seed| sample(seed, 20 + seed as usize, 4, 11)).collect();
    let out = folder("resume");
    let mut salience = Salience::default();
    for sample in samples.iter().rev() {
        salience.by_id.insert(sample.id.clone(), saliency(&model, sample).unwrap());
    }
    salience.save(&samples, &out.join("saliency.safetensors")).unwrap();
    let salience = Salience::read(&out.join("saliency.safetensors")).unwrap();
    let start = || Scorers::new(&[0, 2], 16, 5).unwrap();
    let run = |recipe: &Recipe, resume| {
        recipe.run(&model, start(), &salience, (&samples, &[]), resume).unwrap();
    };
    let whole = recipe(out.join("whole"));
    let parts = recipe(out.join("parts"));
    [&whole, &parts].iter().for_each(|recipe| std::fs::create_dir_all(recipe.out.parent().unwrap()).unwrap());
    run(&whole, false);
    run(&Recipe { until: 4, ..parts.clone() }, false);
    run(&parts, true);
    let read = |recipe: &Recipe| std::fs::read(&recipe.out).unwrap();
    assert_eq!(checkpoint::load(&whole.checkpoint).unwrap().progress.step, 6);
    assert!(read(&whole) == read(&parts));
    let fresh = out.join("fresh.safetensors");
    start().save(&fresh).unwrap();
    assert!(read(&whole) != std::fs::read(fresh).unwrap());
    let stranger = sample(99, 20, 4, 11);
    let error = salience.of(&stranger, 0).unwrap_err().to_string();
    assert!(error.contains(&stranger.id) && error.contains("train saliency"), "{error}");
    std::fs::remove_dir_all(out).unwrap();
}

/// The trainer hides tokens; the engine drops them.
#[test]
fn the_engine_keeps_the_tokens_that_the_trainer_keeps_and_predicts_the_same() {
    let out = folder("engine");
    let tokenizer =
        bpe::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/target/tokenizer.json")).unwrap();
    let trained = model(2048);
    bpe::save(&tokenizer, &out).unwrap();
    export::save(&trained.config, &checkpoint::copy(&trained.weights).unwrap(), (0, 1), &out).unwrap();
    let model = export::load(&out).unwrap().frozen().unwrap();
    let scorers = Scorers::new(&[0, 2], 16, 5).unwrap();
    scorers.save(&out.join("modules.safetensors")).unwrap();
    let json =
        json!({"layers": [0, 2], "keep_ratio": 0.6, "scorer": "learned", "modules": "modules.safetensors"});
    let spec = PruneSpec::from_json(json, &out).unwrap();
    let sample = sample(6, 90, 1, 2048);

    let mut way = Way::new(&spec, 90);
    let mut kept = Vec::new();
    let hidden = model.hidden(&sample.tokens[..90], 90, None, &mut |layer, x| {
        if layer != 0 && layer != 2 {
            return Ok((x, None));
        }
        let scores = with_floats(&scorers.score(layer as u16, &x)?, <[f32]>::to_vec)?;
        way.cut(0.6, &scores)?;
        kept.push(way.kept.clone());
        Ok((x, Some(way.hard(90)?)))
    });
    let logits = model.logits(&hidden.unwrap(), vec![89]).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap();

    let mut options = EngineOptions::new(ModelRef::Directory(out.clone()));
    options.max_model_len = Some(128);
    options.dtype = Some(Dtype::F32);
    options.prune.all = Some(PruneChoice::Spec(spec.clone()));
    let mut session = Session::open(&options).unwrap();
    let mut request = Request::new("a", sample.tokens[..90].to_vec(), 1);
    request.prune = RequestPrune::Choice(PruneChoice::Spec(spec));
    request.sampling.logprobs = Some(1);
    let id = session.submit(request).unwrap()[0];
    while session.has_unfinished() {
        session.step().unwrap();
    }
    let output = session.take_output(id).unwrap();
    let found: Vec<Vec<u32>> =
        output.prune.as_ref().unwrap().as_ref().unwrap().kept.values().cloned().collect();
    assert_eq!(found, kept);
    let norm = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    let token = output.token_ids[0] as usize;
    let wanted = f64::from(logits[token]) - norm;
    let got = f64::from(output.token_logprobs.unwrap()[0].logprob);
    assert!((wanted - got).abs() < 2e-3, "{wanted}, engine {got}");
    std::fs::remove_dir_all(out).unwrap();
}

#[test]
fn modules_are_judged_by_the_tokens_that_they_keep() {
    let model = model(11).frozen().unwrap();
    let samples: Vec<Sample> = (0..3).map(|seed| sample(seed, 30, 4, 11)).collect();
    let scorers = Scorers::new(&[0, 2], 16, 5).unwrap();
    let recipe = recipe(PathBuf::new());
    let loss = |ratio, by| recipe.judge(&model, &scorers, &spec(ratio), &samples, by).unwrap().loss;
    assert_eq!(loss(1.0, By::Scorers), loss(1.0, By::Nothing));
    assert_ne!(loss(0.3, By::Scorers), loss(0.3, By::Nothing));
    assert_ne!(loss(0.3, By::Scorers), loss(0.3, By::Chance));
}
