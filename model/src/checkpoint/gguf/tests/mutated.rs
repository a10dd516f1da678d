//! Files that were changed at random never panic, and never ask for memory that nobody has.

use proptest::prelude::*;

use super::*;

/// Does everything that can be done with a file.
fn use_up(bytes: Vec<u8>) {
    let Ok(gguf) = Gguf::from_bytes(Path::new("mutated.gguf"), bytes) else { return };
    let _ = (gguf.chat_template().is_ok(), gguf.special_tokens().is_ok());
    if let Ok(tokenizer) = gguf.tokenizer()
        && let Ok(ids) = tokenizer.encode("ab c</s> 12 é\n", true)
    {
        let _ = tokenizer.decode(&ids, true);
    }
    let Ok(checkpoint) = Checkpoint::of_gguf(gguf) else { return };
    checkpoint.fingerprint();
    let config = checkpoint.config();
    config.rope.inv_freq(config.head_dim);
    for (name, shape) in config.tensors() {
        let tensor = checkpoint.tensor(&name, &shape).unwrap();
        tensor.to_vec_f32().unwrap();
        for row in 0..tensor.rows() {
            let _ = (tensor.raw_row(row), tensor.ggml_row(row));
        }
    }
}

/// Small files of either kind of tokenizer, with tensors of several types.
fn files() -> [Vec<u8>; 2] {
    let mut one = tiny_of(
        json!({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "attention_bias": true}),
    );
    for (name, kind, type_number) in [
        ("blk.0.attn_q.weight", GgmlType::Q4_0, writer::Q4_0),
        ("blk.0.ffn_up.weight", GgmlType::Q8_0, writer::Q8_0),
        ("blk.0.attn_v.weight", GgmlType::F16, writer::F16),
    ] {
        let tensor = one.find(name);
        let values: u64 = tensor.sizes.iter().product();
        tensor.kind = type_number;
        tensor.bytes.resize(kind.row_bytes(values as usize).unwrap(), 0);
    }
    one.set("tokenizer.ggml.add_bos_token", true).set("tokenizer.chat_template", "{{ messages }}");
    let mut two = tiny();
    two.set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.scores", Value::F32s((0..12).map(|i| -i as f32).collect()));
    [one.bytes(), two.bytes()]
}

#[test]
fn the_files_that_are_mutated_are_whole() {
    for bytes in files() {
        let gguf = Gguf::from_bytes(Path::new("whole.gguf"), bytes.clone()).unwrap();
        gguf.tokenizer().unwrap();
        Checkpoint::of_gguf(gguf).unwrap();
        use_up(bytes);
    }
}

proptest! {
    #[test]
    fn changed_bytes_and_cuts_never_panic(
        file in 0..2usize,
        // Most of a file is data, in which nothing can be wrong.
        flips in prop::collection::vec((0..3200usize, any::<u8>()), 0..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = files()[file].clone();
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_up(bytes);
    }
}

#[test]
fn each_byte_of_the_header_set_to_the_extremes_never_panics() {
    for bytes in files() {
        for at in 0..bytes.len().min(3200) {
            for byte in [0xff, bytes[at] ^ 1] {
                let mut changed = bytes.clone();
                changed[at] = byte;
                use_up(changed);
            }
        }
    }
}
