//! Tests of the GGUF reader, on files that are written here.

mod blocks;
mod config;
mod container;
mod mutated;
mod special;
mod tokenizer;
mod weights;
#[path = "../../../../tests/gguf_writer/mod.rs"]
mod writer;

use std::path::Path;

use serde_json::{Value as Json, json};

use super::{GgmlType, Gguf};
use crate::checkpoint::tests::{Tensors, complaint, file_of, open, parse, tiny_config, tiny_tensors};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::error::ModelError;
use writer::{Value, Writer, interleave, name_of};

fn read(writer: &Writer) -> Result<Gguf, ModelError> {
    Gguf::from_bytes(Path::new("tiny.gguf"), writer.bytes())
}

fn checkpoint(writer: &Writer) -> Result<Checkpoint, ModelError> {
    Checkpoint::of_gguf(read(writer)?)
}

/// Checks that opening ends in an error that names the file and has all these words.
#[track_caller]
fn refused(writer: &Writer, words: &[&str]) {
    let message = complaint(checkpoint(writer));
    for word in ["tiny.gguf"].iter().chain(words) {
        assert!(message.contains(word), "`{message}` lacks `{word}`");
    }
}

/// Numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// What GGUF files call an architecture, by its class in `config.json`.
fn own_name(config: &Json) -> &'static str {
    match config["architectures"][0].as_str() {
        Some("Qwen2ForCausalLM") => "qwen2",
        Some("Qwen3ForCausalLM") => "qwen3",
        _ => "llama",
    }
}

/// A file of the model that a `config.json` and its tensors make: in F32, with the tokens that [`vocabulary`] writes.
fn of_model(config: &Json, tensors: &Tensors) -> Writer {
    let parsed = parse(config).unwrap();
    let arch = own_name(config);
    let mut writer = Writer::new();
    writer.set("general.architecture", arch);
    for (key, value) in [
        ("block_count", parsed.num_layers),
        ("context_length", parsed.max_position_embeddings),
        ("embedding_length", parsed.hidden_size),
        ("feed_forward_length", parsed.intermediate_size),
        ("attention.head_count", parsed.num_heads),
        ("attention.head_count_kv", parsed.num_kv_heads),
        ("attention.key_length", parsed.head_dim),
        ("rope.dimension_count", parsed.head_dim),
    ] {
        writer.set(&format!("{arch}.{key}"), value as u32);
    }
    writer.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), parsed.rms_norm_eps);
    writer.set(&format!("{arch}.rope.freq_base"), parsed.rope.theta as f32);
    for (name, (_, shape, bytes)) in tensors {
        let turned = arch == "llama" && (name.contains("q_proj") || name.contains("k_proj"));
        let bytes = match turned {
            true => interleave(bytes, bytes.len() / shape[0], parsed.head_dim),
            false => bytes.clone(),
        };
        writer.tensor(&name_of(name), shape, writer::F32, bytes);
    }
    vocabulary(&mut writer);
    writer
}

/// A vocabulary of twelve tokens, which is that of [`tiny_config`].
fn vocabulary(writer: &mut Writer) {
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "Ġ", "ab", "Ġa", "abc", "<tool>", "[PAD11]"];
    writer.set("tokenizer.ggml.model", "gpt2");
    writer.set("tokenizer.ggml.pre", "gpt-2");
    writer.set("tokenizer.ggml.tokens", &tokens[..]);
    writer.set("tokenizer.ggml.token_type", Value::I32s(vec![2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 4, 5]));
    writer.set("tokenizer.ggml.merges", &["a b", "Ġ a", "ab c"][..]);
    writer.set("tokenizer.ggml.bos_token_id", 1);
    writer.set("tokenizer.ggml.eos_token_id", 2);
}

/// The file of a small Llama.
fn tiny() -> Writer {
    tiny_of(json!({}))
}

/// The file of a small model whose `config.json` has these fields.
fn tiny_of(changes: Json) -> Writer {
    let config = tiny_config(changes);
    of_model(&config, &tiny_tensors(&parse(&config).unwrap()))
}
