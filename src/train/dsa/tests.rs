use super::experts::choose;
use super::export;
use super::indexer::{self, Lesson, divergence, random};
use super::model::{Attention, ROUTER_BIAS, Sparse};
use super::pupil::{Apprentice, lessons};
use super::shape::{Shape, Yarn};
use crate::session::{EngineOptions, ModelRef, Request, Session};
use crate::train::attention::Rotary;
use crate::train::corpus::Corpus;
use crate::train::drill::{Drill, Source};
use crate::train::drill_args::DrillArgs;
use crate::train::llama::Dropping;
use crate::train::loss::cross_entropy;
use crate::train::noise::Noise;
use crate::train::quiz::Quiz;
use crate::train::renaming::Renaming;
use crate::train::rows::{Rows, Sizes, Words, add_recall, add_text, recall};
use crate::train::stage::{Kind, Stage};
use crate::train::{bpe, checkpoint, corpus};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("pagedraft-train-dsa-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn tiny(vocab_size: usize) -> Shape {
    Shape {
        vocab_size,
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        q_lora_rank: 12,
        kv_lora_rank: 10,
        qk_nope_head_dim: 6,
        qk_rope_head_dim: 4,
        v_head_dim: 5,
        intermediate_size: 14,
        first_k_dense_replace: 1,
        n_routed_experts: 4,
        num_experts_per_tok: 2,
        moe_intermediate_size: 8,
        routed_scaling_factor: 1.5,
        index_n_heads: 3,
        index_head_dim: 8,
        index_topk: 3,
        rope_theta: 100.0,
        yarn: None,
    }
}

fn draw(count: usize, below: usize, seed: u64) -> Vec<u32> {
    let mut noise = Noise::new(seed, "tokens", 0);
    (0..count).map(|_| noise.below(below) as u32).collect()
}

/// The slope of `loss` along the gradient of each of the model's tensors that `of` names, and the gradient's length.
fn compare_slopes(model: &Sparse, of: impl Fn(&str) -> bool, loss: impl Fn() -> Tensor) {
    let grads = loss().backward().unwrap();
    let mut compared = 0;
    for (name, var) in model.weights.iter().filter(|(name, _)| of(name)) {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name} got no gradient"));
        let length = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let at = |distance: f64| {
            let before = var.as_tensor().copy().unwrap();
            let there = (&before + grad.affine(distance / f64::from(length), 0.0).unwrap()).unwrap();
            var.set(&there).unwrap();
            let value = f64::from(loss().to_scalar::<f32>().unwrap());
            var.set(&before).unwrap();
            value
        };
        let slope = (at(4e-3) - at(-4e-3)) / 8e-3;
        let error = (slope - f64::from(length)).abs() / f64::from(length).max(1e-3);
        assert!(error < 3e-2, "{name}: slope {slope}, gradient {length}");
        compared += 1;
    }
    assert!(compared > 4);
}

#[test]
fn the_gradient_is_the_slope_of_the_loss_dense_and_with_few_keys() {
    // Every token has every expert: the loss jumps where a choice among them changes.
    let model = Sparse::new(Shape { num_experts_per_tok: 4, ..tiny(11) }, 3).unwrap();
    let (inputs, next) = (draw(14, 11, 1), draw(14, 11, 2));
    for attention in [Attention::Dense, Attention::Random(5)] {
        let loss = || {
            let dropping = Some(Dropping { rate: 0.25, key: 9 });
            let pass = model.forward(&inputs, 7, attention, &[], dropping).unwrap();
            let logits = model.logits(&pass.hidden, (0..14).collect()).unwrap();
            cross_entropy(&logits, &next, None).unwrap().objective
        };
        compare_slopes(&model, |name| !name.contains("indexer") && !name.contains(ROUTER_BIAS), loss);
    }
}

#[test]
fn the_gradient_of_an_indexer_is_the_slope_of_its_divergence() {
    let model = Sparse::new(tiny(11), 4).unwrap();
    let inputs = draw(14, 11, 1);
    let lessons: Vec<_> = (0..14).map(|row| (row / 7, row % 7, 1.0 / 14.0)).collect();
    let attentions = [Attention::Dense, Attention::Random(5)];
    for attention in attentions {
        let loss = || model.forward(&inputs, 7, attention, &lessons, None).unwrap().divergence.unwrap();
        compare_slopes(&model, |name| name.contains("indexer"), loss);
    }
}

/// Every key's score by its formula, one key after another.
#[test]
fn the_indexer_chooses_the_keys_with_the_greatest_scores() {
    let (time, heads, dim, rope) = (150, 2, 6, 4);
    let rotary = Arc::new(Rotary::new(time, rope, 100.0));
    let geometry = indexer::Geometry { time, heads, dim, rope, rotary };
    let mut noise = Noise::new(2, "index", 0);
    let mut tensor = |rows: usize, width: usize| {
        let values: Vec<f32> = (0..rows * width).map(|_| noise.normal()).collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    };
    let (q, k, w) = (tensor(2 * time, heads * dim), tensor(2 * time, dim), tensor(2 * time, heads));
    let chosen = geometry.choose(&q, &k, &w, 9).unwrap();
    let [qs, ks, ws] = [&q, &k, &w].map(|x| x.to_vec2::<f32>().unwrap());
    let turned = |x: &[f32], position: usize| {
        let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for i in 0..rope / 2 {
            let angle = position as f64 / 100f64.powf(2.0 * i as f64 / rope as f64);
            let (a, b) = (x[i], x[i + rope / 2]);
            x[i] = a * angle.cos() - b * angle.sin();
            x[i + rope / 2] = b * angle.cos() + a * angle.sin();
        }
        x
    };
    for (row, found) in chosen.rows.iter().enumerate() {
        let (sequence, t) = (row / time, row % time);
        let mut scores: Vec<(f64, u32)> = (0..=t)
            .map(|s| {
                let key = turned(&ks[sequence * time + s], s);
                let heads = qs[row].chunks(dim).zip(&ws[row]).map(|(q, w)| {
                    let dot: f64 = turned(q, t).iter().zip(&key).map(|(q, k)| q * k).sum();
                    f64::from(*w) * dot.max(0.0)
                });
                (heads.sum(), s as u32)
            })
            .collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut wanted: Vec<u32> = scores.iter().take(9).map(|score| score.1).collect();
        wanted.sort_unstable();
        assert_eq!(*found, wanted, "row {row}");
    }
}

#[test]
fn an_indexer_that_foretells_attention_has_no_divergence_left() {
    let rotary = Arc::new(Rotary::new(4, 2, 100.0));
    let geometry = indexer::Geometry { time: 4, heads: 1, dim: 2, rope: 2, rotary };
    let tensor = |values: &[f32], width| {
        Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu).unwrap()
    };
    // Scores are 0 with these keys, so that its softmax is even.
    let (q, k, w) = (tensor(&[1.0, 0.0], 2), tensor(&[0.0; 8], 2), tensor(&[1.0], 1));
    let value = |wanted: Vec<f32>| {
        let lessons = [Lesson { batch: 0, t: 3, wanted, share: 1.0 }];
        divergence((&q, &k, &w), &geometry, &lessons, None).unwrap().to_scalar::<f32>().unwrap()
    };
    assert!(value(vec![0.25; 4]).abs() < 1e-6);
    assert!((value(vec![1.0, 0.0, 0.0, 0.0]) - 4f32.ln()).abs() < 1e-5);
}

#[test]
fn as_many_keys_as_there_are_compute_the_same_bits_as_dense_attention() {
    let shape = Shape { index_topk: 20, ..tiny(11) };
    let model = Sparse::new(shape, 3).unwrap();
    let tokens = draw(40, 11, 6);
    let run = |attention| {
        let pass = model.forward(&tokens, 20, attention, &[], None).unwrap();
        pass.hidden.to_vec2::<f32>().unwrap()
    };
    assert_eq!(run(Attention::Dense), run(Attention::Sparse));
    assert_eq!(run(Attention::Dense), run(Attention::Random(1)));
    let few = Sparse::new(tiny(11), 3).unwrap();
    let hidden = few.forward(&tokens, 20, Attention::Sparse, &[], None).unwrap().hidden;
    assert_ne!(run(Attention::Dense), hidden.to_vec2::<f32>().unwrap());
}

#[test]
fn a_token_is_predicted_from_those_before_it_alone() {
    let model = Sparse::new(tiny(11), 3).unwrap();
    let tokens = draw(200, 11, 7);
    let run = |count: usize| {
        let pass = model.forward(&tokens[..count], count, Attention::Sparse, &[], None).unwrap();
        pass.hidden.to_vec2::<f32>().unwrap()
    };
    for (all, part) in run(200).iter().flatten().zip(run(131).iter().flatten()) {
        assert!((all - part).abs() < 1e-4);
    }
}

#[test]
fn random_keys_are_as_many_as_asked_for_and_ascend() {
    let chosen = random(2, 30, 7, 3);
    for (row, keys) in chosen.rows.iter().enumerate() {
        assert_eq!(keys.len(), 7.min(row % 30 + 1));
        assert!(keys.is_sorted_by(|a, b| a < b) && keys.iter().all(|&key| key as usize <= row % 30));
    }
    assert_ne!(chosen.rows, random(2, 30, 7, 4).rows);
}

#[test]
fn a_router_takes_the_lowest_among_equal_experts_and_heeds_the_bias() {
    assert_eq!(choose(&[0.0, 0.0, 0.0], &[0.0; 3], 2), [0, 1]);
    assert_eq!(choose(&[0.0, 0.0, 0.0], &[0.0, 0.0, 0.1], 2), [2, 0]);
    assert_eq!(choose(&[-1.0, 3.0, 2.0], &[0.0; 3], 2), [1, 2]);
}

struct World {
    tokenizer: tokenizers::Tokenizer,
    corpus: Corpus,
    heads: String,
    tails: String,
}

impl World {
    fn new() -> Self {
        let assets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets");
        let texts = vec![corpus::read(&assets.join("held_out.txt")).unwrap()];
        let (heads, tails) = Corpus::split(&texts, 0.2);
        let tokenizer = bpe::load(&assets.join("target/tokenizer.json")).unwrap();
        let corpus = Corpus::new(&tokenizer, &heads, &tails, &[], 64).unwrap();
        Self { corpus, heads: heads.concat(), tails: tails.concat(), tokenizer }
    }

    fn source(&self) -> Source<'_> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let words = Words {
            trained: words(&["good", "love", "know", "lord", "king", "heart"]),
            held_out: words(&["father", "world", "fear", "house", "truth"]),
        };
        Source {
            corpus: &self.corpus,
            text: self.heads.clone(),
            held_out: self.tails.clone(),
            renaming: Some(Renaming::new(&self.tokenizer, &words, 0.5, 5).unwrap()),
            words,
            tokenizer: &self.tokenizer,
            specials: (0, 1),
        }
    }
}

fn drill(out: PathBuf) -> Drill {
    let stage = |time, steps, kind| Stage { time, steps, kind };
    Drill {
        stages: vec![stage(48, 3, Kind::Dense), stage(48, 2, Kind::Index), stage(64, 3, Kind::Sparse)],
        until: u64::MAX,
        tokens: 256,
        text_share: 0.4,
        answer_weight: 1.0,
        most_hops: 1,
        shards: 2,
        lr: 1e-2,
        warmup: 2,
        weight_decay: 0.1,
        dropout: 0.1,
        checkpoint_every: 1,
        seed: 5,
        checkpoint: out.join("checkpoint"),
        out,
    }
}

#[test]
fn a_resumed_run_ends_where_an_uninterrupted_one_does() {
    let world = World::new();
    let source = world.source();
    let start = || Apprentice { model: Sparse::new(tiny(2048), 5).unwrap(), lesson_share: 0.2 };
    let (whole, parts) = (folder("whole"), folder("parts"));
    drill(whole.clone()).run(start(), &source, false).unwrap();
    Drill { until: 4, ..drill(parts.clone()) }.run(start(), &source, false).unwrap();
    drill(parts.clone()).run(start(), &source, true).unwrap();
    let read = |at: &PathBuf| checkpoint::load(&at.join("checkpoint")).unwrap();
    let (a, b) = (read(&whole), read(&parts));
    assert_eq!((a.progress.step, b.progress.step), (8, 8));
    assert!(a.moments == b.moments);
    for (name, tensor) in &a.weights {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(tensor), flat(&b.weights[name]), "{name}");
    }
    let quiz = Quiz { length: 64, needles: 1, hops: 1, samples: 4, new_words: true, seed: 1 };
    let model = export::load(&whole).unwrap();
    let accuracy = quiz.accuracy(&source, &|inputs, time, places| {
        let pass = model.forward(inputs, time, Attention::Sparse, &[], None)?;
        model.logits(&pass.hidden, places)
    });
    assert!((0.0..=1.0).contains(&accuracy.unwrap()));
    starts_from(&whole, &source);
    std::fs::remove_dir_all(whole).unwrap();
    std::fs::remove_dir_all(parts).unwrap();
}

/// A run of --from begins with the weights of a directory, if they are of the tokenizer.
fn starts_from(folder: &Path, source: &Source<'_>) {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        drill: DrillArgs,
    }
    let from = folder.to_string_lossy();
    let line = Line::parse_from(["train", "--out", "new", "--text", "text", "--from", &from]);
    let start = |load: fn(&Path) -> anyhow::Result<Sparse>| {
        line.drill.start(source, load, |model| model.shape.vocab_size, |_| anyhow::bail!("fresh weights"))
    };
    let values = |model: &Sparse| -> Vec<Vec<f32>> {
        let tensors = model.weights.values().map(|var| var.flatten_all().unwrap().to_vec1().unwrap());
        tensors.collect()
    };
    assert_eq!(values(&start(export::load).unwrap()), values(&export::load(folder).unwrap()));
    let error = start(|_| Sparse::new(tiny(1999), 5)).err().unwrap().to_string();
    assert!(error.contains("1999 tokens") && error.contains("--tokenizer"), "{error}");
}

#[test]
fn answers_of_recall_rows_stand_behind_their_questions_and_lessons_have_them() {
    let world = World::new();
    let source = world.source();
    let sizes = Sizes { length: 65, needles: 1..=2, questions: 2, hops: 1..=1 };
    let generator = recall(&world.tokenizer, &source.text, &source.words.trained, sizes, 3).unwrap();
    let mut rows = Rows { time: 64, ..Rows::default() };
    add_text(&mut rows, &world.corpus, 1, 0, 1);
    add_recall(&mut rows, &generator, 0, 2, 1, None);
    assert_eq!((rows.inputs.len(), rows.text.len()), (192, 64));
    assert!(!rows.answers.is_empty());
    let words = bpe::encode(&world.tokenizer, " is").unwrap();
    for &(at, answer) in &rows.answers {
        let row = &rows.inputs[at / 64 * 64..=at];
        // A value of several tokens: the later ones follow the earlier ones.
        assert!(row.ends_with(&words) || rows.answers.contains(&(at - 1, rows.inputs[at])), "{at}: {answer}");
        assert!(lessons(&rows, 0.0, 1).iter().any(|&(row, t, _)| row * 64 + t == at));
    }
    let parts = rows.shards(2);
    assert_eq!(parts.iter().map(|part| part.answers.len()).sum::<usize>(), rows.answers.len());
    for part in &parts {
        assert!(part.answers.iter().all(|&(at, _)| at < part.inputs.len()));
    }
}

#[test]
fn a_renamed_sample_has_one_other_token_for_each_word_and_no_held_out_one() {
    let world = World::new();
    let source = world.source();
    let sizes = Sizes { length: 65, needles: 2..=2, questions: 2, hops: 1..=1 };
    let generator = recall(&world.tokenizer, &source.text, &source.words.trained, sizes, 3).unwrap();
    let tokens = |words: &[String]| -> Vec<u32> {
        words.iter().flat_map(|word| bpe::encode(&world.tokenizer, &format!(" {word}")).unwrap()).collect()
    };
    let (trained, held_out) = (tokens(&source.words.trained), tokens(&source.words.held_out));
    let all = Renaming::new(&world.tokenizer, &source.words, 1.0, 5).unwrap();
    for index in 0..20 {
        let before = generator.sample(index).tokens;
        let mut after = before.clone();
        all.apply(index, &mut after);
        let mut names = std::collections::BTreeMap::new();
        for (&word, &name) in before.iter().zip(&after) {
            assert_eq!(*names.entry(word).or_insert(name), name, "one name in a sample");
            assert!(if trained.contains(&word) { !held_out.contains(&name) } else { name == word });
        }
        let distinct: std::collections::BTreeSet<u32> =
            trained.iter().filter_map(|word| names.get(word).copied()).collect();
        assert_eq!(distinct.len(), trained.iter().filter(|word| names.contains_key(word)).count());
    }
    let changed = |share: f32| {
        let renaming = Renaming::new(&world.tokenizer, &source.words, share, 5).unwrap();
        let changes = |&index: &u64| {
            let before = generator.sample(index).tokens;
            let mut after = before.clone();
            renaming.apply(index, &mut after);
            after != before
        };
        (0..40).filter(changes).count()
    };
    assert_eq!((changed(0.0), changed(1.0)), (0, 40));
    assert!((10..30).contains(&changed(0.5)), "{}", changed(0.5));
}

/// The engine computes with latents that are absorbed, pages and blocks; the trainer with whole rows.
#[test]
fn the_engine_gives_an_exported_model_the_logits_of_the_trainer() {
    let world = World::new();
    // The second pair of rotated elements turns more slowly, and products of queries and keys count for more.
    let yarn = Yarn { factor: 4.0, original_max_position_embeddings: 64 };
    let shape = Shape { index_topk: 16, yarn: Some(yarn), ..tiny(2048) };
    let model = Sparse::new(shape, 8).unwrap();
    let out = folder("engine");
    bpe::save(&world.tokenizer, &out).unwrap();
    export::save(&model, (0, 1), DType::F32, &out).unwrap();
    assert_eq!(export::load(&out).unwrap().shape, model.shape);
    let tokens = draw(90, 2048, 4);
    for (attention, index_topk) in [(Attention::Sparse, None), (Attention::Dense, Some(128))] {
        let mut options = EngineOptions::new(ModelRef::Directory(out.clone()));
        options.max_model_len = Some(128);
        options.index_topk = index_topk;
        let mut session = Session::open(&options).unwrap();
        let mut request = Request::new("a", tokens.clone(), 1);
        request.sampling.prompt_logprobs = Some(1);
        let id = session.submit(request).unwrap()[0];
        while session.has_unfinished() {
            session.step().unwrap();
        }
        let output = session.take_output(id).unwrap();
        let found = output.prompt_token_logprobs.unwrap();
        let pass = model.forward(&tokens, 90, attention, &[], None).unwrap();
        let logits = model.logits(&pass.hidden, (0..89).collect()).unwrap().to_vec2::<f32>().unwrap();
        for (t, row) in logits.iter().enumerate() {
            let norm = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            let wanted = f64::from(row[tokens[t + 1] as usize]) - norm;
            let got = f64::from(found[t + 1].as_ref().unwrap().logprob);
            assert!((wanted - got).abs() < 2e-4, "{attention:?}, position {t}: {wanted}, engine {got}");
        }
    }
    std::fs::remove_dir_all(out).unwrap();
}

#[test]
fn shapes_and_stages_that_cannot_work_are_refused_with_what_to_change() {
    let refused = |shape: Shape| Sparse::new(shape, 1).err().unwrap().to_string();
    assert!(refused(Shape { qk_rope_head_dim: 3, ..tiny(11) }).contains("--rope-dim 3"));
    assert!(refused(Shape { num_experts_per_tok: 5, ..tiny(11) }).contains("--experts-per-token 5"));
    assert!(refused(Shape { index_head_dim: 2, ..tiny(11) }).contains("--index-dim 2"));
    for text in ["128:10", "128:10:wide", "x:10:dense", "8:10:dense", "128:10:dense:2"] {
        assert!(text.parse::<Stage>().is_err(), "{text}");
    }
    assert_eq!("128:10:index".parse::<Stage>().unwrap().to_string(), "128:10:index");
}
