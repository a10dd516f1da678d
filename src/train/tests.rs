use super::bpe;
use super::corpus::{Batch, Corpus, windows};
use super::llama::{Config, Dropping, Llama};
use super::loss::cross_entropy;
use super::noise::Noise;
use super::optimise::AdamW;
use super::training::Recipe;
use super::{checkpoint, evaluate, export};
use candle_core::{Device, Tensor, Var};
use std::path::PathBuf;

pub(super) fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("pagedraft-train-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub(super) fn tiny(vocab_size: usize) -> Config {
    Config {
        vocab_size,
        hidden_size: 16,
        num_hidden_layers: 2,
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
    }
}

pub(super) fn recipe(out: PathBuf, steps: u64) -> Recipe {
    Recipe {
        steps,
        until: steps,
        long_steps: 2,
        batch: 4,
        shards: 2,
        seq_len: 8,
        long_seq_len: 16,
        lr: 1e-2,
        warmup: 2,
        weight_decay: 0.1,
        dropout: 0.1,
        teacher_share: 0.5,
        validate_every: 3,
        checkpoint_every: 1,
        seed: 5,
        checkpoint: out.join("checkpoint"),
        out,
    }
}

fn verse() -> String {
    let mut noise = Noise::new(7, "verse", 0);
    let words = ["the", "forest", "of", "Arden", "sings", "to", "none", "but", "fools", "\n"];
    (0..600).map(|_| words[noise.below(words.len())]).collect::<Vec<_>>().join(" ")
}

pub(super) fn corpus() -> (tokenizers::Tokenizer, Corpus) {
    let texts = vec![verse()];
    let (heads, tails) = Corpus::split(&texts, 0.1);
    let tokenizer = bpe::train(&heads, 270).unwrap();
    let corpus = Corpus::new(&tokenizer, &heads, &tails, &[], 16).unwrap();
    (tokenizer, corpus)
}

#[test]
fn the_tokenizer_gives_back_every_text_it_is_given() {
    let (tokenizer, _) = corpus();
    assert_eq!(tokenizer.get_vocab_size(true), 270);
    for text in ["the forest of Arden", " two  spaces\tand\n\nlines\r\n", "nothing like it: ßé漢🦀 \u{0}"]
    {
        let ids = bpe::encode(&tokenizer, text).unwrap();
        assert_eq!(bpe::decode(&tokenizer, &ids).unwrap(), text);
    }
    assert_eq!(bpe::special(&tokenizer, bpe::BOS).unwrap(), 0);
    assert_eq!(bpe::special(&tokenizer, bpe::EOS).unwrap(), 1);
}

/// Every tensor of a tiny model, along its own gradient, with dropout and a teacher's share.
#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let model = Llama::new(tiny(11), 3).unwrap();
    let mut noise = Noise::new(3, "tokens", 0);
    let inputs: Vec<u32> = (0..10).map(|_| noise.below(11) as u32).collect();
    let next: Vec<u32> = (0..10).map(|_| noise.below(11) as u32).collect();
    let wanted: Vec<f32> = (0..110).map(|_| noise.normal()).collect();
    let wanted = Tensor::from_vec(wanted, (10, 11), &Device::Cpu).unwrap();
    let loss = || {
        let dropping = Some(Dropping { rate: 0.25, key: 9 });
        let logits = model.forward(&inputs, 5, dropping).unwrap();
        cross_entropy(&logits, &next, Some((&wanted, 0.6))).unwrap().objective
    };
    let grads = loss().backward().unwrap();
    for (name, var) in &model.weights {
        slope(name, var, grads.get(var).unwrap(), &loss);
    }
}

/// The loss rises along a tensor's gradient by as much as the gradient is long.
pub(super) fn slope(name: &str, var: &Var, grad: &Tensor, loss: &impl Fn() -> Tensor) {
    let length = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let at = |distance: f64| {
        let before = var.as_tensor().copy().unwrap();
        let there = (&before + grad.affine(distance / f64::from(length), 0.0).unwrap()).unwrap();
        var.set(&there).unwrap();
        let value = f64::from(loss().to_scalar::<f32>().unwrap());
        var.set(&before).unwrap();
        value
    };
    let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
    let error = (slope - f64::from(length)).abs() / f64::from(length).max(1e-3);
    assert!(error < 2e-2, "{name}: slope {slope}, gradient {length}");
}

#[test]
fn a_token_is_predicted_from_those_before_it_alone() {
    let model = Llama::new(tiny(11), 3).unwrap();
    let tokens = [1u32, 4, 2, 9, 7, 3];
    let all = model.forward(&tokens, 6, None).unwrap().to_vec2::<f32>().unwrap();
    let part = model.forward(&tokens[..4], 4, None).unwrap().to_vec2::<f32>().unwrap();
    for (a, b) in all[..4].iter().flatten().zip(part.iter().flatten()) {
        assert!((a - b).abs() < 1e-5);
    }
}

#[test]
fn shards_of_a_batch_have_the_gradient_of_the_whole() {
    let (_, corpus) = corpus();
    let step = |shards: usize| {
        let recipe = Recipe { dropout: 0.0, shards, ..recipe(PathBuf::new(), 4) };
        let model = Llama::new(tiny(270), 3).unwrap();
        let mut optimiser = AdamW::new(&model.weights, 0.1, 1.0);
        let batch = recipe.batch(&corpus, 0);
        recipe.step(&model, None, &mut optimiser, &batch, 0).unwrap();
        optimiser.moments
    };
    for (one, two) in step(1).values().zip(step(2).values()) {
        for (a, b) in one.first.iter().zip(&two.first) {
            assert!((a - b).abs() < 1e-5);
        }
    }
}

#[test]
fn a_resumed_run_ends_where_an_uninterrupted_one_does() {
    resumes_as_if_uninterrupted("causal", || Llama::new(tiny(270), 5).unwrap());
}

/// Trains the model of `start` in one run, and in two.
pub(super) fn resumes_as_if_uninterrupted(name: &str, start: impl Fn() -> Llama) {
    let (_, corpus) = corpus();
    let whole = folder(&format!("whole-{name}"));
    recipe(whole.clone(), 8).run(start(), None, &corpus, (0, 1), false).unwrap();

    let parts = folder(&format!("parts-{name}"));
    let recipe = recipe(parts.clone(), 8);
    let part = Recipe { until: 5, ..recipe.clone() };
    part.run(start(), None, &corpus, (0, 1), false).unwrap();
    recipe.run(start(), None, &corpus, (0, 1), true).unwrap();

    let read = |at: &PathBuf| checkpoint::load(&at.join("checkpoint")).unwrap();
    let (a, b) = (read(&whole), read(&parts));
    assert_eq!(b.progress.step, 8);
    assert!(a.moments == b.moments);
    for (name, tensor) in &a.weights {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(tensor), flat(&b.weights[name]), "{name}");
    }
    std::fs::remove_dir_all(whole).unwrap();
    std::fs::remove_dir_all(parts).unwrap();
}

#[test]
fn training_lowers_the_loss_and_the_export_has_it_too() {
    let (_, corpus) = corpus();
    let out = folder("export");
    let recipe = recipe(out.clone(), 60);
    let model = Llama::new(tiny(270), 5).unwrap();
    let before = recipe.validate(&model, None, &corpus.validation).unwrap().1;
    recipe.run(model, None, &corpus, (0, 1), false).unwrap();
    let model = export::load(&out).unwrap();
    let after = evaluate::figures(&model, Some(&model), &corpus.validation, 8).unwrap();
    assert!(after.loss < before - 1.0, "{before} before, {} after", after.loss);
    assert_eq!(after.agreement, 1.0);
    assert!((after.overlap - 1.0).abs() < 1e-4);
    std::fs::remove_dir_all(out).unwrap();
}

#[test]
fn an_epoch_reads_each_window_once_and_depends_on_the_seed() {
    let (_, corpus) = corpus();
    let count = (corpus.train.len() - 1) / 8 - 1;
    let epoch = |seed| corpus.batch(seed, 0, count, 8);
    let Batch { inputs, next, .. } = epoch(1);
    assert_eq!((inputs.len(), next.len()), (count * 8, count * 8));
    assert_ne!(inputs, epoch(2).inputs);
    assert_eq!(inputs, epoch(1).inputs);
    let mut sorted: Vec<&[u32]> = next.chunks(8).collect();
    sorted.sort_unstable();
    let mut from_text: Vec<&[u32]> = (0..8)
        .map(|offset| corpus.train[offset + 1..].chunks_exact(8).take(count).collect::<Vec<_>>())
        .map(|mut windows| {
            windows.sort_unstable();
            windows
        })
        .find(|windows| *windows == sorted)
        .unwrap();
    from_text.dedup();
    assert!(!from_text.is_empty());
}

#[test]
fn windows_cover_a_text_once() {
    let tokens: Vec<u32> = (0..30).collect();
    let batches = windows(&tokens, 7, 3);
    let next: Vec<u32> = batches.iter().flat_map(|batch| batch.next.clone()).collect();
    assert_eq!(next, (1..29).collect::<Vec<u32>>());
    assert_eq!(windows(&tokens[..3], 7, 3)[0].inputs, [0, 1]);
}

#[test]
fn shapes_and_texts_that_cannot_work_are_refused_with_what_to_change() {
    let odd = Config { num_key_value_heads: 3, ..tiny(11) };
    assert!(Llama::new(odd, 1).err().unwrap().to_string().contains("--kv-heads 3"));
    let short = Corpus::new(&corpus().0, &["a"], &["b"], &[PathBuf::from("a.txt")], 16);
    assert!(short.err().unwrap().to_string().contains("a.txt too short"));
    let missing = super::corpus::read(&PathBuf::from("no/such/text")).unwrap_err();
    assert!(format!("{missing:#}").contains("no/such/text"));
    let out = folder("bytes");
    std::fs::write(out.join("latin1"), [0x66, 0xfc, 0x72]).unwrap();
    let latin1 = super::corpus::read(&out.join("latin1")).unwrap_err();
    assert!(format!("{latin1:#}").contains("isn't UTF-8"));
    std::fs::remove_dir_all(out).unwrap();
}

/// The engine's golden logits, as the trainer computes them: head norms, untied heads and Llama 3's frequencies are in them.
#[test]
fn a_checkpoint_of_either_family_has_the_logits_of_the_reference() {
    let reference = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
    if !reference.is_dir() {
        println!("skipped: there is no {}", reference.display());
        return;
    }
    for name in ["llama/plain-tied", "llama/llama3rope-untied", "qwen3/tied-headdim32", "qwen3/untied"] {
        let folder = reference.join(name);
        let model = export::load(&folder).unwrap().frozen().unwrap();
        let file = folder.join("expected.safetensors");
        let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let ids = expected["p2.input_ids"].to_vec1::<i64>().unwrap();
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        let found = model.forward(&ids, ids.len(), None).unwrap();
        let greatest = |x: &Tensor| {
            let x = x.abs().unwrap().flatten_all().unwrap();
            x.max(0).unwrap().to_scalar::<f32>().unwrap()
        };
        let error = greatest(&(&found - &expected["p2.logits"]).unwrap()) / greatest(&found);
        assert!(error < 1e-4, "{name}: {error}");
    }
}

#[test]
fn a_model_with_biases_and_head_norms_has_the_slope_of_its_loss_too() {
    let config = Config { attention_bias: true, head_norms: true, tied: false, ..tiny(11) };
    let model = Llama::new(config, 3).unwrap();
    let (inputs, next) = ([1u32, 4, 2, 9, 7, 3], [4u32, 2, 9, 7, 3, 1]);
    let loss = || cross_entropy(&model.forward(&inputs, 6, None).unwrap(), &next, None).unwrap().objective;
    let gradients = loss().backward().unwrap();
    for part in
        ["self_attn.q_proj.bias", "self_attn.v_proj.bias", "self_attn.k_norm.weight", "lm_head.weight"]
    {
        let names = model.weights.keys().filter(|name| name.ends_with(part));
        for name in names {
            slope(name, &model.weights[name], gradients.get(&model.weights[name]).unwrap(), &loss);
        }
    }
}
