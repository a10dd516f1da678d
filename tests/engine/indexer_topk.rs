//! `return_indexer_topk`: the keys that indexers chose are the same under every schedule, and those of the original
//! implementation.

use std::path::{Path, PathBuf};

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::session::{DraftRef, EngineOptions, LoadFormat, ModelRef, Request, RequestOutput, Session};
use safetensors::SafeTensors;

use crate::models::glm;
use crate::requests::{options, requests};
use crate::schedule::{drafting, repetitive, schedules};

/// Serves the requests, `apart` steps between two arrivals.
fn serve(options: &EngineOptions, requests: &[Request], apart: usize) -> Vec<RequestOutput> {
    let mut session = Session::open(options).unwrap();
    let mut ids = Vec::new();
    for request in requests {
        ids.extend(session.submit(request.clone()).unwrap());
        (0..apart).for_each(|_| drop(session.step().unwrap()));
    }
    while session.has_unfinished() {
        session.step().unwrap();
    }
    ids.into_iter().map(|id| session.take_output(id).unwrap()).collect()
}

fn asking(requests: Vec<Request>) -> Vec<Request> {
    requests.into_iter().map(|request| Request { return_indexer_topk: true, ..request }).collect()
}

fn check(name: &str, expected: &[RequestOutput], found: &[RequestOutput]) {
    assert_eq!(expected.len(), found.len());
    for (a, b) in expected.iter().zip(found) {
        let (x, y) = (a.indexer_topk.as_ref().unwrap(), b.indexer_topk.as_ref().unwrap());
        assert_eq!(x.shape(), y.shape(), "{name}: request {}", a.request_id);
        assert_eq!(a.token_ids, b.token_ids, "{name}: request {}", a.request_id);
        assert_eq!(x.shape()[0], a.prompt_token_ids.len() + a.token_ids.len() - 1);
        let at = x.positions().iter().zip(y.positions()).position(|(x, y)| x != y);
        assert!(at.is_none(), "{name}: request {}: entry {at:?} differs", a.request_id);
    }
}

fn alone(base: &EngineOptions, requests: &[Request]) -> Vec<RequestOutput> {
    requests.iter().flat_map(|request| serve(base, std::slice::from_ref(request), 0)).collect()
}

#[test]
fn selections_are_the_same_under_every_schedule() {
    let base = options(&glm("topk-schedules"), Dtype::F32, Isa::detect());
    let base = EngineOptions { return_indexer_topk: true, ..base };
    let mut requests = asking(requests(11, 8, 300, 120));
    // Samples of one prompt share no KV where selections are asked for.
    requests[1].n = 2;
    let alone = alone(&base, &requests);
    assert!(alone.iter().all(|output| output.indexer_topk.as_ref().unwrap().shape()[1..] == [2, 24]));
    let mut preempted = 0;
    for (name, apart, options) in schedules(&base, 14) {
        let found = serve(&options, &requests, apart);
        check(name, &alone, &found);
        preempted += found.iter().map(|output| output.num_preemptions).sum::<u32>();
        assert!(found.iter().all(|output| output.num_cached_tokens == 0), "{name}");
    }
    assert!(preempted > 0, "the tight pools preempted nobody");
}

#[test]
fn rejected_drafts_are_left_out_under_both_scorers() {
    let model = glm("topk-drafts");
    let base = options(&model, Dtype::F32, Isa::detect());
    let base = EngineOptions { return_indexer_topk: true, ..base };
    let requests = asking(repetitive(9, 8, 20));
    let alone = alone(&EngineOptions { enforce_eager: true, ..base.clone() }, &requests);
    let (mut drafted, mut accepted) = (0, 0);
    for (name, options) in drafting(&base, &DraftRef::Ngram, 11) {
        let found = serve(&options, &requests, 1);
        check(&name, &alone, &found);
        drafted += found.iter().map(|output| output.num_drafts).sum::<u32>();
        accepted += found.iter().map(|output| output.num_accepted).sum::<u32>();
    }
    assert!(accepted > 0 && accepted < drafted, "{accepted} of {drafted} drafts were accepted");
}

/// A directory of the reference files, which are not part of the repository.
fn fixture(name: &str) -> Option<PathBuf> {
    let roots = ["../shared/reference", "../../shared/reference"];
    let mut dirs = roots.iter().map(|root| Path::new(env!("CARGO_MANIFEST_DIR")).join(root).join(name));
    let found = dirs.find(|dir| dir.exists());
    if found.is_none() {
        println!("skipped: no reference checkpoint {name}");
    }
    found
}

#[test]
fn selections_are_those_of_deepseek() {
    for (name, layers, k) in [("dsa/plain", 2, 32), ("dsa/yarn-groups", 3, 64)] {
        let Some(dir) = fixture(name) else { continue };
        let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let longs = |name: &str| -> Vec<u32> {
            let data = expected.tensor(name).unwrap().data();
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
        };
        let ints = |name: String| -> Vec<i32> {
            let data = expected.tensor(&name).unwrap().data();
            data.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let (prompt, next) = (longs("input_ids"), longs("sparse.next_tokens"));
        let model = ModelRef::Directory(dir.clone());
        let base = options(&model, Dtype::F32, Isa::detect());
        let options = EngineOptions {
            load_format: LoadFormat::Auto,
            max_model_len: Some(256),
            return_indexer_topk: true,
            ..base
        };
        let request = Request::new("golden", prompt.clone(), next.len() as u32);
        let request = Request { ignore_eos: true, return_indexer_topk: true, ..request };
        let output = serve(&options, &[request], 0).remove(0);
        assert_eq!(output.token_ids, next, "{name}");
        let topk = output.indexer_topk.unwrap();
        assert_eq!(topk.shape(), [prompt.len() + next.len() - 1, layers, k], "{name}");
        let golden: Vec<Vec<i32>> = (0..layers)
            .map(|layer| {
                let of = |part: &str| ints(format!("sparse.layer{layer}.{part}_topk"));
                [of("prefill"), of("decode")].concat()
            })
            .collect();
        for (i, found) in topk.positions().chunks_exact(k).enumerate() {
            let (token, layer) = (i / layers, i % layers);
            // The padding of the reference may lie before or behind the positions.
            let set = |list: &[i32]| list.iter().copied().filter(|&p| p >= 0).collect::<Vec<_>>();
            let expected = &golden[layer][token * k..(token + 1) * k];
            assert_eq!(set(found), set(expected), "{name}: layer {layer}, token {token}");
        }
    }
}

#[test]
fn a_dense_model_and_an_engine_that_was_not_opened_for_it_refuse() {
    let dense = options(&ModelRef::Builtin("target".into()), Dtype::F32, Isa::detect());
    let asked = Session::open(&EngineOptions { return_indexer_topk: true, ..dense });
    let message = format!("{:#}", asked.err().unwrap());
    assert!(message.contains("--return-indexer-topk") && message.contains("builtin:target"), "{message}");
    let mut session = Session::open(&options(&glm("topk-refused"), Dtype::F32, Isa::detect())).unwrap();
    let request = Request { return_indexer_topk: true, ..Request::new("one", vec![1, 2], 4) };
    let message = format!("{:#}", session.submit(request).unwrap_err());
    assert!(message.contains("not opened for that"), "{message}");
}
