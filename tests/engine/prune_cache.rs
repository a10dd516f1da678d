//! Pruned prompts and the prefix cache: what is cached changes neither what is kept nor a bit of what is generated.

use std::path::Path;

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::prune::PruneChoice;
use pagedraft::session::{
    EngineOptions, PruneOptions, PruneOutput, Request, RequestPrune, Session, TraceOptions,
};
use pagedraft::workloads::run::LineFormat;
use pagedraft::workloads::trace::{TraceTables, check_dir};

use crate::models::six_layers;
use crate::pruned::learned;
use crate::requests::{Random, options, requests, spec};
use crate::schedule::{alone, check, run, schedules};

/// Runs a request to its end. Returns its tokens, the bits of its logits, what was kept of it, its cached tokens, and the prompt tokens that
/// were computed in its steps.
struct Ran {
    tokens: Vec<u32>,
    logits: Vec<Vec<u32>>,
    kept: Option<PruneOutput>,
    cached: u32,
    computed: usize,
}

fn serve(session: &mut Session, request: Request) -> Ran {
    let id = session.submit(request).unwrap()[0];
    let mut computed = 0;
    while session.has_unfinished() {
        computed += session.step().unwrap().prefill_tokens;
    }
    let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
    let logits = session.take_logits(id).into_iter().map(bits).collect();
    let output = session.take_output(id).unwrap();
    let (kept, cached) = (output.prune.unwrap(), output.num_cached_tokens);
    Ran { tokens: output.token_ids, logits, kept, cached, computed }
}

fn prompt(random: &mut Random, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.below(300) as u32).collect()
}

#[test]
fn the_second_identical_request_computes_at_most_one_block_and_keeps_the_same() {
    let ways = [
        learned("prune-cache-second", 16),
        spec(r#"{"layers": [0, 2, 4], "keep_ratio": 0.6, "scorer": "random", "positions": "compact"}"#),
        // Layers before the first point at which this one drops tokens hold all of them.
        spec(
            r#"{"layers": [3], "keep_ratio": 0.3, "scorer": "first-last", "mode": "prompt", "protect": [[20, 30]]}"#,
        ),
    ];
    let prune = PruneOptions { others: ways.to_vec(), ..PruneOptions::default() };
    let base = options(&six_layers("prune-cache-second"), Dtype::F32, Isa::detect());
    let options = EngineOptions { prune, enable_prefix_caching: true, ..base };
    println!("seed 21");
    let mut random = Random(21);
    for len in [17, 40, 96, 100, 233, 400] {
        let prompt = prompt(&mut random, len);
        for way in &ways {
            let mut session = Session::open(&options).unwrap();
            session.keep_logits();
            let mut number = 0;
            let mut ask = |session: &mut Session, prompt: &[u32], prune: RequestPrune| {
                number += 1;
                let request = Request::new(number.to_string(), prompt.to_vec(), 6);
                serve(session, Request { ignore_eos: true, prune, ..request })
            };
            let pruned = RequestPrune::Choice(way.clone());
            let first = ask(&mut session, &prompt, pruned.clone());
            assert_eq!(first.cached, 0);
            let dense = ask(&mut session, &prompt, RequestPrune::Never);
            let second = ask(&mut session, &prompt, pruned.clone());
            let block = 16;
            assert!(second.computed <= block, "{len} tokens: {} were computed again", second.computed);
            assert_eq!(second.cached as usize + second.computed, len);
            assert!(
                first.kept.is_some() && first.kept == second.kept,
                "{len} tokens: other tokens were kept"
            );
            let same = (&first.tokens, &first.logits) == (&second.tokens, &second.logits);
            assert!(same, "{len} tokens: the second gave other bits");
            let again = ask(&mut session, &prompt, RequestPrune::Never);
            assert!((&dense.tokens, &dense.logits) == (&again.tokens, &again.logits));
            assert!(again.computed <= block);
            // The last token decides what was kept too: another prompt finds no kept tokens.
            let mut other = prompt.clone();
            *other.last_mut().unwrap() ^= 1;
            let changed = ask(&mut session, &other, pruned.clone());
            // Where nothing is dropped, the KV is that of a dense request.
            let dropped =
                first.kept.as_ref().unwrap().kv_lens_after_prefill.iter().any(|&held| held < len as u32);
            assert!(
                changed.cached == 0 || !dropped,
                "{len} tokens: kept tokens of another prompt were found"
            );
            // What the cache forgets is computed again.
            session.clear_prefix_cache();
            let third = ask(&mut session, &prompt, pruned);
            assert!(third.cached == 0 && third.kept == first.kept && third.logits == first.logits);
        }
    }
}

#[test]
fn repeated_pruned_prompts_give_the_same_bits_under_every_schedule_and_every_trace_is_sound() {
    let model = six_layers("prune-cache-schedules");
    let ways = [
        learned("prune-cache-schedules", 3),
        spec(
            r#"{"layers": [0, 2, 4], "keep_ratio": 0.6, "scorer": "random", "positions": "compact", "min_tail_tokens": 20}"#,
        ),
        spec(r#"{"layers": [2], "keep_ratio": 0.3, "scorer": "first-last", "min_tail_tokens": 70}"#),
    ];
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prune-cache-trace");
    let (mut hits, mut cut_short, mut preempted) = (0, 0, 0);
    for (dtype, seed) in [(Dtype::F32, 31), (Dtype::Bf16, 32)] {
        println!("seed {seed}");
        let prune = PruneOptions { others: ways.to_vec(), ..PruneOptions::default() };
        let base = EngineOptions { prune, ..options(&model, dtype, Isa::detect()) };
        let mut random = Random(seed);
        let mut one_of_each = requests(seed, 6, 300, 110);
        for (i, request) in one_of_each.iter_mut().enumerate() {
            let way = ways[i % 3].clone();
            request.prune = if i == 4 { RequestPrune::Never } else { RequestPrune::Choice(way) };
        }
        let single = alone(&base, &one_of_each);
        // Each three times, in an order of chance, and a fourth one that is ended at any moment.
        let mut order: Vec<(usize, bool)> = (0..24).map(|i| (i % 6, i >= 18)).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i as u64 + 1) as usize);
        }
        for (schedule, apart, options) in schedules(&base, 22) {
            let _ = std::fs::remove_dir_all(&dir);
            let trace =
                TraceOptions { dir: dir.clone(), format: LineFormat::Jsonl, tables: TraceTables::Full };
            let options = EngineOptions { trace: Some(trace), enable_prefix_caching: true, ..options };
            let mut session = Session::open(&options).unwrap();
            session.keep_logits();
            let (mut ids, mut doomed) = (Vec::new(), Vec::new());
            for (at, &(of, aborted)) in order.iter().enumerate() {
                let request = Request { request_id: at.to_string(), priority: 0, ..one_of_each[of].clone() };
                let id = session.submit(request).unwrap()[0];
                if aborted {
                    doomed.push(id)
                } else {
                    ids.push((id, of))
                }
                (0..apart + usize::from(at % 5 == 0)).for_each(|_| drop(session.step().unwrap()));
                if at % 3 == 0 && !doomed.is_empty() {
                    let id = doomed.remove(0);
                    cut_short += usize::from(session.take_output(id).unwrap().finish_reason.is_none());
                    session.abort(id).unwrap();
                }
            }
            while session.has_unfinished() {
                session.step().unwrap();
            }
            for (id, of) in ids {
                let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
                let logits: Vec<Vec<u32>> = session.take_logits(id).into_iter().map(bits).collect();
                let output = session.take_output(id).unwrap();
                let name = format!("seed {seed}, {schedule}, prompt {of}");
                assert_eq!(output.token_ids, single[of].tokens, "{name}");
                assert!(logits == single[of].logits, "{name}: other logits");
                let dropped = output.prune.as_ref().unwrap().is_some();
                hits += usize::from(dropped && output.num_cached_tokens > 0);
                preempted += output.num_preemptions;
            }
            session.close(&serde_json::json!({})).unwrap();
            let report = check_dir(&dir).unwrap();
            assert!(report.violation.is_none(), "{schedule}: {}", report.violation.unwrap());
        }
    }
    println!("{hits} hits of pruned prompts, {cut_short} aborted while they ran, {preempted} preemptions");
    assert!(hits > 40 && cut_short > 20 && preempted > 20);
}

#[test]
fn further_samples_of_a_pruned_prompt_compute_its_last_block_alone() {
    let way = learned("prune-cache-samples", 16);
    let prune = PruneOptions { all: Some(way), ..PruneOptions::default() };
    let base = options(&six_layers("prune-cache-samples"), Dtype::F32, Isa::detect());
    let prompt: Vec<u32> = (0..150).map(|i| i * 7 % 300).collect();
    let request = Request { ignore_eos: true, ..Request::new("n", prompt, 12) };
    let sampled = |n: u32, sample: u32| {
        let mut request = Request { n, ..request.clone() };
        (request.sampling.temperature, request.sampling.seed, request.sampling.sample) = (1.0, 5, sample);
        request
    };
    let single: Vec<Request> = (0..4).map(|sample| sampled(1, sample)).collect();
    let alone = alone(&EngineOptions { prune: prune.clone(), ..base.clone() }, &single);
    for enable_prefix_caching in [true, false] {
        let options = EngineOptions { prune: prune.clone(), enable_prefix_caching, ..base.clone() };
        let (found, events) = run(&options, &[sampled(4, 0)], 0);
        check("four samples at once", &single, &alone, &found);
        assert_eq!(events.cached >= 3 * 134, enable_prefix_caching, "{} tokens were cached", events.cached);
    }
}

#[test]
fn a_protected_word_survives_every_ratio_and_every_hit() {
    let ratios = ["0.01", "0.1", "0.3", "0.5", "0.7", "0.9"];
    let scorers = ["random", "first-last"];
    let ways: Vec<PruneChoice> = ratios
        .iter()
        .flat_map(|ratio| scorers.map(|scorer| (ratio, scorer)))
        .map(|(ratio, scorer)| {
            spec(&format!(
                r#"{{"layers": [0, 1, 3], "keep_ratio": {ratio}, "scorer": "{scorer}", "protect": [[77, 83]]}}"#
            ))
        })
        .collect();
    let prune = PruneOptions { others: ways.clone(), ..PruneOptions::default() };
    let base = options(&six_layers("prune-cache-secret"), Dtype::F32, Isa::detect());
    let options = EngineOptions { prune, enable_prefix_caching: true, ..base };
    let mut session = Session::open(&options).unwrap();
    let prompt = prompt(&mut Random(3), 260);
    // A dense request has put the whole prompt into the cache.
    for (i, way) in [None].into_iter().chain(ways.iter().map(Some)).enumerate() {
        for again in 0..2 {
            let prune = way.map_or(RequestPrune::Never, |way| RequestPrune::Choice(way.clone()));
            let request = Request::new(format!("{i}.{again}"), prompt.clone(), 2);
            let ran = serve(&mut session, Request { ignore_eos: true, prune, ..request });
            assert_eq!(ran.cached > 0, again > 0);
            let Some(kept) = ran.kept else { continue };
            assert_eq!(kept.kept.len(), 3);
            for (layer, positions) in kept.kept {
                let secret = (77..83).all(|position| positions.binary_search(&position).is_ok());
                assert!(secret, "way {i}, run {again}: behind layer {layer} part of the word is lost");
            }
        }
    }
}
