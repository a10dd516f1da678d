//! The tokenizers that files carry.

use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper};

use super::*;
use crate::checkpoint::gguf::pre_tokenizer::PreTokenizer;
use crate::tokenizer::Tokenizer;

fn tokenizer(writer: &Writer) -> Tokenizer {
    read(writer).unwrap().tokenizer().unwrap()
}

#[track_caller]
fn refused_tokenizer(writer: &Writer, words: &[&str]) {
    let message = complaint(read(writer).unwrap().tokenizer());
    for word in ["tiny.gguf"].iter().chain(words) {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
}

#[test]
fn byte_level_tokens_are_merged_in_the_order_of_the_file() {
    let tokenizer = tokenizer(&tiny());
    for (text, ids) in [
        ("abc", &[9][..]),
        ("ab", &[7]),
        ("ba", &[4, 3]),
        ("a a", &[3, 8]),
        ("a</s>b", &[3, 2, 4]),
        ("ab<tool>c", &[7, 10, 5]),
        ("", &[]),
    ] {
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text}");
        assert_eq!(tokenizer.decode(ids, false).unwrap(), text);
    }
    // Control tokens can be left out of a text, tokens that a user defined cannot.
    assert_eq!(tokenizer.decode(&[1, 7, 10, 2], true).unwrap(), "ab<tool>");
    assert_eq!(tokenizer.special_tokens().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2]);
    // What fills a gap in the ids has no text.
    assert_eq!(tokenizer.id_to_token(11), None);
    assert_eq!(tokenizer.token_to_id("abc"), Some(9));
}

#[test]
fn a_text_begins_and_ends_with_the_tokens_that_the_file_asks_for() {
    let ids = |writer: &Writer| tokenizer(writer).encode("ab", true).unwrap();
    let mut writer = tiny();
    assert_eq!(ids(&writer), [7]);
    writer.set("tokenizer.ggml.add_bos_token", true);
    assert_eq!(ids(&writer), [1, 7]);
    assert_eq!(tokenizer(&writer).encode("ab", false).unwrap(), [7]);
    writer.set("tokenizer.ggml.add_eos_token", true);
    assert_eq!(ids(&writer), [1, 7, 2]);
    writer.remove("tokenizer.ggml.add_bos_token");
    assert_eq!(ids(&writer), [7, 2]);
    writer.remove("tokenizer.ggml.add_eos_token");
    // Llama 3's texts begin with one if nothing is said.
    writer.set("tokenizer.ggml.pre", "llama-bpe");
    assert_eq!(ids(&writer), [1, 7]);
    writer.set("tokenizer.ggml.add_bos_token", false);
    assert_eq!(ids(&writer), [7]);
    writer.set("tokenizer.ggml.add_bos_token", true).set("tokenizer.ggml.bos_token_id", 99);
    refused_tokenizer(&writer, &["tokenizer.ggml.bos_token_id", "99"]);
    writer.set("tokenizer.ggml.add_bos_token", 1);
    refused_tokenizer(&writer, &["tokenizer.ggml.add_bos_token", "true or false"]);
}

/// The words that a text is cut into, with a bar between each two.
fn words(pre: Option<&str>, text: &str) -> String {
    let mut writer = tiny();
    match pre {
        Some(pre) => writer.set("tokenizer.ggml.pre", pre),
        None => writer.remove("tokenizer.ggml.pre"),
    };
    let json = PreTokenizer::of(&read(&writer).unwrap()).unwrap().json();
    let cutter: PreTokenizerWrapper = serde_json::from_value(json).unwrap();
    let mut cut = PreTokenizedString::from(text);
    cutter.pre_tokenize(&mut cut).unwrap();
    let words = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    words.iter().map(|(_, (from, to), _)| &text[*from..*to]).collect::<Vec<_>>().join("|")
}

#[test]
fn texts_are_cut_into_words_as_the_named_model_does_it() {
    let text = "Hello, we've 12345 aB\n\n  x I'LL";
    for (pre, expected) in [
        (Some("gpt-2"), "Hello|,| we|'ve| 12345| aB|\n\n | x| I|'|LL"),
        (Some("smollm"), "Hello|,| we|'ve| |1|2|3|4|5| aB|\n\n | x| I|'|LL"),
        (Some("llama-bpe"), "Hello|,| we|'ve| |123|45| aB|\n\n| | x| I|'LL"),
        (Some("qwen2"), "Hello|,| we|'ve| |1|2|3|4|5| aB|\n\n| | x| I|'LL"),
        (Some("tekken"), "Hello|,| we|'ve| |1|2|3|4|5| a|B|\n\n| | x| I|'LL"),
        (Some("default"), "Hello|,| we|'|ve| |123|45| aB|\n\n | x| I|'|LL"),
        (None, "Hello|,| we|'|ve| |123|45| aB|\n\n | x| I|'|LL"),
    ] {
        assert_eq!(words(pre, text), expected, "{pre:?}");
    }
}

#[test]
fn qwens_texts_are_in_normal_form_c() {
    let mut writer = tiny();
    writer.set("tokenizer.ggml.tokens", &["Ã", "©", "Ã©", "e"][..]).remove("tokenizer.ggml.token_type");
    writer.set("tokenizer.ggml.merges", &["Ã ©"][..]).set("tokenizer.ggml.add_bos_token", false);
    // An e and a combining accent.
    let accented = |writer: &Writer| tokenizer(writer).encode("e\u{301}", true).unwrap();
    assert_eq!(accented(&writer), [3]);
    writer.set("tokenizer.ggml.pre", "qwen2");
    assert_eq!(accented(&writer), [2]);
}

#[test]
fn ways_to_cut_texts_that_are_not_known_are_named() {
    let mut writer = tiny();
    writer.set("tokenizer.ggml.pre", "gpt-4o");
    refused_tokenizer(&writer, &["tokenizer.ggml.pre \"gpt-4o\"", "llama-bpe"]);
    writer.set("tokenizer.ggml.pre", 4);
    refused_tokenizer(&writer, &["`tokenizer.ggml.pre`"]);
}

#[test]
fn a_file_without_a_tokenizer_says_so_and_other_kinds_are_named() {
    let mut writer = tiny();
    writer.set("tokenizer.ggml.model", "t5");
    refused_tokenizer(&writer, &["the kind t5", "gpt2", "llama"]);
    writer.set("tokenizer.ggml.model", "no_vocab");
    assert!(matches!(read(&writer).unwrap().tokenizer(), Err(ModelError::NoTokenizer { .. })));
    writer.remove("tokenizer.ggml.model");
    assert!(matches!(checkpoint(&writer).unwrap().tokenizer(), Err(ModelError::NoTokenizer { .. })));
}

#[test]
fn lists_that_do_not_fit_each_other_are_named() {
    let mut writer = tiny();
    writer.set("tokenizer.ggml.token_type", Value::I32s(vec![1; 11]));
    refused(&writer, &["tokenizer.ggml.token_type", "11 entries", "12 tokens"]);
    writer.set("tokenizer.ggml.token_type", Value::I32s(vec![7; 12]));
    refused(&writer, &["tokenizer.ggml.token_type[0]", "7"]);
    writer.set("tokenizer.ggml.token_type", Value::F32s(vec![1.0; 12]));
    refused(&writer, &["tokenizer.ggml.token_type", "a list of i32"]);
    for (merge, word) in [("ab", "`ab`"), (" a", "` a`"), ("a ", "`a `"), ("a q", "q")] {
        let mut writer = tiny();
        writer.set("tokenizer.ggml.merges", &[merge][..]);
        refused_tokenizer(&writer, &[word]);
    }
    for key in ["tokens", "merges"] {
        let mut writer = tiny();
        writer.remove(&format!("tokenizer.ggml.{key}")).remove("tokenizer.ggml.token_type");
        refused_tokenizer(&writer, &[&format!("no field `tokenizer.ggml.{key}`")]);
    }
}

/// A SentencePiece vocabulary: bytes, letters and words with falling scores.
fn pieces() -> Writer {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut kinds = vec![2, 3, 3];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([6; 256]);
    let mut scores = vec![0.0; tokens.len()];
    for (i, piece) in ["▁a", "bc", "ab", "▁ab", "▁abc", "▁▁", "▁", "a", "b", "c"].into_iter().enumerate()
    {
        tokens.push(piece.to_owned());
        kinds.push(1);
        scores.push(-(i as f32));
    }
    let mut writer = tiny();
    writer.set("tokenizer.ggml.model", "llama").set("tokenizer.ggml.pre", "default");
    writer.set("tokenizer.ggml.tokens", &tokens[..]).set("tokenizer.ggml.token_type", Value::I32s(kinds));
    writer.set("tokenizer.ggml.scores", Value::F32s(scores)).remove("tokenizer.ggml.merges");
    writer
}

/// SentencePiece's own way, slow and obvious: the best-scored pair of neighbours is joined until there is none, the leftmost first; what
/// is no piece is spelled in bytes.
fn joined(vocabulary: &[String], scores: &[f32], text: &str) -> Vec<u32> {
    let id = |piece: &str| vocabulary.iter().position(|own| own == piece);
    let mut parts: Vec<String> = text.chars().map(|c| if c == ' ' { '▁' } else { c }.to_string()).collect();
    loop {
        let score = |i: usize| id(&format!("{}{}", parts[i], parts[i + 1])).map(|id| scores[id]);
        let pairs = (0..parts.len().saturating_sub(1)).filter_map(|i| Some((i, score(i)?)));
        let best = pairs.reduce(|best, pair| if pair.1 > best.1 { pair } else { best });
        let Some((i, _)) = best else { break };
        let right = parts.remove(i + 1);
        parts[i].push_str(&right);
    }
    let spell = |part: &String| match id(part) {
        Some(id) => vec![id as u32],
        None => part.bytes().map(|byte| 3 + u32::from(byte)).collect(),
    };
    parts.iter().flat_map(spell).collect()
}

#[test]
fn sentencepiece_tokens_are_those_of_its_own_algorithm() {
    let writer = pieces();
    let tokenizer = tokenizer(&writer);
    let gguf = read(&writer).unwrap();
    let vocabulary: Vec<String> =
        gguf.texts("tokenizer.ggml.tokens").unwrap().unwrap().iter().map(|text| (*text).to_owned()).collect();
    let scores = gguf.floats("tokenizer.ggml.scores").unwrap().unwrap();
    let mut random = Random(5);
    for round in 0..300 {
        let letters = ["a", "b", "c", "a", "b", " ", "é", "\n"];
        let length = random.next() % 12;
        let text: String = (0..length).map(|_| letters[random.next() as usize % letters.len()]).collect();
        // A space is put in front of every text, but an empty one.
        let whole = if text.is_empty() { String::new() } else { format!(" {text}") };
        let expected = joined(&vocabulary, &scores, &whole);
        assert_eq!(tokenizer.encode(&text, false).unwrap(), expected, "{round} {text:?}");
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), text, "{round}");
    }
    assert_eq!(tokenizer.encode("abc", true).unwrap()[0], 1, "such texts begin with bos");
}

#[test]
fn a_space_in_front_is_left_out_where_the_file_says_so() {
    let mut writer = pieces();
    writer.set("tokenizer.ggml.add_space_prefix", false).set("tokenizer.ggml.add_bos_token", false);
    let tokenizer = tokenizer(&writer);
    let ids = tokenizer.encode("ab", true).unwrap();
    assert_eq!(tokenizer.id_to_token(ids[0]).unwrap(), "ab");
    assert_eq!(tokenizer.decode(&tokenizer.encode(" ab", true).unwrap(), true).unwrap(), " ab");
}

#[test]
fn scores_must_be_there_for_every_piece() {
    let mut writer = pieces();
    writer.set("tokenizer.ggml.scores", Value::F32s(vec![0.0; 3]));
    refused_tokenizer(&writer, &["tokenizer.ggml.scores", "3 entries"]);
    writer.remove("tokenizer.ggml.scores");
    refused_tokenizer(&writer, &["no field `tokenizer.ggml.scores`"]);
    let mut writer = pieces();
    writer.set("tokenizer.ggml.scores", Value::F32s(vec![f32::NAN; 269]));
    tokenizer(&writer);
}
