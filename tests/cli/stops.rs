//! Stop strings that are or hold special tokens.

use std::path::Path;

use serde_json::{Value, json};

use crate::program::{Scratch, pagedraft};

const SPECIAL: &str = "<|im_end|>";
const PROMPT: &str = "40,41,42,43,44";

/// The embedded draft model, in which the token `id` is special and has the name [`SPECIAL`].
fn model(scratch: &Scratch, id: u64) -> String {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/draft");
    for file in ["config.json", "model.safetensors"] {
        scratch.write(&format!("model/{file}"), &std::fs::read(assets.join(file)).unwrap());
    }
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(assets.join("tokenizer.json")).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let old = vocab.iter().find(|(_, n)| n.as_u64() == Some(id)).unwrap().0.clone();
    vocab.remove(&old);
    vocab.insert(SPECIAL.to_owned(), json!(id));
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|pair| {
        let (a, b) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        a != old && b != old && format!("{a}{b}") != old
    });
    let added = json!({"id": id, "content": SPECIAL, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    scratch.write("model/tokenizer.json", tokenizer.to_string().as_bytes());
    scratch.path("model")
}

fn generated(scratch: &Scratch, model: &str, more: &[&str]) -> Vec<Value> {
    let out = scratch.path("out.jsonl");
    let common =
        ["generate", "--threads", "1", "--max-tokens", "40", "--output-json", &out, "--model", model];
    let run = pagedraft(&[&common, more].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    scratch.json_lines("out.jsonl")
}

fn essence(output: &Value) -> [&Value; 3] {
    [&output["token_ids"], &output["text"], &output["finish_reason"]]
}

#[test]
fn a_stop_string_that_is_a_special_token_ends_as_its_id_does() {
    let scratch = Scratch::new("special");
    let whole = generated(&scratch, "builtin:draft", &["--token-ids", PROMPT]).remove(0);
    let ids: Vec<u64> =
        whole["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    // A token that is generated, and not before.
    let at = (8..ids.len()).find(|&at| !ids[..at].contains(&ids[at])).unwrap();
    let (id, model) = (ids[at].to_string(), model(&scratch, ids[at]));
    let by_id = generated(&scratch, &model, &["--token-ids", PROMPT, "--stop-token-ids", &id]).remove(0);
    assert_eq!(by_id["token_ids"].as_array().unwrap().len(), at + 1);
    let text = by_id["text"].as_str().unwrap();
    let prompts = format!("{{\"prompt_token_ids\": [{PROMPT}], \"stop\": \"{SPECIAL}\"}}\n");
    let prompts = scratch.write("p.jsonl", prompts.as_bytes());
    for more in [
        vec!["--token-ids", PROMPT, "--stop", SPECIAL],
        vec!["--token-ids", PROMPT, "--stop", "never", "--stop", SPECIAL, "--draft", "ngram"],
        vec!["--token-ids", PROMPT, "--stop", SPECIAL, "--draft", "synthetic:0.9"],
        vec!["--token-ids", PROMPT, "--stop", SPECIAL, "--n", "2"],
        vec!["--prompts", &prompts],
    ] {
        for output in generated(&scratch, &model, &more) {
            assert_eq!(essence(&output), essence(&by_id), "{more:?}");
        }
    }

    // One that only holds the token: the text in front of it is cut off, and never shown.
    let (cut, last) = text.char_indices().nth_back(3).map(|(at, _)| text.split_at(at)).unwrap();
    for more in [&[][..], &["--draft", "synthetic:1"], &["--stop-token-ids", &id]] {
        let stop = format!("{last}{SPECIAL}");
        let arguments = ["--token-ids", PROMPT, "--stop", &stop];
        let output = generated(&scratch, &model, &[&arguments, more].concat()).remove(0);
        assert_eq!(output["token_ids"], by_id["token_ids"], "{more:?}");
        assert_eq!(
            (output["text"].as_str(), output["finish_reason"].as_str()),
            (Some(cut), Some("stop")),
            "{more:?}"
        );
    }
    let streamed =
        ["generate", "--threads", "1", "--model", &model, "--token-ids", PROMPT, "--max-tokens", "40"];
    let streamed = pagedraft(&[&streamed[..], &["--stop", &format!("{last}{SPECIAL}")]].concat());
    assert_eq!(streamed.stdout.trim_end_matches('\n'), cut.trim_end_matches('\n'));

    // A part of its name is no text of the request.
    let output = generated(&scratch, &model, &["--token-ids", PROMPT, "--stop", "<|im"]).remove(0);
    assert_eq!(output["finish_reason"], json!("length"));
    assert!(!output["text"].as_str().unwrap().contains("<|im"), "{output}");
}
