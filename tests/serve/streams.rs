//! Streams: the pieces together are the whole answer.

use serde_json::{Value, json};

use crate::answers::tokenizer;
use crate::client::{post, stream};
use crate::place::{Place, Setup};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// What the pieces of a choice say together.
fn text(events: &[Value], index: usize, at: &str) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    choices
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice.pointer(at)?.as_str())
        .collect()
}

#[test]
fn the_pieces_of_a_stream_are_the_whole_answer() {
    let place = Place::new();
    for (path, at, whole_at, ask) in [
        (COMPLETIONS, "/text", "/text", json!({"prompt": "The king said"})),
        (
            CHAT,
            "/delta/content",
            "/message/content",
            json!({"messages": [{"role": "user", "content": "Speak."}]}),
        ),
    ] {
        let mut body = ask;
        for (name, value) in [("max_tokens", 30), ("n", 2), ("seed", 3)] {
            body[name] = value.into();
        }
        let whole = post(place.address, path, &body).answer();
        let events = stream(place.address, path, &body).events();
        for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!(text(&events, i, at), choice.pointer(whole_at).unwrap().as_str().unwrap(), "{path}");
            let of_choice = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
            let reasons = of_choice.filter(|piece| piece["index"] == i).map(|piece| &piece["finish_reason"]);
            let reasons: Vec<_> = reasons.filter(|reason| !reason.is_null()).collect();
            assert_eq!(reasons, [&choice["finish_reason"]], "{path}");
        }
        assert!(events.iter().all(|event| event["id"] == events[0]["id"] && event.get("usage").is_none()));
    }
}

#[test]
fn the_usage_comes_where_it_is_asked_for() {
    let place = Place::new();
    let ask = |options: Value| {
        let body =
            json!({"prompt": "The king", "max_tokens": 5, "ignore_eos": true, "stream_options": options});
        let events = stream(place.address, COMPLETIONS, &body).events();
        events
            .iter()
            .map(|event| (event["choices"].as_array().unwrap().len(), event.get("usage").cloned()))
            .collect::<Vec<_>>()
    };
    let last = ask(json!({"include_usage": true}));
    let (end, pieces) = last.split_last().unwrap();
    assert!(pieces.iter().all(|(choices, usage)| *choices == 1 && *usage == Some(Value::Null)), "{last:?}");
    assert_eq!(end.0, 0);
    assert_eq!(end.1.as_ref().unwrap()["completion_tokens"], 5);
    let always = ask(json!({"include_usage": true, "continuous_usage_stats": true}));
    let counts: Vec<_> = always
        .iter()
        .map(|(_, usage)| usage.as_ref().unwrap()["completion_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [1, 2, 3, 4, 5, 5]);
}

#[test]
fn a_stop_string_that_lies_across_two_chunks_is_never_shown() {
    let place = Place::new();
    let body = json!({"prompt": "The king said to the", "max_tokens": 40, "temperature": 0, "logprobs": 0});
    let whole = post(place.address, COMPLETIONS, &body).answer();
    let whole = &whole["choices"][0];
    let tokens: Vec<&str> =
        whole["logprobs"]["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let mut tried = 0;
    for i in 1..tokens.len() - 1 {
        // The last letter of one token, and the first of the next.
        let stop =
            format!("{}{}", tokens[i].chars().next_back().unwrap(), tokens[i + 1].chars().next().unwrap());
        let before = tokens[..i].concat();
        if whole["text"].as_str().unwrap().find(&stop)
            != Some(before.len() + tokens[i].len() - stop.len() / 2)
        {
            continue;
        }
        tried += 1;
        let mut body = body.clone();
        body["stop"] = json!([stop]);
        let events = stream(place.address, COMPLETIONS, &body).events();
        let expected = whole["text"].as_str().unwrap().split(&stop).next().unwrap();
        assert_eq!(text(&events, 0, "/text"), expected, "{stop:?}");
        let end = &events.last().unwrap()["choices"][0];
        assert_eq!((&end["finish_reason"], &end["stop_reason"]), (&json!("stop"), &json!(stop)));
        body["include_stop_str_in_output"] = true.into();
        let shown = post(place.address, COMPLETIONS, &body).answer();
        assert_eq!(shown["choices"][0]["text"], format!("{expected}{stop}"));
    }
    assert!(tried >= 3, "{tried} of {} places were tried", tokens.len());
}

#[test]
fn a_chat_names_its_role_once_and_with_its_first_token() {
    let place = Place::new();
    let body =
        json!({"messages": [{"role": "user", "content": "Speak."}], "max_tokens": 4, "ignore_eos": true});
    let events = stream(place.address, CHAT, &body).events();
    let roles: Vec<_> = events.iter().map(|event| event["choices"][0]["delta"]["role"].clone()).collect();
    assert_eq!(roles[0], "assistant");
    assert!(roles[1..].iter().all(Value::is_null), "{roles:?}");
    assert_eq!(events[0]["object"], "chat.completion.chunk");
}

#[test]
fn a_character_whose_bytes_are_two_tokens_comes_whole() {
    let place = Place::new();
    // In the alphabet of byte-level tokenizers these letters are the bytes 0xC3 and 0xA9, in this order an é.
    let halves = ["Ã", "©"].map(|name| tokenizer().token_to_id(name).unwrap());
    let bias = json!({halves[0].to_string(): 100, halves[1].to_string(): 100});
    let mut whole_characters = 0;
    for seed in 0..4 {
        let body = json!({"prompt": "The king", "max_tokens": 50, "temperature": 4, "seed": seed, "logit_bias": bias});
        let whole = post(place.address, COMPLETIONS, &body).answer();
        let whole = whole["choices"][0]["text"].as_str().unwrap();
        let events = stream(place.address, COMPLETIONS, &body).events();
        assert_eq!(text(&events, 0, "/text"), whole, "seed {seed}");
        let pieces = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap());
        whole_characters += pieces.filter(|piece| piece.contains('é')).count();
    }
    assert!(whole_characters > 10, "only {whole_characters} characters came whole");
}

#[test]
fn a_model_that_fills_masks_streams_block_by_block_and_is_asked_for_whole_blocks() {
    let place = Place::with(Setup { model: Some("llada"), ..Setup::default() });
    let body = json!({"prompt": "The king said", "max_tokens": 96, "ignore_eos": true, "temperature": 0});
    let whole = post(place.address, COMPLETIONS, &body).answer();
    assert_eq!(whole["usage"]["completion_tokens"], 96);
    let events = stream(place.address, COMPLETIONS, &body).events();
    assert_eq!(events.len(), 3, "one for each block of 32 tokens");
    assert_eq!(text(&events, 0, "/text"), whole["choices"][0]["text"].as_str().unwrap());
    let short = post(place.address, COMPLETIONS, &json!({"prompt": "The king", "max_tokens": 20}));
    assert_eq!(short.status, 400);
    let why = short.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(why.contains("20 tokens") && why.contains("whole blocks"), "{why}");
    let unsaid = json!({"prompt": "The king said", "ignore_eos": true});
    assert_eq!(post(place.address, COMPLETIONS, &unsaid).answer()["usage"]["completion_tokens"], 32);
    let chat = json!({"messages": [{"role": "user", "content": "Speak."}], "ignore_eos": true});
    assert_eq!(post(place.address, CHAT, &chat).answer()["usage"]["completion_tokens"], 128);
}
