//! Scorers that follow attention, against a slow model in f64, and under every schedule to the bit.

use std::path::Path;
use std::sync::Arc;

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::prune::PruneChoice;
use pagedraft::session::{
    DraftRef, EngineOptions, ModelRef, PruneOptions, Request, RequestPrune, Session, SpeculationOptions,
};
use pagedraft::spec_decode::Scorer;

use crate::models::{deep, six_layers};
use crate::pruned::Slow;
use crate::requests::{Random, options, requests, spec, speculation};
use crate::schedule::{alone, every_schedule};

/// An engine with a draft model, which can prune prompts in these ways.
fn engine(name: &str, ways: &[PruneChoice]) -> EngineOptions {
    let draft = deep(&format!("{name}-draft"), 2);
    let speculation = speculation(DraftRef::Model(draft), 2, Scorer::default());
    let prune = PruneOptions { others: ways.to_vec(), ..PruneOptions::default() };
    EngineOptions { prune, speculation, ..options(&six_layers(name), Dtype::F32, Isa::detect()) }
}

fn directory(model: &ModelRef) -> &Path {
    let ModelRef::Directory(dir) = model else { unreachable!("the models of these tests are directories") };
    dir
}

/// What the slow model says that `scorer` makes of a prompt behind layer `layer`.
fn slow_scores(name: &str, scorer: &str, layer: usize, prompt: &[u32], answer: &[u32]) -> Vec<f64> {
    let n = prompt.len();
    let target = || Slow::new(directory(&six_layers(name)), 7);
    match scorer {
        "last-window" => {
            let pass = target().run(prompt);
            let window = n.saturating_sub(128)..n;
            let heads = &pass.weights[layer];
            let mass = |j: usize| -> f64 {
                let pairs = heads.iter().flat_map(|by_query| window.clone().map(move |i| &by_query[i]));
                pairs.map(|shares| shares.get(j).copied().unwrap_or(0.0)).sum::<f64>()
                    / (heads.len() * window.len()) as f64
            };
            let mass: Vec<f64> = (0..n).map(mass).collect();
            mass.chunks(64)
                .flat_map(|block| vec![block.iter().sum::<f64>() / block.len() as f64; block.len()])
                .collect()
        }
        "draft" => {
            let draft = Slow::new(directory(&deep(&format!("{name}-draft"), 2)), 7);
            let mut tokens = prompt.to_vec();
            for _ in 0..8 {
                let logits = draft.run(&tokens).logits;
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
                tokens.push(best.unwrap() as u32);
            }
            let pass = draft.run(&tokens);
            let greatest = |i: usize, j: usize| {
                pass.weights.iter().flatten().map(|by_query| by_query[i][j]).fold(0.0, f64::max)
            };
            let mean: Vec<f64> =
                (0..n).map(|j| (n..n + 8).map(|i| greatest(i, j)).sum::<f64>() / 8.0).collect();
            let pooled: Vec<f64> = (0..n)
                .map(|j| {
                    let near = &mean[j.saturating_sub(6)..n.min(j + 7)];
                    near.iter().sum::<f64>() / near.len() as f64
                })
                .collect();
            pooled
                .chunks(32)
                .flat_map(|chunk| vec![chunk.iter().sum::<f64>() / chunk.len() as f64; chunk.len()])
                .collect()
        }
        _ => {
            let tokens: Vec<u32> = prompt.iter().chain(answer).copied().collect();
            let pass = target().run(&tokens);
            let mass = |j: usize| -> f64 {
                let behind = pass.weights[layer + 1..].iter().flatten();
                behind.map(|by_query| (n..tokens.len()).map(|i| by_query[i][j]).sum::<f64>()).sum()
            };
            (0..n).map(mass).collect()
        }
    }
}

#[test]
fn what_is_kept_has_the_greatest_scores_of_a_slow_model() {
    let name = "prune-scorers-slow";
    let scorers = ["last-window", "draft", "oracle"];
    let ways = scorers.map(|scorer| {
        spec(&format!(
            r#"{{"layers": [1, 3], "keep_ratio": 0.5, "scorer": "{scorer}", "min_tail_tokens": 3, "min_tail_ratio": 0.0, "protect": [[40, 44]]}}"#
        ))
    });
    let mut session = Session::open(&engine(name, &ways)).unwrap();
    println!("seed 41");
    let mut random = Random(41);
    for len in [150, 233] {
        let prompt: Vec<u32> = (0..len).map(|_| random.below(300) as u32).collect();
        let answer: Vec<u32> = (0..9).map(|_| random.below(300) as u32).collect();
        for (scorer, way) in scorers.iter().zip(&ways) {
            let request = Request {
                ignore_eos: true,
                prune: RequestPrune::Choice(way.clone()),
                recorded: vec![Arc::from(&answer[..])],
                ..Request::new(format!("{scorer}.{len}"), prompt.clone(), 2)
            };
            let id = session.submit(request).unwrap()[0];
            while session.has_unfinished() {
                session.step().unwrap();
            }
            let output = session.take_output(id).unwrap();
            assert_eq!(output.error, None);
            let kept = &output.prune.unwrap().unwrap().kept[&1];
            assert_eq!(kept.len(), len / 2);
            let scores = slow_scores(name, scorer, 1, &prompt, &answer);
            let stays =
                |position: u32| position < 4 || position >= len as u32 - 3 || (40..44).contains(&position);
            assert!((0..len as u32).filter(|&p| stays(p)).all(|p| kept.binary_search(&p).is_ok()));
            let chosen = kept.iter().filter(|&&p| !stays(p)).map(|&p| scores[p as usize]);
            let least = chosen.fold(f64::INFINITY, f64::min);
            let dropped = (0..len as u32).filter(|p| !stays(*p) && kept.binary_search(p).is_err());
            let greatest = dropped.map(|p| scores[p as usize]).fold(0.0, f64::max);
            let (low, high) =
                scores.iter().fold((f64::INFINITY, 0.0f64), |(low, high), &s| (low.min(s), high.max(s)));
            let slack = 1e-5 * high;
            assert!(least >= greatest - slack, "{scorer}, {len} tokens: kept {least}, dropped {greatest}");
            assert!(high - low > 100.0 * slack, "{scorer}: all scores are {low} to {high}");
        }
        let mass = session.answer_mass(&prompt, &answer).unwrap();
        let tokens: Vec<u32> = prompt.iter().chain(&answer).copied().collect();
        let pass = Slow::new(directory(&six_layers(name)), 7).run(&tokens);
        for (layer, (mass, heads)) in mass.iter().zip(&pass.weights).enumerate() {
            for (j, &mass) in mass.iter().enumerate() {
                let all = heads.iter().flat_map(|by_query| (len..tokens.len()).map(move |i| by_query[i][j]));
                let want = all.sum::<f64>() / (heads.len() * answer.len()) as f64;
                assert!((f64::from(mass) - want).abs() < 1e-5 * want + 1e-8, "layer {layer}, key {j}");
            }
        }
    }
}

#[test]
fn scorers_that_follow_attention_give_the_same_bits_under_every_schedule() {
    let ways = ["last-window", "draft", "oracle"].map(|scorer| {
        spec(&format!(
            r#"{{"layers": [0, 2, 4], "keep_ratio": 0.6, "scorer": "{scorer}", "min_tail_tokens": 2}}"#
        ))
    });
    let base = engine("prune-scorers-schedules", &ways);
    println!("seed 43");
    let mut requests = requests(43, 8, 300, 190);
    for (i, request) in requests.iter_mut().enumerate() {
        let way = ways[i % 3].clone();
        request.prune = if i == 5 { RequestPrune::Never } else { RequestPrune::Choice(way) };
        request.recorded = vec![Arc::from([3, 1, 4, 1, 5])];
    }
    let alone = alone(&base, &requests);
    let events = every_schedule("seed 43", &base, 22, &requests, &alone);
    assert!(events.preempted > 0, "the tight pools preempted nobody");
}

#[test]
fn a_scorer_without_what_it_needs_is_refused_by_name() {
    let ways = ["draft", "oracle", "indexer"]
        .map(|scorer| spec(&format!(r#"{{"layers": [1], "keep_ratio": 0.5, "scorer": "{scorer}"}}"#)));
    let options = engine("prune-scorers-refused", &ways);
    let session =
        Session::open(&EngineOptions { speculation: SpeculationOptions::default(), ..options }).unwrap();
    for (way, says) in ways.iter().zip(["--draft", "told the answer", "attention is not sparse"]) {
        let request =
            Request { prune: RequestPrune::Choice(way.clone()), ..Request::new("r", vec![1, 2, 3], 2) };
        let error = format!("{:#}", session.check(&request).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_given_text_is_followed_and_its_log_probabilities_are_those_of_its_tokens() {
    let options = engine("prune-scorers-follow", &[]);
    let options = EngineOptions { speculation: SpeculationOptions::default(), ..options };
    let mut session = Session::open(&options).unwrap();
    let prompt: Vec<u32> = (0..40).collect();
    let text: Arc<[u32]> = Arc::from([7, 250, 3, 3, 99]);
    let mut request = Request::new("follow", prompt.clone(), 5);
    (request.follows_recorded, request.recorded) = (true, vec![Arc::clone(&text)]);
    (request.sampling.logprobs, request.ignore_eos) = (Some(0), true);
    // The same tokens as a prompt have the same probabilities.
    let whole: Vec<u32> = prompt.iter().chain(text.iter()).copied().collect();
    let mut prompted = Request::new("prompt", whole, 1);
    prompted.sampling.prompt_logprobs = Some(0);
    let mut ids = Vec::new();
    for request in [request, prompted] {
        ids.extend(session.submit(Request { prune: RequestPrune::Never, ..request }).unwrap());
        while session.has_unfinished() {
            session.step().unwrap();
        }
    }
    let outputs: Vec<_> = ids.into_iter().map(|id| session.take_output(id).unwrap()).collect();
    assert_eq!(outputs[0].token_ids, &text[..]);
    let followed: Vec<f32> =
        outputs[0].token_logprobs.as_ref().unwrap().iter().map(|token| token.logprob).collect();
    let of_prompt = outputs[1].prompt_token_logprobs.as_ref().unwrap();
    let prompted: Vec<f32> = of_prompt[40..].iter().map(|token| token.as_ref().unwrap().logprob).collect();
    assert_eq!(followed, prompted);
}
