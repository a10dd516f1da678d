//! Files that are damaged, lie, or are of a kind that is not read: a clear error each, and no memory for what is not there.

use super::*;
use crate::checkpoint::tests::Scratch;

#[track_caller]
fn refused_bytes(bytes: Vec<u8>, words: &[&str]) {
    let message = complaint(Gguf::from_bytes(Path::new("tiny.gguf"), bytes).and_then(Checkpoint::of_gguf));
    for word in ["tiny.gguf"].iter().chain(words) {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
}

#[test]
fn a_whole_file_of_either_version_is_read() {
    checkpoint(&tiny()).unwrap();
    let mut two = tiny();
    two.version = 2;
    checkpoint(&two).unwrap();
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = tiny().bytes();
    let last: usize = {
        let mut writer = tiny();
        // What follows the last tensor is padding.
        let padding = writer
            .tensors
            .pop()
            .map_or(0, |tensor| tensor.bytes.len().next_multiple_of(32) - tensor.bytes.len());
        whole.len() - padding
    };
    for length in (0..2500).chain((2500..last).step_by(61)).chain([last - 1]).filter(|&length| length < last)
    {
        refused_bytes(whole[..length].to_vec(), &["cut short"]);
    }
    refused_bytes(whole[..last - 1].to_vec(), &["tensor `", &(last - 1).to_string()]);
}

#[test]
fn a_mapped_file_that_is_cut_or_is_something_else_is_refused_by_its_path() {
    let dir = Scratch::new();
    let whole = tiny().bytes();
    let path = dir.0.join("model.gguf");
    dir.write("model.gguf", &whole);
    Checkpoint::open(&path).unwrap();
    for (bytes, word) in [
        (whole[..whole.len() / 2].to_vec(), "cut short"),
        (whole[..20].to_vec(), "cut short"),
        (b"GGU".to_vec(), "does not begin with GGUF"),
        (Vec::new(), "does not begin with GGUF"),
        (b"GGML\x03\0\0\0".to_vec(), "does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "git lfs pull"),
    ] {
        dir.write("model.gguf", &bytes);
        for message in [complaint(Checkpoint::open(&path)), complaint(ModelConfig::open(&path))] {
            assert!(message.contains(path.to_str().unwrap()) && message.contains(word), "{message}");
        }
    }
}

#[test]
fn other_byte_orders_versions_and_marks_are_named() {
    let with_version = |version: u32| {
        let mut bytes = tiny().bytes();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        bytes
    };
    refused_bytes(with_version(3u32.swap_bytes()), &["big-endian", "convert"]);
    refused_bytes(with_version(1), &["version 1", "2 and 3"]);
    refused_bytes(with_version(4), &["version 4"]);
    let mut bytes = tiny().bytes();
    bytes[0] = b'X';
    refused_bytes(bytes, &["does not begin with GGUF"]);
}

#[test]
fn counts_and_lengths_that_lie_are_refused_without_memory_for_them() {
    for at in [8, 16] {
        for count in [u64::MAX, 1 << 40, 1000] {
            let mut bytes = tiny().bytes();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            refused_bytes(bytes, &["is damaged"]);
        }
    }
    // The length of the first key, then a list's number of values.
    for length in [u64::MAX, u64::MAX - 7, 1 << 40] {
        let mut bytes = tiny().bytes();
        bytes[24..32].copy_from_slice(&length.to_le_bytes());
        refused_bytes(bytes, &["a key of the metadata", &length.to_string()]);
        for kind in [0u32, 4, 8, 10] {
            let mut writer = tiny();
            writer.set("long", Value::Raw(9, [&kind.to_le_bytes()[..], &length.to_le_bytes()].concat()));
            refused(&writer, &["`long`"]);
        }
    }
}

#[test]
fn values_of_unknown_kinds_and_lists_of_lists_are_refused() {
    let mut writer = tiny();
    writer.set("odd", Value::Raw(13, vec![0; 8]));
    refused(&writer, &["`odd`", "kind 13"]);
    let mut writer = tiny();
    writer.set("odd", Value::Raw(9, [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()));
    refused(&writer, &["`odd`", "list of lists"]);
}

#[test]
fn texts_that_are_not_utf8_are_refused_by_their_key() {
    let mut writer = tiny();
    writer.keys.push((vec![b'k', 0xff], Value::U32(1)));
    refused(&writer, &["a key of the metadata is not UTF-8"]);
    let mut writer = tiny();
    writer.set("general.name", Value::Text(vec![0xc3]));
    refused(&writer, &["`general.name` is not UTF-8"]);
    let mut writer = tiny();
    writer.set("tokenizer.ggml.tokens", &[&b"a"[..], &[0xff]][..]);
    refused(&writer, &["entry 1 of `tokenizer.ggml.tokens` is not UTF-8"]);
    let mut writer = tiny();
    writer.tensors[0].name = vec![0xff];
    refused(&writer, &["the name of a tensor is not UTF-8"]);
}

#[test]
fn keys_and_tensors_that_are_there_twice_are_refused() {
    let mut writer = tiny();
    writer.keys.push(writer.keys[1].clone());
    refused(&writer, &["key `llama.block_count` twice"]);
    let mut writer = tiny();
    let again = writer.find("output_norm.weight").clone();
    writer.tensors.push(again);
    refused(&writer, &["tensor `output_norm.weight` twice"]);
}

#[test]
fn alignments_that_are_no_power_of_two_are_refused_and_others_honoured() {
    for bad in [Value::U32(0), Value::U32(24), Value::I32(32), "32".into()] {
        let mut writer = tiny();
        writer.set("general.alignment", bad);
        refused(&writer, &["general.alignment", "power of two"]);
    }
    for alignment in [1, 8, 4096] {
        let mut writer = tiny();
        writer.set("general.alignment", alignment as u32);
        writer.alignment = alignment;
        let (ours, plain) = (checkpoint(&writer).unwrap(), checkpoint(&tiny()).unwrap());
        assert_eq!(
            ours.final_norm().unwrap().to_vec_f32().unwrap(),
            plain.final_norm().unwrap().to_vec_f32().unwrap()
        );
    }
}

/// The header of `writer` with the last eight bytes, the offset of the last tensor, replaced.
fn with_last_offset(writer: &Writer, offset: u64) -> Vec<u8> {
    let mut bytes = writer.bytes();
    let end = writer.header().len();
    bytes[end - 8..end].copy_from_slice(&offset.to_le_bytes());
    bytes
}

#[test]
fn tensors_that_lie_elsewhere_than_they_can_are_refused() {
    let writer = tiny();
    refused_bytes(with_last_offset(&writer, 7), &["byte 7", "multiple of 32"]);
    refused_bytes(with_last_offset(&writer, 1 << 40), &["cut short"]);
    refused_bytes(with_last_offset(&writer, u64::MAX - 31), &["cut short"]);
    refused_bytes(with_last_offset(&writer, 0), &["overlap"]);
}

#[test]
fn shapes_that_lie_are_refused() {
    for (sizes, word) in [
        (vec![8, 0], "none may be 0"),
        (vec![1 << 32, 1 << 32], "countable"),
        (vec![u64::MAX, 1], "countable"),
        (vec![1 << 62], "countable"),
        (vec![1 << 61], "cut short"),
        (vec![8, 1 << 40], "cut short"),
        (vec![], "0 dimensions"),
        (vec![1; 5], "5 dimensions"),
        (vec![4, 2, 4], "has shape"),
        (vec![4, 8], "has shape"),
    ] {
        let mut writer = tiny();
        writer.find("blk.1.attn_v.weight").sizes = sizes;
        refused(&writer, &["blk.1.attn_v.weight", word]);
    }
    let mut writer = tiny();
    writer.find("token_embd.weight").sizes = vec![96];
    refused(&writer, &["token_embd.weight", "two sizes"]);
    let mut writer = tiny();
    writer.find("blk.0.ffn_up.weight").kind = writer::Q8_0;
    refused(&writer, &["blk.0.ffn_up.weight", "Q8_0", "multiple of 32"]);
}

#[test]
fn types_that_are_not_read_are_named_with_the_tensor() {
    for (number, name) in
        [(13, "Q5_K"), (6, "Q5_0"), (23, "IQ4_XS"), (4, "type number 4"), (999, "type number 999")]
    {
        let mut writer = tiny();
        writer.find("blk.1.ffn_down.weight").kind = number;
        refused(&writer, &["`blk.1.ffn_down.weight`", name, "Q4_K"]);
    }
}

#[test]
fn missing_and_unknown_tensors_are_named() {
    for name in ["token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.1.ffn_norm.weight"] {
        let mut writer = tiny();
        writer.tensors.retain(|tensor| tensor.name != name.as_bytes());
        refused(&writer, &[&format!("no tensor `{name}`")]);
    }
    for name in [
        "blk.2.attn_norm.weight",
        "blk.0.attn_v.bias",
        "blk.0.ffn_gate_exps.weight",
        "rope_factors_long.weight",
    ] {
        let mut writer = tiny();
        writer.tensor(name, &[8], writer::F32, vec![0; 32]);
        refused(&writer, &[&format!("the tensor `{name}`")]);
    }
}

#[test]
fn a_model_in_several_files_is_refused() {
    let mut writer = tiny();
    writer.set("split.count", 3);
    refused(&writer, &["3 files", "merge"]);
}
