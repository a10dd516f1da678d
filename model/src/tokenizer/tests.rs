//! Tests of the tokenizer and its stream, on the golden tokenizers and on small ones made here.

use serde_json::{Value, json};

use super::*;

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// A tokenizer of single bytes (in the byte-level alphabet) and a few merges, with a truncation that
/// must not take effect.
fn bytes_and_merges() -> Arc<Tokenizer> {
    let mut vocab = serde_json::Map::new();
    for byte in 0u32..256 {
        let plain = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let character = if plain {
            char::from_u32(byte)
        } else {
            // The bytes that are not printable follow from U+0100, in order.
            let before = (0..byte).filter(|b| !matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff));
            char::from_u32(256 + before.count() as u32)
        };
        vocab.insert(character.unwrap().to_string(), json!(byte));
    }
    vocab.insert("he".to_owned(), json!(256));
    vocab.insert("\u{120}w".to_owned(), json!(257));
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special})
    };
    let json = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [added(258, "<|bos|>", true), added(259, "<|eos|>", true)],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [258], "tokens": ["<|bos|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": ["h e", "\u{120} w"]},
    });
    Arc::new(Tokenizer::from_bytes(Path::new("t.json"), json.to_string().as_bytes()).unwrap())
}

/// A Llama-2 style tokenizer: words start with U+2581, unknown characters fall back to bytes.
fn metaspace_and_fallback() -> Arc<Tokenizer> {
    let mut vocab = serde_json::Map::new();
    for (id, word) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocab.insert((*word).to_owned(), json!(id));
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(3 + byte));
    }
    for (id, word) in ["\u{2581}", "a", "b", "\u{2581}a", "\u{2581}b"].iter().enumerate() {
        vocab.insert((*word).to_owned(), json!(259 + id));
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": ["\u{2581} a", "\u{2581} b"]},
    });
    Arc::new(Tokenizer::from_bytes(Path::new("t.json"), json.to_string().as_bytes()).unwrap())
}

#[track_caller]
fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip: bool) -> String {
    let mut stream = tokenizer.stream(skip);
    let mut text = String::new();
    for &id in ids {
        if let Some(piece) = stream.push(id).unwrap() {
            assert!(!piece.is_empty());
            text += &piece;
        }
    }
    text + &stream.finish().unwrap().unwrap_or_default()
}

#[test]
fn the_golden_cases_hold_and_stream() {
    for name in [
        "llama/plain-tied",
        "llama/llama3rope-untied",
        "qwen3/tied-headdim32",
        "qwen3/untied",
        "dsa/plain",
        "llada/small",
    ] {
        let Some(dir) = shared(&format!("reference/{name}")) else {
            return;
        };
        let tokenizer = Arc::new(Tokenizer::open(&dir).unwrap());
        assert_eq!(tokenizer.vocab_size(), 512);
        let expected = std::fs::read(dir.join("tokenizer_expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        for (token, id) in expected["special_ids"].as_object().unwrap() {
            let id = id.as_u64().unwrap() as u32;
            assert_eq!(tokenizer.token_to_id(token), Some(id));
            assert_eq!(tokenizer.id_to_token(id).as_ref(), Some(token));
            assert!(tokenizer.special_tokens().contains(&(id, token.clone())));
        }
        for case in expected["cases"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
            for (skip, field) in [(false, "decoded"), (true, "decoded_skip_special")] {
                let decoded = case[field].as_str().unwrap();
                assert_eq!(tokenizer.decode(&ids, skip).unwrap(), decoded);
                assert_eq!(streamed(&tokenizer, &ids, skip), decoded);
            }
        }
    }
}

#[test]
fn a_real_tokenizer_streams_what_it_decodes() {
    let Some(dir) = shared("models/tinystories-656k") else {
        return;
    };
    let tokenizer = Arc::new(Tokenizer::open(&dir).unwrap());
    let text = "Once upon a time, there was a little girl named Lily.\nShe said: \"Hello!\" ";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(ids[0], 1, "the template adds the start of a story");
    for skip in [false, true] {
        let decoded = tokenizer.decode(&ids, skip).unwrap();
        assert_eq!(streamed(&tokenizer, &ids, skip), decoded);
    }
}

#[test]
fn truncation_saved_with_a_tokenizer_does_not_cut_prompts() {
    let text = "hello world, ".repeat(40);
    let ids = bytes_and_merges().encode(&text, false).unwrap();
    assert!(ids.len() > 200);
    let Some(dir) = shared("models/tokenizers/gpt2") else {
        return;
    };
    let gpt2 = Tokenizer::open(&dir).unwrap();
    let ids = gpt2.encode(&"speculative ".repeat(100), false).unwrap();
    assert!(ids.len() > 100);
    let text = "Speculative decoding accelerates large language models.";
    let expected = [5248, 3129, 876, 39938, 8320, 689, 1588, 3303, 4981, 13];
    assert_eq!(gpt2.encode(text, false).unwrap(), expected);
}

#[test]
fn special_tokens_are_added_recognised_and_skipped() {
    let tokenizer = bytes_and_merges();
    assert_eq!(tokenizer.encode("he", true).unwrap(), [258, 256]);
    assert_eq!(tokenizer.encode("he<|eos|>", false).unwrap(), [256, 259]);
    assert_eq!(tokenizer.decode(&[258, 256, 259], true).unwrap(), "he");
    assert_eq!(tokenizer.decode(&[258, 256, 259], false).unwrap(), "<|bos|>he<|eos|>");
    assert_eq!(tokenizer.vocab_size(), 260);
    assert_eq!(tokenizer.special_tokens().len(), 2);
}

#[test]
fn half_a_character_waits_for_its_other_half() {
    let tokenizer = bytes_and_merges();
    let bytes = "a\u{1F600}b".bytes().map(u32::from).collect::<Vec<_>>();
    let mut stream = tokenizer.stream(false);
    let pieces: Vec<_> = bytes.iter().map(|&id| stream.push(id).unwrap()).collect();
    let expected = [Some("a"), None, None, None, Some("\u{1F600}"), Some("b")];
    assert_eq!(pieces.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    assert_eq!(stream.finish().unwrap(), None);
    assert_eq!(stream.push(0xf0).unwrap(), None);
    assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{fffd}"));
    assert_eq!(stream.push(u32::from(b'c')).unwrap().as_deref(), Some("c"));
}

#[test]
fn random_tokens_stream_to_the_decoded_text() {
    let tokenizer = bytes_and_merges();
    let mut state = 0x5eed_u64;
    println!("seed {state:#x}");
    let mut next = |bound: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % bound) as u32
    };
    for _ in 0..300 {
        let length = next(40);
        let ids: Vec<u32> = (0..length).map(|_| next(262)).collect();
        for skip in [false, true] {
            let decoded = tokenizer.decode(&ids, skip).unwrap();
            assert_eq!(streamed(&tokenizer, &ids, skip), decoded, "{ids:?}");
        }
    }
}

#[test]
fn spaces_between_words_survive_a_decoder_that_strips_the_first() {
    let tokenizer = metaspace_and_fallback();
    let text = "a b ab \u{e9} a  b";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(streamed(&tokenizer, &ids, false), text);
}

#[test]
fn junk_bytes_never_stop_a_byte_fallback_stream() {
    let tokenizer = metaspace_and_fallback();
    let mut state = 77u64;
    for _ in 0..500 {
        let ids: Vec<u32> = (0..12)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                [259, 260, 3 + 0xc3, 3 + 0xa9, 3 + 0xff, 262][(state >> 40) as usize % 6]
            })
            .collect();
        streamed(&tokenizer, &ids, false);
    }
}

#[test]
fn ids_that_the_tokenizer_lacks_add_nothing() {
    let tokenizer = bytes_and_merges();
    assert_eq!(tokenizer.decode(&[256, 99_999], false).unwrap(), "he");
    assert_eq!(streamed(&tokenizer, &[256, 99_999, 256], false), "hehe");
}

#[test]
fn files_that_are_no_tokenizer_are_refused_by_name() {
    let message = |result: Result<Tokenizer, ModelError>| result.err().unwrap().to_string();
    let open = message(Tokenizer::open(Path::new("/no/such/model")));
    assert!(open.contains("/no/such/model") && open.contains("tokenizer.json"), "{open}");
    for json in ["", "{}", "[]", "{\"model\": 3}", "\u{0}"] {
        let bad = message(Tokenizer::from_bytes(Path::new("x/tokenizer.json"), json.as_bytes()));
        assert!(bad.contains("x/tokenizer.json"), "{bad}");
    }
}
