//! Answers are what the engine gives without a server.

use pagedraft::model::tokenizer::Tokenizer;
use pagedraft::session::{DraftLength, DraftRef, ModelRef, Request, RequestOutput, SpeculationOptions};
use pagedraft::spec_decode::sampling::{LogitChanges, SamplingParams};
use serde_json::{Value, json};

use crate::client::{get, post};
use crate::place::{NAME, Place, Setup, generate};

const PROMPT: &str = "The king said to the";

pub fn tokenizer() -> Tokenizer {
    pagedraft::session::tokenizer(&ModelRef::Builtin("target".into())).unwrap().unwrap()
}

fn ids(text: &str) -> Vec<u32> {
    tokenizer().encode(text, true).unwrap()
}

fn tokens(choice: &Value) -> Vec<u32> {
    serde_json::from_value(choice["token_ids"].clone()).unwrap()
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn said(outputs: &[RequestOutput]) -> Vec<(Vec<u32>, String)> {
    outputs.iter().map(|output| (output.token_ids.clone(), output.text.clone())).collect()
}

fn told(answer: &Value) -> Vec<(Vec<u32>, String)> {
    let choices = answer["choices"].as_array().unwrap();
    let text = |choice: &Value| choice["text"].as_str().unwrap().to_owned();
    choices.iter().map(|choice| (tokens(choice), text(choice))).collect()
}

#[test]
fn completions_are_token_for_token_what_generate_gives() {
    let sampled = SamplingParams { temperature: 0.9, top_p: 0.9, seed: 5, ..SamplingParams::default() };
    let greedy = Request::new("a", ids(PROMPT), 40);
    let drawn = Request { n: 3, sampling: sampled, ..Request::new("b", ids("Once upon a time"), 40) };
    let expected = generate(vec![greedy, drawn]);
    let place = Place::new();
    let body = json!({"model": NAME, "prompt": PROMPT, "max_tokens": 40, "temperature": 0, "return_token_ids": true});
    let greedy = post(place.address, "/v1/completions", &body).answer();
    assert_eq!(told(&greedy), said(&expected[0]));
    assert_eq!(greedy["choices"][0]["prompt_token_ids"], json!(ids(PROMPT)));
    assert_eq!(greedy["object"], "text_completion");
    let body = json!({"prompt": ids("Once upon a time"), "max_tokens": 40, "n": 3, "temperature": 0.9, "top_p": 0.9, "seed": 5,
                      "return_token_ids": true});
    let drawn = post(place.address, "/v1/completions", &body).answer();
    assert_eq!(told(&drawn), said(&expected[1]));
}

#[test]
fn penalties_biases_and_a_least_length_are_handed_on() {
    let changes = LogitChanges {
        bias: vec![(300, 4.0), (301, -4.0)],
        presence: 0.5,
        frequency: 0.25,
        repetition: 1.2,
        min_tokens: 9,
        ..LogitChanges::default()
    };
    let sampling = SamplingParams { changes: Some(Box::new(changes)), ..SamplingParams::greedy() };
    let changed = Request { sampling, ..Request::new("a", ids(PROMPT), 40) };
    let expected = generate(vec![changed, Request::new("b", ids(PROMPT), 40)]);
    let place = Place::new();
    let body = json!({"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "logit_bias": {"300": 4, "301": -4}, "presence_penalty": 0.5,
                      "frequency_penalty": 0.25, "repetition_penalty": 1.2, "min_tokens": 9, "return_token_ids": true});
    let answer = post(place.address, "/v1/completions", &body).answer();
    assert_eq!(told(&answer), said(&expected[0]));
    assert_ne!(said(&expected[0]), said(&expected[1]));
}

#[test]
fn a_request_says_how_many_drafts_it_may_have_at_most_and_gets_the_same_tokens() {
    let expected = generate(vec![Request::new("a", ids(PROMPT), 60)]);
    let (draft, length) = (Some(DraftRef::Model(ModelRef::Builtin("draft".into()))), DraftLength::Fixed(4));
    let speculation = SpeculationOptions { draft, length, ..SpeculationOptions::default() };
    let place = Place::with(Setup { speculation, ..Setup::default() });
    for (most, positions) in [(Some(0), 0), (Some(1), 1), (Some(3), 3), (Some(9), 4), (None, 4)] {
        let before = place.engine.stats().speculation.drafted_by_position;
        let body = json!({"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "return_token_ids": true, "num_speculative_tokens": most});
        let answer = post(place.address, "/v1/completions", &body).answer();
        assert_eq!(told(&answer), said(&expected[0]), "{most:?}");
        let stats = place.wait_for("it has ended", |stats| stats.running == 0);
        let drafted = stats.speculation.drafted_by_position.iter().enumerate();
        let grew = drafted.filter(|(i, drafts)| **drafts > before.get(*i).copied().unwrap_or(0)).count();
        assert_eq!(grew, positions, "{most:?}: {:?}", stats.speculation);
    }
}

#[test]
fn a_list_of_prompts_is_answered_in_its_order() {
    let place = Place::new();
    let body = json!({"prompt": [PROMPT, "Once upon a time"], "max_tokens": 6, "n": 2, "temperature": 0, "return_token_ids": true});
    let both = post(place.address, "/v1/completions", &body).answer();
    let expected =
        generate(vec![Request::new("a", ids(PROMPT), 6), Request::new("b", ids("Once upon a time"), 6)]);
    let expected: Vec<_> =
        expected.iter().flat_map(|outputs| [said(outputs), said(outputs)]).flatten().collect();
    assert_eq!(told(&both), expected);
    let indices: Vec<_> =
        both["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let prompt = ids(PROMPT).len() + ids("Once upon a time").len();
    assert_eq!(both["usage"]["prompt_tokens"], prompt);
    assert_eq!(both["usage"]["completion_tokens"], 24);
}

#[test]
fn four_samples_share_one_prompt() {
    let prompt: Vec<u32> = ids(&PROMPT.repeat(40));
    let sampling = SamplingParams { seed: 9, ..SamplingParams::default() };
    let expected = generate(vec![Request { n: 4, sampling, ..Request::new("a", prompt.clone(), 12) }]);
    let place = Place::new();
    let body = json!({"prompt": prompt, "max_tokens": 12, "n": 4, "seed": 9, "return_token_ids": true});
    let answer = post(place.address, "/v1/completions", &body).answer();
    assert_eq!(told(&answer), said(&expected[0]));
    let completion: usize = expected[0].iter().map(|output| output.token_ids.len()).sum();
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(prompt.len()), &json!(completion))
    );
    assert_eq!(usage["total_tokens"], prompt.len() + completion);
    // Three of four samples found the prompt in the first one's blocks: it was computed once.
    let stats = place.engine.stats();
    let computed = stats.prompt_tokens - stats.prompt_tokens_cached;
    assert!(computed < prompt.len() as u64 + 4 * 16, "{computed} of {} were computed", prompt.len());
}

#[test]
fn a_likelihood_harness_gets_the_log_probabilities_of_its_prompts() {
    let prompts = [ids(PROMPT), ids("Once upon a time")];
    let sampling = SamplingParams { logprobs: Some(1), prompt_logprobs: Some(1), ..SamplingParams::greedy() };
    let request =
        |prompt: &Vec<u32>| Request { sampling: sampling.clone(), ..Request::new("a", prompt.clone(), 1) };
    let expected = generate(prompts.iter().map(request).collect());
    let place = Place::new();
    let mut body = json!({"prompt": prompts, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234});
    let answer = post(place.address, "/v1/completions", &body).answer();
    for (choice, expected) in answer["choices"].as_array().unwrap().iter().zip(&expected) {
        let expected = &expected[0];
        let known = expected
            .prompt_token_logprobs
            .as_ref()
            .unwrap()
            .iter()
            .map(|known| known.map(|known| known.logprob));
        let own: Vec<Option<f32>> =
            known.chain([Some(expected.token_logprobs.as_ref().unwrap()[0].logprob)]).collect();
        let lists = &choice["logprobs"];
        let told: Vec<Option<f32>> = serde_json::from_value(lists["token_logprobs"].clone()).unwrap();
        assert_eq!(told, own);
        assert_eq!(texts(&lists["tokens"]).concat(), choice["text"].as_str().unwrap());
        assert_eq!(lists["text_offset"][1], lists["tokens"][0].as_str().unwrap().chars().count());
        assert!(lists["top_logprobs"][0].is_null());
        // A harness asks whether the greedy token is the best one.
        let best = lists["top_logprobs"].as_array().unwrap().last().unwrap().as_object().unwrap();
        assert_eq!(
            best.values().collect::<Vec<_>>(),
            [lists["token_logprobs"].as_array().unwrap().last().unwrap()]
        );
    }
    // Only the prompts are scored.
    body["max_tokens"] = 0.into();
    let scored = post(place.address, "/v1/completions", &body).answer();
    assert_eq!(scored["choices"][0]["text"], PROMPT);
    let lengths = |answer: &Value| answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len();
    assert_eq!(lengths(&scored) + 1, lengths(&answer));
    assert_eq!(scored["usage"]["completion_tokens"], 0);
}

#[test]
fn a_chat_goes_on_from_what_the_template_makes_of_it() {
    let place = Place::new();
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "Who is there?"}]}]);
    let tokenized = post(place.address, "/tokenize", &json!({"messages": messages})).answer();
    let prompt: Vec<u32> = serde_json::from_value(tokenized["tokens"].clone()).unwrap();
    let text = post(place.address, "/detokenize", &json!({"tokens": prompt})).answer();
    assert_eq!(text["prompt"], "USER:\nWho is there?\n\nASSISTANT:\n");
    let expected = generate(vec![Request::new("a", prompt.clone(), 20)]);
    for limit in ["max_tokens", "max_completion_tokens"] {
        let mut body = json!({"model": NAME, "messages": messages, "temperature": 0, "logprobs": true, "top_logprobs": 2});
        body[limit] = 20.into();
        let answer = post(place.address, "/v1/chat/completions", &body).answer();
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"], json!({"role": "assistant", "content": expected[0][0].text}));
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
        let content = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(content.len(), expected[0][0].token_ids.len());
        assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(content[0]["top_logprobs"][0]["token"], content[0]["token"]);
    }
    // What the assistant said is gone on with.
    let begun = json!([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is the"}]);
    let body = json!({"messages": begun, "continue_final_message": true});
    let tokens = post(place.address, "/tokenize", &body).answer()["tokens"].clone();
    let text = post(place.address, "/detokenize", &json!({"tokens": tokens})).answer();
    assert_eq!(text["prompt"], "USER:\nWho?\n\nASSISTANT:\nIt is the");
}

#[test]
fn a_chat_without_a_limit_goes_on_to_the_end_of_the_model() {
    let place = Place::new();
    let body = json!({"messages": [{"role": "user", "content": PROMPT.repeat(380)}], "temperature": 0, "ignore_eos": true});
    let answer = post(place.address, "/v1/chat/completions", &body).answer();
    assert_eq!(answer["usage"]["total_tokens"], 2048);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let unlimited = json!({"prompt": PROMPT, "ignore_eos": true});
    let answer = post(place.address, "/v1/completions", &unlimited).answer();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[test]
fn requests_without_a_seed_differ() {
    let place = Place::new();
    let body = json!({"prompt": PROMPT, "max_tokens": 24, "return_token_ids": true});
    let ask = || told(&post(place.address, "/v1/completions", &body).answer());
    assert_ne!(ask(), ask());
}

#[test]
fn a_tenant_never_hits_the_blocks_of_another() {
    let place = Place::new();
    let prompt = ids(&PROMPT.repeat(20));
    let cached = |salt: Option<&str>| {
        let body = json!({"prompt": prompt, "max_tokens": 1, "cache_salt": salt});
        let answer = post(place.address, "/v1/completions", &body).answer();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let whole = (prompt.len() as u64 - 1) / 16 * 16;
    assert_eq!((cached(Some("a")), cached(Some("a"))), (0, whole));
    assert_eq!((cached(Some("b")), cached(None)), (0, 0));
    assert_eq!((cached(Some("b")), cached(None), cached(Some("a"))), (whole, whole, whole));
    post(place.address, "/reset_prefix_cache", &json!({})).answer();
    assert_eq!((cached(Some("a")), cached(None)), (0, 0));
}

#[test]
fn the_model_and_the_version_are_told() {
    let place = Place::new();
    let models = get(place.address, "/v1/models").answer();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&json!(NAME), &json!(2048)));
    assert_eq!(get(place.address, &format!("/v1/models/{NAME}")).answer(), models["data"][0]);
    assert_eq!(get(place.address, "/v1/models/other").status, 404);
    assert_eq!(get(place.address, "/version").answer()["version"], env!("CARGO_PKG_VERSION"));
    for path in ["/health", "/ping", "/"] {
        assert_eq!(get(place.address, path).status, 200, "{path}");
    }
}
