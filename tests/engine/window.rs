//! Sliding windows: a real model whose layers keep KV of different lengths, under every schedule, to the bit and to the block.

use std::path::{Path, PathBuf};

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::session::{DraftRef, EngineOptions, LoadFormat, ModelRef, Request, Session};

use crate::models::windowed;
use crate::requests::{options, requests};
use crate::schedule::{Events, alone, drafts_change_nothing, every_schedule, repetitive, run, schedules};

const WINDOW: u32 = 24;

#[test]
fn windowed_models_give_the_same_bits_under_every_schedule() {
    for (name, architecture) in [("window-mistral", "Mistral"), ("window-qwen3", "Qwen3")] {
        let model = windowed(name, architecture, WINDOW);
        let mut events = Events::default();
        for (dtype, seed) in [(Dtype::F32, 3), (Dtype::Bf16, 4)] {
            let base = options(&model, dtype, Isa::detect());
            let requests = requests(seed, 12, 300, 120);
            let alone = alone(&base, &requests);
            let name = format!("{name}, seed {seed}, {dtype:?}");
            events.add(every_schedule(&name, &base, 10, &requests, &alone));
        }
        events.check();
    }
}

#[test]
fn drafts_scorers_and_graphs_change_no_bit_of_a_windowed_model() {
    let model = windowed("window-drafts", "Qwen3", WINDOW);
    let base = options(&model, Dtype::F32, Isa::detect());
    drafts_change_nothing(&base, &[DraftRef::Ngram], 11, &repetitive(9, 8, 20));
}

#[test]
fn a_draft_model_that_is_the_windowed_target_itself_is_always_right() {
    for (name, architecture) in [("window-draft-m", "Mistral"), ("window-draft-q", "Qwen3")] {
        let model = windowed(name, architecture, WINDOW);
        let base = options(&model, Dtype::F32, Isa::detect());
        // Prompts and outputs far beyond the window of 24 tokens.
        let mut requests = requests(11, 8, 300, 120);
        for request in &mut requests {
            request.max_tokens += 40;
            // Drafts are chosen by the model's own logits, and no request limits them.
            request.sampling.changes = None;
            request.num_speculative_tokens = None;
        }
        let events = drafts_change_nothing(&base, &[DraftRef::Model(model)], 11, &requests);
        assert!(events.drafted > 1500, "{} drafts", events.drafted);
        assert_eq!(
            events.accepted, events.drafted,
            "{name}: the draft model sees other keys than the target"
        );
    }
}

#[test]
fn a_request_holds_to_the_block_what_its_full_and_its_windowed_layers_need() {
    for (name, architecture, full_share) in [("window-held-m", "Mistral", 0), ("window-held-q", "Qwen3", 2)] {
        let options = EngineOptions {
            max_num_batched_tokens: 64,
            enable_prefix_caching: false,
            ..options(&windowed(name, architecture, WINDOW), Dtype::F32, Isa::detect())
        };
        let mut session = Session::open(&options).unwrap();
        let all = session.info().block_bytes as u64;
        let prompt: Vec<u32> = (0..WINDOW * 3).map(|i| i * 7 % 300).collect();
        let request = Request { ignore_eos: true, ..Request::new("one", prompt, WINDOW * 2) };
        session.submit(request).unwrap();
        let mut computed = 0u32;
        while session.has_unfinished() {
            let step = session.step().unwrap();
            computed += (step.prefill_tokens + step.decode_rows) as u32;
            if !session.has_unfinished() {
                break;
            }
            // The next query is at position `computed`, and sees keys from `computed + 1 - WINDOW` on.
            let first = (computed + 1).saturating_sub(WINDOW) / 16;
            let (held, windowed) = (computed.div_ceil(16), computed.div_ceil(16) - first);
            let want =
                (all * full_share * u64::from(held) + all * (4 - full_share) * u64::from(windowed)) / 4;
            assert_eq!(step.pool.bytes_used, want, "{architecture}, {computed} tokens");
        }
        assert!(computed >= WINDOW * 4);
    }
}

#[test]
fn admission_asks_only_for_the_window_of_a_model_whose_every_layer_has_one() {
    // Sixteen blocks hold the window and a piece of 64 tokens of two requests at least, but not one whole prompt of 400.
    let options = EngineOptions {
        num_blocks: Some(16),
        max_num_batched_tokens: 64,
        ..options(&windowed("window-admission", "Mistral", WINDOW), Dtype::F32, Isa::detect())
    };
    let mut session = Session::open(&options).unwrap();
    for name in ["a", "b"] {
        let prompt: Vec<u32> = (0..400).map(|i| i * 11 % 300).collect();
        session.submit(Request { ignore_eos: true, ..Request::new(name, prompt, 30) }).unwrap();
    }
    let mut together = 0;
    while session.has_unfinished() {
        together = together.max(session.step().unwrap().rows);
    }
    assert_eq!(together, 2, "the two ran one after the other");
}

#[test]
fn the_reference_implementations_tokens_come_out_under_every_schedule() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/window");
    if !shared.is_dir() {
        println!("skipped: the reference outputs of windowed models are not here");
        return;
    }
    for name in ["mistral", "qwen3-alternating"] {
        let dir: PathBuf = shared.join(name);
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
        let ids = |value: &serde_json::Value| -> Vec<u32> {
            value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let cases = expected["cases"].as_object().unwrap();
        let requests: Vec<Request> = cases
            .iter()
            .map(|(case, of)| Request {
                ignore_eos: true,
                ..Request::new(case.clone(), ids(&of["prompt_token_ids"]), 40)
            })
            .collect();
        let base = EngineOptions {
            load_format: LoadFormat::Auto,
            ..options(&ModelRef::Directory(dir), Dtype::F32, Isa::detect())
        };
        for (schedule, apart, options) in schedules(&base, 24) {
            let (found, _) = run(&options, &requests, apart);
            for ((case, of), found) in cases.iter().zip(&found) {
                assert_eq!(found.tokens, ids(&of["token_ids"]), "{name}, {case}: {schedule}");
            }
        }
    }
}
