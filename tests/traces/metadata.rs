//! The metadata that whole steps of the engine really ran with, as their trace has it.

use std::path::{Path, PathBuf};

use pagedraft::session::{EngineOptions, LoadFormat, ModelRef, Request, Session, TraceOptions};
use pagedraft::workloads::trace::{TraceTables, check_dir};
use serde_json::{Value, json};

use crate::models::directory;

/// Runs 8 requests of 256 prompt tokens to their second token; the lines of the trace.
fn eight_sequences(name: &str, tables: TraceTables) -> (PathBuf, Vec<Value>) {
    let dir = directory(name);
    let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#;
    std::fs::write(dir.join("config.json"), config).unwrap();
    let run = dir.join("run");
    let mut session = Session::open(&EngineOptions {
        load_format: LoadFormat::Dummy,
        num_blocks: Some(256),
        max_num_seqs: 8,
        trace: Some(TraceOptions { dir: run.clone(), tables, format: Default::default() }),
        ..EngineOptions::new(ModelRef::Directory(dir))
    })
    .unwrap();
    for i in 0..8u32 {
        let prompt = (0..256).map(|t| (t * 7 + i * 13) % 64).collect();
        let request = Request { ignore_eos: true, ..Request::new(i.to_string(), prompt, 2) };
        session.submit(request).unwrap();
    }
    while session.has_unfinished() {
        session.step().unwrap();
    }
    session.close(&json!({})).unwrap();
    let lines = std::fs::read_to_string(run.join("trace_steps.jsonl")).unwrap();
    (run, lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn a_prefill_and_a_decode_step_have_the_metadata_that_flash_attention_users_know() {
    let (run, steps) = eight_sequences("metadata-full", TraceTables::Full);
    assert_eq!(steps.len(), 2);
    let prefill = &steps[0]["metadata"];
    assert_eq!(prefill["num_prefills"], 8);
    assert_eq!(prefill["num_prefill_tokens"], 2048);
    assert_eq!(prefill["num_decode_tokens"], 0);
    assert_eq!(prefill["slot_mapping"], json!((0..2048).collect::<Vec<_>>()));
    assert_eq!(prefill["seq_lens"], json!(vec![256; 8]));
    assert_eq!(prefill["context_lens"], json!(vec![0; 8]));
    assert_eq!(prefill["query_start_loc"], json!((0..9).map(|i| i * 256).collect::<Vec<_>>()));
    assert_eq!(prefill["max_query_len"], 256);

    let decode = &steps[1]["metadata"];
    assert_eq!(decode["num_prefills"], 0);
    assert_eq!(decode["num_prefill_tokens"], 0);
    assert_eq!(decode["num_decode_tokens"], 8);
    assert_eq!(decode["slot_mapping"], json!((0..8).map(|i| (128 + i) * 16).collect::<Vec<_>>()));
    assert_eq!(decode["seq_lens"], json!(vec![257; 8]));
    assert_eq!(decode["context_lens"], json!(vec![256; 8]));
    assert_eq!(decode["query_start_loc"], json!((0..9).collect::<Vec<_>>()));
    assert_eq!(decode["seq_start_loc"], json!((0..9).map(|i| i * 257).collect::<Vec<_>>()));
    assert_eq!(decode["max_query_len"], 1);
    assert_eq!(decode["max_prefill_seq_len"], 0);
    assert_eq!(decode["max_decode_seq_len"], 257);
    assert_eq!(decode["use_cuda_graph"], true);
    assert_eq!(steps[1]["input_positions"], json!(vec![256; 8]));
    check_dir(&run).unwrap();
}

#[test]
fn blocks_are_handed_out_in_the_order_of_the_recorded_verify_step() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/spec_step");
    let Ok(text) = std::fs::read_to_string(golden.join("verify_8seq_mqa_eager.json")) else {
        println!("skipped: no recorded step at {}", golden.display());
        return;
    };
    let golden: Value = serde_json::from_str(&text).unwrap();
    let (_, steps) = eight_sequences("metadata-golden", TraceTables::Full);
    // The recorded step verifies two drafts, this one decodes: the tables are the same, and so is each row's first slot.
    assert_eq!(steps[1]["metadata"]["block_tables"], golden["metadata"]["block_tables"]);
    let slots = golden["metadata"]["slot_mapping"].as_array().unwrap();
    let firsts: Vec<_> = slots.iter().step_by(3).cloned().collect();
    assert_eq!(steps[1]["metadata"]["slot_mapping"], Value::Array(firsts));
    assert_eq!(steps[1]["metadata"]["context_lens"], golden["metadata"]["context_lens"]);
}

#[test]
fn a_trace_of_changed_tables_checks_like_a_full_one() {
    let (full, _) = eight_sequences("metadata-tables-full", TraceTables::Full);
    let (delta, steps) = eight_sequences("metadata-tables-delta", TraceTables::Delta);
    assert_eq!(steps[1]["metadata"]["block_tables"][0].as_array().map(Vec::len), Some(17));
    check_dir(&full).unwrap();
    check_dir(&delta).unwrap();
}
