//! The weights of a file against those of the checkpoint that it was made of.

use super::*;
use crate::checkpoint::{Dtype, Part};

/// The models of the three architectures, with the biases that files tell by their tensors.
fn models() -> Vec<Json> {
    let change = |name: &str, more: Json| {
        let mut config = tiny_config(more);
        config["architectures"] = json!([name]);
        config
    };
    vec![
        change("LlamaForCausalLM", json!({})),
        change("LlamaForCausalLM", json!({"attention_bias": true, "mlp_bias": true, "head_dim": 6})),
        change("LlamaForCausalLM", json!({"tie_word_embeddings": true, "num_key_value_heads": 2})),
        change("Qwen2ForCausalLM", json!({})),
        change("Qwen3ForCausalLM", json!({"head_dim": 6})),
    ]
}

#[test]
fn every_tensor_and_field_is_that_of_the_directory_it_was_made_of() {
    for config in models() {
        let tensors = tiny_tensors(&parse(&config).unwrap());
        let plain = open(&config, file_of(&tensors)).unwrap();
        let ours = checkpoint(&of_model(&config, &tensors)).unwrap();
        assert_eq!(ours.config(), plain.config(), "{config}");
        for (name, shape) in plain.config().tensors() {
            let (ours, plain) = (ours.tensor(&name, &shape).unwrap(), plain.tensor(&name, &shape).unwrap());
            assert_eq!(ours.to_vec_f32().unwrap(), plain.to_vec_f32().unwrap(), "{name} {config}");
            assert_eq!((ours.name(), ours.dtype(), ours.shape()), (&*name, Dtype::F32, &*shape));
            for row in 0..plain.rows() {
                // A bias whose elements are in another order has no bytes of a row.
                if let Some(raw) = ours.raw_row(row) {
                    assert_eq!(Some(raw), plain.raw_row(row), "{name} {row}");
                    assert_eq!(ours.ggml_row(row), Some((GgmlType::F32, raw)));
                } else {
                    assert!(name.ends_with("_proj.bias") && config["architectures"][0] == "LlamaForCausalLM");
                    assert_eq!(ours.ggml_row(row), None);
                }
            }
            assert!(ours.raw_row(ours.rows()).is_none() && ours.ggml_row(ours.rows()).is_none());
            assert!(plain.ggml_row(0).is_none());
            if let Some(raw) = ours.raw() {
                assert_eq!(Some(raw), plain.raw(), "{name}");
            }
            assert!(ours.read_row(ours.rows(), &mut vec![0.0; ours.row_len()]).is_err());
            assert!(ours.read_row(0, &mut vec![0.0; ours.row_len() + 1]).is_err());
        }
        assert_eq!(ours.has("lm_head.weight"), plain.has("lm_head.weight"));
        assert!(!ours.has("blk.0.attn_q.weight") && !ours.has("model.layers.9.mlp.up_proj.weight"));
    }
}

/// A model of width 256, so that its rows hold blocks of every type, whose matrices are of this type and full of random blocks.
fn quantised(kind: GgmlType, number: u32) -> Writer {
    let config = tiny_config(json!({
        "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1,
    }));
    let mut writer = of_model(&config, &tiny_tensors(&parse(&config).unwrap()));
    let mut random = Random(number.into());
    for tensor in writer.tensors.iter_mut().filter(|tensor| tensor.sizes.len() > 1) {
        let values: u64 = tensor.sizes.iter().product();
        tensor.kind = number;
        tensor.bytes = random.bytes(kind.row_bytes(values as usize).unwrap());
        // Finite scales.
        tensor.bytes.iter_mut().for_each(|byte| *byte &= 0xbf);
    }
    writer
}

const KINDS: [(GgmlType, u32); 8] = [
    (GgmlType::F32, writer::F32),
    (GgmlType::F16, writer::F16),
    (GgmlType::Bf16, writer::BF16),
    (GgmlType::Q4_0, writer::Q4_0),
    (GgmlType::Q4_1, writer::Q4_1),
    (GgmlType::Q8_0, writer::Q8_0),
    (GgmlType::Q4K, writer::Q4_K),
    (GgmlType::Q6K, writer::Q6_K),
];

#[test]
fn rows_of_every_type_are_read_in_the_order_of_the_engine() {
    for (kind, number) in KINDS {
        let writer = quantised(kind, number);
        let checkpoint = checkpoint(&writer).unwrap();
        assert_eq!(checkpoint.config().torch_dtype, kind.dtype().unwrap_or(Dtype::Bf16));
        let (heads, width) = (checkpoint.config().num_heads, checkpoint.config().head_dim);
        for (part, name) in [(Part::Q, "attn_q"), (Part::Down, "ffn_down")] {
            let tensor = checkpoint.weight(0, part).unwrap();
            let stored = &writer.clone().find(&format!("blk.0.{name}.weight")).bytes.clone();
            let row_bytes = kind.row_bytes(tensor.row_len()).unwrap();
            assert_eq!(tensor.dtype(), kind.dtype().unwrap_or(Dtype::F32));
            let mut seen = vec![false; tensor.rows()];
            for row in 0..tensor.rows() {
                // Where llama.cpp has the row: the two halves of a head lie side by side there.
                let place = match part {
                    Part::Q => {
                        let (head, half, pair) = (row / width, row % width / (width / 2), row % (width / 2));
                        assert!(head < heads);
                        head * width + 2 * pair + half
                    }
                    _ => row,
                };
                assert!(!std::mem::replace(&mut seen[place], true));
                let blocks = &stored[place * row_bytes..(place + 1) * row_bytes];
                assert_eq!(tensor.ggml_row(row), Some((kind, blocks)), "{kind} {name} {row}");
                assert_eq!(tensor.raw_row(row), kind.dtype().map(|_| blocks));
                let (mut expected, mut read) = (vec![0.0; tensor.row_len()], vec![1.0; tensor.row_len()]);
                kind.dequantise(blocks, &mut expected);
                tensor.read_row(row, &mut read).unwrap();
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&read), bits(&expected), "{kind} {name} {row}");
            }
            assert!(tensor.raw().is_none() || part == Part::Down && kind.dtype().is_some());
        }
    }
}

#[test]
fn fingerprints_tell_files_apart_by_what_they_compute() {
    let print = |writer: &Writer| checkpoint(writer).unwrap().fingerprint();
    let plain = print(&tiny());
    assert_eq!(plain, print(&tiny()));
    let mut named = tiny();
    named.set("general.name", "other");
    assert_eq!(plain, print(&named));
    let mut other = tiny();
    other.find("blk.1.ffn_up.weight").bytes[5] ^= 1;
    assert_ne!(plain, print(&other));
    let mut base = tiny();
    base.set("llama.rope.freq_base", 5000.0);
    assert_ne!(plain, print(&base));
    let prints: Vec<_> = KINDS.iter().map(|&(kind, number)| print(&quantised(kind, number))).collect();
    assert!((1..prints.len()).all(|i| !prints[..i].contains(&prints[i])));
}

#[test]
fn drawn_weights_have_the_shape_and_the_tokenizer_of_the_file() {
    let dir = crate::checkpoint::tests::Scratch::new();
    dir.write("tiny.gguf", &tiny().bytes());
    let dummy = Checkpoint::open_dummy(&dir.0.join("tiny.gguf"), 3).unwrap();
    assert!(dummy.is_dummy());
    assert_eq!(dummy.config(), &read(&tiny()).unwrap().config().unwrap());
    assert_eq!(dummy.tokenizer().unwrap().encode("ab", false).unwrap(), [7]);
}
