//! Pruned prompts of models with sparse attention: against a slow model in f64, and under every schedule to the bit.

use std::path::Path;

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::prune::PruneChoice;
use pagedraft::session::{
    DraftRef, EngineOptions, KvTiers, ModelRef, PruneOptions, Request, RequestPrune, Session,
    SpeculationOptions, TraceOptions,
};
use pagedraft::workloads::run::LineFormat;
use pagedraft::workloads::trace::{TraceTables, check_dir};

use crate::models::{deep, deepseek, glm, without_experts};
use crate::pruned::{SlowSparse, SparsePass, Thinned, learned, some_pruned};
use crate::requests::{Random, options, requests, spec};
use crate::schedule::{Events, alone, check, drafts_change_nothing, repetitive, run, schedules};

/// An engine that can prune prompts in these ways.
fn engine(model: &ModelRef, ways: &[PruneChoice]) -> EngineOptions {
    let prune = PruneOptions { others: ways.to_vec(), ..PruneOptions::default() };
    EngineOptions { prune, ..options(model, Dtype::F32, Isa::detect()) }
}

fn prompt(random: &mut Random, len: usize) -> Vec<u32> {
    (0..len).map(|_| random.below(300) as u32).collect()
}

/// Ways for a model of which layers 0 and 1 may be cut off.
fn ways() -> [PruneChoice; 4] {
    [
        spec(r#"{"layers": [0, 1], "keep_ratio": [0.7, 0.5], "scorer": "indexer", "min_tail_tokens": 3}"#),
        spec(
            r#"{"layers": [0], "keep_ratio": 0.5, "scorer": "indexer", "positions": "compact", "protect": [[20, 30]]}"#,
        ),
        spec(
            r#"{"layers": [0, 1], "keep_ratio": 0.6, "scorer": "random", "positions": "compact", "min_tail_tokens": 2}"#,
        ),
        spec(r#"{"layers": [1], "keep_ratio": 0.3, "scorer": "first-last", "mode": "prompt"}"#),
    ]
}

#[test]
fn a_slow_model_keeps_chooses_and_generates_the_same_and_keys_keep_their_positions() {
    let model = without_experts("prune-sparse-slow");
    let ModelRef::Directory(dir) = &model else { unreachable!("the models of these tests are directories") };
    let slow = SlowSparse::new(dir, 7);
    println!("seed 51");
    let mut random = Random(51);
    for (positions, tail) in [("original", 16), ("compact", 5)] {
        let way = spec(&format!(
            r#"{{"layers": [0, 2, 3], "keep_ratio": [0.8, 0.6, 0.7], "scorer": "indexer", "positions": "{positions}",
            "min_tail_tokens": {tail}, "min_tail_ratio": 0.0}}"#
        ));
        let base = EngineOptions { return_indexer_topk: true, ..engine(&model, std::slice::from_ref(&way)) };
        for len in [40, 150] {
            let prompt = prompt(&mut random, len);
            let mut known: Option<(Vec<u32>, SparsePass)> = None;
            for chunk in [None, Some(1), Some(7), Some(64)] {
                let mut session =
                    Session::open(&EngineOptions { prefill_chunk: chunk, ..base.clone() }).unwrap();
                session.keep_logits();
                let request = Request {
                    ignore_eos: true,
                    return_indexer_topk: true,
                    prune: RequestPrune::Choice(way.clone()),
                    ..Request::new("r", prompt.clone(), 8)
                };
                let id = session.submit(request).unwrap()[0];
                while session.has_unfinished() {
                    session.step().unwrap();
                }
                let logits = session.take_logits(id);
                let output = session.take_output(id).unwrap();
                assert_eq!(output.error, None);
                let kept = output.prune.unwrap().unwrap();
                // Of a share of n tokens floor(n share) stay.
                let counts: Vec<(usize, usize)> =
                    kept.keep_k.iter().map(|(&layer, &count)| (usize::from(layer), count as usize)).collect();
                let mut n = len;
                for ((_, count), share) in counts.iter().zip([0.8, 0.6, 0.7]) {
                    n = (n as f64 * share).floor() as usize;
                    assert_eq!(*count, n.max(4 + tail));
                    n = *count;
                }
                let tokens: Vec<u32> = prompt.iter().chain(&output.token_ids).copied().collect();
                let tokens = &tokens[..tokens.len() - 1];
                let name = format!("{positions}, {len} tokens, chunks of {chunk:?}");
                let thinned =
                    Thinned { counts: &counts, compact: positions == "compact", ends: (4, tail as u32) };
                let (same, pass) =
                    known.get_or_insert_with(|| (tokens.to_vec(), slow.run(tokens, len, &thinned)));
                assert_eq!(same, tokens, "{name}");
                assert_eq!(kept.kept, pass.kept, "{name}");
                let chosen = output.indexer_topk.unwrap();
                let [rows, layers, k] = chosen.shape();
                assert_eq!((rows, layers, k), (tokens.len(), 5, 24), "{name}");
                for (i, found) in chosen.positions().chunks_exact(k).enumerate() {
                    let (position, layer) = (i / layers, i % layers);
                    let found: Vec<i32> = found.iter().copied().filter(|&key| key >= 0).collect();
                    assert_eq!(
                        found, pass.chosen[layer][position],
                        "{name}: layer {layer}, token {position}"
                    );
                }
                for (i, (own, want)) in logits.iter().zip(&pass.logits).enumerate() {
                    let most = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                    let off =
                        own.iter().zip(want).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
                    assert!(off <= 1e-4 * most, "{name}: the logits of token {i} are off by {}", off / most);
                }
            }
        }
    }
}

#[test]
fn pruned_and_dense_requests_of_sparse_models_give_the_same_bits_under_every_schedule() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prune-sparse-trace");
    let mut events = Events::default();
    // The second layer of the other model takes the keys that the first one's indexer chooses, so that it is cut behind it alone.
    let shared = [
        spec(r#"{"layers": [1], "keep_ratio": 0.6, "scorer": "indexer", "min_tail_tokens": 3}"#),
        spec(r#"{"layers": [1], "keep_ratio": 0.5, "scorer": "random", "positions": "compact"}"#),
    ];
    let models = [
        (deepseek("prune-sparse-deepseek"), Dtype::F32, ways().to_vec()),
        (glm("prune-sparse-glm"), Dtype::Bf16, shared.to_vec()),
    ];
    for (seed, (model, dtype, ways)) in (53..).zip(models) {
        println!("seed {seed}");
        let base = EngineOptions { dtype: Some(dtype), ..engine(&model, &ways) };
        let mut requests = requests(seed, 10, 300, 150);
        some_pruned(&mut requests, &ways);
        let alone = alone(&base, &requests);
        for (schedule, apart, options) in schedules(&base, 20) {
            let _ = std::fs::remove_dir_all(&dir);
            let trace =
                TraceOptions { dir: dir.clone(), format: LineFormat::Jsonl, tables: TraceTables::Full };
            // Traced and untraced runs give the same.
            let options = EngineOptions { trace: (apart == 1).then_some(trace), ..options };
            let (found, happened) = run(&options, &requests, apart);
            check(&format!("{model}: {schedule}"), &requests, &alone, &found);
            events.add(happened);
            if options.trace.is_some() {
                let report = check_dir(&dir).unwrap();
                assert!(report.violation.is_none(), "{schedule}: {}", report.violation.unwrap());
                assert!(report.prune_records > 0);
            }
        }
    }
    events.check();
}

#[test]
fn drafts_both_scorers_and_graphs_change_no_bit_of_pruned_requests_of_a_sparse_model() {
    let ways: Vec<PruneChoice> = ways().into_iter().chain([learned("prune-sparse-drafts", 3)]).collect();
    let base = engine(&without_experts("prune-sparse-drafts"), &ways);
    let mut requests = repetitive(57, 8, 12);
    some_pruned(&mut requests, &ways);
    drafts_change_nothing(&base, &[DraftRef::Ngram], 18, &requests);
}

#[test]
fn a_ratio_of_1_gives_the_bits_of_a_sparse_model_that_is_not_cut() {
    let model = deepseek("prune-sparse-ratio-1");
    let base = options(&model, Dtype::F32, Isa::detect());
    let mut requests = requests(59, 6, 300, 120);
    let whole = alone(&base, &requests);
    let all = spec(r#"{"layers": [0, 1], "keep_ratio": 1.0, "scorer": "indexer"}"#);
    some_pruned(&mut requests, std::slice::from_ref(&all));
    let prune = PruneOptions { all: Some(all), ..PruneOptions::default() };
    check("all kept", &requests, &whole, &run(&EngineOptions { prune, ..base }, &requests, 0).0);
}

#[test]
fn a_repeated_prompt_of_a_sparse_model_computes_at_most_a_block_and_holds_the_bytes_that_it_says() {
    let ways = ways();
    let base = engine(&deepseek("prune-sparse-cache"), &ways);
    println!("seed 61");
    let prompt = prompt(&mut Random(61), 203);
    for way in ways {
        let mut session =
            Session::open(&EngineOptions { enable_prefix_caching: true, ..base.clone() }).unwrap();
        session.keep_logits();
        let mut runs = Vec::new();
        for name in ["first", "second"] {
            let request = Request::new(name, prompt.clone(), 5);
            let prune = RequestPrune::Choice(way.clone());
            let id = session.submit(Request { ignore_eos: true, prune, ..request }).unwrap()[0];
            let (mut computed, mut held) = (0, None);
            while session.has_unfinished() {
                let step = session.step().unwrap();
                computed += step.prefill_tokens;
                if step.emitted.iter().any(|news| !news.tokens.is_empty()) {
                    held.get_or_insert(step.pool.bytes_used);
                }
            }
            let logits = session.take_logits(id);
            let output = session.take_output(id).unwrap();
            runs.push((output.token_ids, logits, output.prune.unwrap().unwrap(), computed, held.unwrap()));
        }
        let [first, second] = &runs[..] else { unreachable!("there are two runs") };
        assert_eq!((&first.0, &first.2), (&second.0, &second.2));
        assert!(first.1 == second.1, "the second gave other bits");
        // What is cached can be shared if the last block's tokens are all kept.
        if way == spec(r#"{"layers": [1], "keep_ratio": 0.3, "scorer": "first-last", "mode": "prompt"}"#) {
            assert!(second.3 <= 16, "{} tokens were computed again", second.3);
        }
        assert_eq!(first.4, first.2.kv_bytes);
        assert!(first.2.kv_bytes < first.2.kv_bytes_dense);
    }
}

#[test]
fn a_dense_draft_model_scores_the_prompts_of_a_sparse_model_as_those_of_a_dense_one() {
    let way = spec(r#"{"layers": [0], "keep_ratio": 0.5, "scorer": "draft", "min_tail_tokens": 3}"#);
    let prompt = prompt(&mut Random(63), 170);
    let kept = |model: ModelRef| {
        let draft = Some(DraftRef::Model(deep("prune-sparse-scoring-draft", 2)));
        let speculation = SpeculationOptions { draft, ..SpeculationOptions::default() };
        let options = EngineOptions { speculation, ..engine(&model, std::slice::from_ref(&way)) };
        let mut session = Session::open(&options).unwrap();
        let prune = RequestPrune::Choice(way.clone());
        let id = session.submit(Request { prune, ..Request::new("r", prompt.clone(), 3) }).unwrap()[0];
        while session.has_unfinished() {
            session.step().unwrap();
        }
        session.take_output(id).unwrap().prune.unwrap().unwrap().kept
    };
    let sparse = kept(deepseek("prune-sparse-scoring"));
    assert!(sparse == kept(deep("prune-sparse-scoring-dense", 3)) && sparse[&0].len() == 85);
}

#[test]
fn what_a_sparse_model_cannot_do_is_refused_with_a_reason() {
    let name = "prune-sparse-refused";
    let of = |scorer: &str| {
        spec(&format!(
            r#"{{"layers": [0], "keep_ratio": 0.5, "scorer": "{scorer}", "modules": "/nowhere/modules.safetensors"}}"#
        ))
    };
    let mut base = engine(&deepseek(name), &[of("indexer")]);
    let session = Session::open(&base).unwrap();
    for (scorer, says) in [
        ("last-window", "scorer last-window follows the attention"),
        ("oracle", "scorer oracle follows the attention"),
        ("draft", "--draft"),
        ("learned", "/nowhere/modules.safetensors"),
    ] {
        let request = Request::new("r", vec![1, 2, 3], 2);
        let error =
            session.check(&Request { prune: RequestPrune::Choice(of(scorer)), ..request }).unwrap_err();
        assert!(format!("{error:#}").contains(says), "{error:#}");
    }
    base.kv_tiers = KvTiers { hbm_blocks: Some(8), ..KvTiers::default() };
    let error = format!("{:#}", Session::open(&base).map(|_| ()).unwrap_err());
    assert!(error.contains("leave out --kv-hbm-blocks"), "{error}");
    let glm = engine(&glm("prune-sparse-refused-glm"), &[of("indexer")]);
    let error = format!("{:#}", Session::open(&glm).map(|_| ()).unwrap_err());
    assert!(error.contains("behind layer 0") && error.contains("name layers of [1]"), "{error}");
}
