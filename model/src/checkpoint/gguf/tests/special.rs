//! The special tokens that a file names.

use super::*;

fn ends(writer: &Writer) -> Vec<u32> {
    read(writer).unwrap().config().unwrap().eos_token_ids
}

#[test]
fn every_token_that_ends_a_text_is_taken() {
    let mut writer = tiny();
    assert_eq!(ends(&writer), [2]);
    writer.set("tokenizer.ggml.eot_token_id", 3).set("tokenizer.ggml.eom_token_id", 4);
    assert_eq!(ends(&writer), [2, 3, 4]);
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "Ġ", "<|im_end|>", "Ġa", "<|endoftext|>", "x", "y"];
    writer.set("tokenizer.ggml.tokens", &tokens[..]);
    writer.set("tokenizer.ggml.token_type", Value::I32s(vec![2, 3, 3, 1, 1, 1, 1, 3, 1, 1, 4, 5]));
    // A normal token of such a name is a piece of text.
    assert_eq!(ends(&writer), [2, 3, 4, 7]);
    let mut without = tiny();
    without.remove("tokenizer.ggml.eos_token_id").remove("tokenizer.ggml.tokens");
    assert!(ends(&without).is_empty());
}

#[test]
fn ids_that_stand_for_no_token_are_none() {
    let mut writer = tiny();
    writer.set("tokenizer.ggml.bos_token_id", Value::I32(-1));
    assert_eq!(read(&writer).unwrap().config().unwrap().bos_token_id, None);
    writer.set("tokenizer.ggml.bos_token_id", u32::MAX);
    assert_eq!(read(&writer).unwrap().config().unwrap().bos_token_id, None);
    writer.set("tokenizer.ggml.bos_token_id", "one");
    refused(&writer, &["tokenizer.ggml.bos_token_id", "a token id"]);
}

#[test]
fn templates_know_the_texts_of_the_special_tokens() {
    let mut writer = tiny();
    assert_eq!(read(&writer).unwrap().chat_template().unwrap(), None);
    writer.set("tokenizer.chat_template", "{{ bos_token }}").set("tokenizer.ggml.unknown_token_id", 0);
    let gguf = read(&writer).unwrap();
    assert_eq!(gguf.chat_template().unwrap(), Some("{{ bos_token }}"));
    let texts: Vec<_> = gguf.special_tokens().unwrap();
    let expected = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
    assert_eq!(texts, expected.map(|(name, text)| (name, text.to_owned())));
    writer.set("tokenizer.ggml.padding_token_id", 12);
    let message = complaint(read(&writer).unwrap().special_tokens());
    assert!(message.contains("`tokenizer.ggml.padding_token_id` is 12"), "{message}");
    writer.set("tokenizer.chat_template", 3);
    assert!(complaint(read(&writer).unwrap().chat_template()).contains("tokenizer.chat_template"));
}
