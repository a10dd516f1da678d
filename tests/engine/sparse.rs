//! Sparse attention over latents: a small model with random weights gives the same tokens and bits under every schedule.

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::model::tiers::LocalPool;
use pagedraft::session::{
    DeviceRef, DraftRef, EngineOptions, IndexerKvDtype, KvTiers, ModelRef, Request, Session,
};
use pagedraft::spec_decode::Scorer;

use crate::models::{deepseek, glm};
use crate::requests::{options, requests, speculation};
use crate::schedule::{Events, alone, check, drafts_change_nothing, repetitive, run, schedules};

/// Asks every request that may not hit the prefix cache what its indexers chose.
fn ask(options: &EngineOptions, requests: &[Request]) -> (EngineOptions, Vec<Request>) {
    let mut requests = requests.to_vec();
    for (i, request) in requests.iter_mut().enumerate() {
        request.return_indexer_topk = !options.enable_prefix_caching || i % 2 == 1;
    }
    (EngineOptions { return_indexer_topk: true, ..options.clone() }, requests)
}

/// Runs a model under every schedule; the token rows whose choices were compared, and the rows whose logits were.
fn matrix(model: &ModelRef, dtype: Dtype, seed: u64, kv: IndexerKvDtype, events: &mut Events) -> [usize; 2] {
    println!("seed {seed}, {model}, {dtype:?}, {kv:?}");
    let base = EngineOptions { indexer_kv_dtype: kv, ..options(model, dtype, Isa::detect()) };
    let (base, requests) = ask(&base, &requests(seed, 12, 300, 200));
    let alone = alone(&base, &requests);
    let mut rows = [0, 0];
    let mut compare = |name: &str, apart: usize, options: &EngineOptions| {
        let (options, requests) = ask(options, &requests);
        let (found, happened) = run(&options, &requests, apart);
        check(&format!("{model}, seed {seed}, {dtype:?}: {name}"), &requests, &alone, &found);
        events.add(happened);
        for output in &found {
            rows[0] += output.chosen.as_ref().map_or(0, |chosen| chosen.shape()[0]);
            rows[1] += output.logits.len();
        }
    };
    for (name, apart, options) in schedules(&base, 17) {
        compare(name, apart, &options);
    }
    for (name, frames, num_blocks, apart) in
        [("tiers, passes", 3, 256, 1), ("restored from a tier", 9, 20, 12)]
    {
        let local_pool = Some(LocalPool { bytes: 64 << 20, file: None });
        let kv_tiers = KvTiers { hbm_blocks: Some(frames), local_pool, ..KvTiers::default() };
        let (num_blocks, enable_prefix_caching) = (Some(num_blocks), apart > 1);
        compare(name, apart, &EngineOptions { kv_tiers, num_blocks, enable_prefix_caching, ..base.clone() });
    }
    for (scorer, threads) in [(Scorer::Mqa, 1), (Scorer::BatchExpansion, 2)] {
        let speculation = speculation(DraftRef::Model(model.clone()), 3, scorer);
        let options = EngineOptions { speculation, threads, prefill_chunk: Some(33), ..base.clone() };
        compare(&format!("drafts, {scorer}"), 1, &options);
    }
    rows
}

#[test]
#[ignore = "a campaign of minutes"]
fn no_choice_and_no_logit_of_100_000_rows_depends_on_the_schedule() {
    let (mut events, mut rows, mut seed) = (Events::default(), [0, 0], 20_261_130);
    let models = [deepseek("sparse-matrix-deepseek"), glm("sparse-matrix-glm")];
    let kinds = [IndexerKvDtype::Auto, IndexerKvDtype::Fp8, IndexerKvDtype::Fp8Hadamard];
    while rows[0] < 100_000 || seed < 20_261_136 {
        let (model, kv) = (&models[seed as usize % 2], kinds[seed as usize % 3]);
        let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][seed as usize / 2 % 3];
        let [chosen, logits] = matrix(model, dtype, seed, kv, &mut events);
        rows = [rows[0] + chosen, rows[1] + logits];
        seed += 1;
    }
    events.check();
    assert!(events.accepted > 0, "no draft was accepted");
    assert!(events.fetched > 0 && events.restored > 0, "nothing came back from a tier");
    println!(
        "{} rows of chosen keys and {} rows of logits, none differs; {} preemptions, {} cached tokens, {} drafts accepted, {} cells \
         fetched from a tier, {} blocks restored from one",
        rows[0], rows[1], events.preempted, events.cached, events.accepted, events.fetched, events.restored
    );
}

#[test]
fn sparse_models_give_the_same_bits_under_every_schedule() {
    let mut events = Events::default();
    let glm = glm("sparse-glm");
    matrix(&deepseek("sparse-deepseek"), Dtype::F32, 3, IndexerKvDtype::Auto, &mut events);
    matrix(&glm, Dtype::Bf16, 6, IndexerKvDtype::Auto, &mut events);
    matrix(&glm, Dtype::F32, 5, IndexerKvDtype::Fp8Hadamard, &mut events);
    events.check();
    assert!(events.fetched > 0 && events.restored > 0, "nothing came back from a tier");
}

#[test]
fn drafts_scorers_and_graphs_change_no_bit_of_a_sparse_model() {
    let model = glm("sparse-drafts");
    let base = options(&model, Dtype::F32, Isa::detect());
    let drafts = [DraftRef::Ngram, DraftRef::Model(model.clone())];
    drafts_change_nothing(&base, &drafts, 11, &repetitive(9, 8, 20));
}

#[test]
fn the_number_of_keys_that_is_asked_for_is_the_number_that_is_attended_to() {
    let model = deepseek("sparse-topk");
    let base = options(&model, Dtype::F32, Isa::detect());
    let prompt: Vec<u32> = (0..100).map(|i| i * 7 % 300).collect();
    let request = Request { ignore_eos: true, ..Request::new("one", prompt, 8) };
    let logits = |index_topk| {
        let options = EngineOptions { index_topk, ..base.clone() };
        run(&options, std::slice::from_ref(&request), 0).0.remove(0).logits
    };
    let (own, same, dense, denser) = (logits(None), logits(Some(24)), logits(Some(512)), logits(Some(1024)));
    assert!(own == same && dense == denser && own != dense);
    let dense = ModelRef::Builtin("target".into());
    for (model, keys, word) in
        [(&model, 0, "from 1 to 1024"), (&model, 1025, "1024 positions"), (&dense, 5, "no sparse attention")]
    {
        let options = EngineOptions { model: model.clone(), index_topk: Some(keys), ..base.clone() };
        let message = format!("{:#}", Session::open(&options).err().unwrap());
        assert!(message.contains("--index-topk") && message.contains(word), "{message}");
    }
}

#[test]
fn a_gpu_refuses_the_model_by_name_and_auto_takes_the_cpu() {
    let base = options(&deepseek("sparse-gpu"), Dtype::Bf16, Isa::detect());
    let session = Session::open(&EngineOptions { device: DeviceRef::Auto, ..base.clone() }).unwrap();
    assert!(session.info().no_gpu.is_some());
    let error = Session::open(&EngineOptions { device: DeviceRef::Cuda, ..base }).err().unwrap();
    let message = format!("{error:#}");
    // Without a GPU that is what is said first.
    assert!(message.contains("there is no GPU") || message.contains("sparse attention"), "{message}");
}
