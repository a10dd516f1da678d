//! The metadata of one verify step against the prints of a real engine.

use pagedraft_attention::{AttentionMetadata, BlockTables, MaskKind, MetadataBuilder};
use pagedraft_block_manager::BlockId;
use serde_json::Value;
use std::path::PathBuf;

/// A reference file, or `None` (said aloud) where the references aren't at hand.
fn reference(name: &str) -> Option<Value> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../shared/reference/spec_step"].iter().collect();
    if !folder.is_dir() {
        println!("SKIPPED {name}: {} is not there", folder.display());
        return None;
    }
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// The step that the files describe: 16 blocks a sequence in order as they were prefilled, then one
/// more for each.
fn verify_step(file: &Value, use_cuda_graph: bool) -> AttentionMetadata {
    let setup = |key: &str| file["setup"][key].as_u64().unwrap() as u32;
    let (block_size, sequences) = (setup("block_size"), setup("num_sequences"));
    let (context, drafts) = (setup("context_len"), setup("num_speculative_tokens"));
    let prefilled = context / block_size;
    let mut builder = MetadataBuilder::new(block_size).unwrap();
    for sequence in 0..sequences {
        let mut table: Vec<_> = (sequence * prefilled..(sequence + 1) * prefilled).map(BlockId).collect();
        table.push(BlockId(sequences * prefilled + sequence));
        if file["setup"]["scorer"] == "mqa" {
            builder.push_row(context, drafts + 1, &table, MaskKind::Causal).unwrap();
        } else {
            for token in 0..=drafts {
                builder.push_row(context + token, 1, &table, MaskKind::Causal).unwrap();
            }
        }
    }
    builder.set_use_cuda_graph(use_cuda_graph);
    builder.finish().clone()
}

/// The fields of `expected` as the metadata has them.
fn assert_fields(metadata: &AttentionMetadata, expected: &Value) {
    let found = serde_json::to_value(metadata).unwrap();
    for (field, expected) in expected.as_object().unwrap() {
        assert_eq!(&found[field], expected, "{field}");
    }
}

#[test]
fn eager_verify_steps_of_both_scorers_are_those_of_the_reference() {
    for name in
        ["verify_1seq_mqa_eager.json", "verify_8seq_mqa_eager.json", "verify_8seq_batch_expansion_eager.json"]
    {
        let Some(file) = reference(name) else { continue };
        let metadata = verify_step(&file, false);
        assert_fields(&metadata, &file["metadata"]);
        metadata.check(16).unwrap();
    }
}

#[test]
fn a_graph_step_has_the_reference_s_tables_once_they_are_padded_to_the_longest_length() {
    let Some(file) = reference("verify_8seq_mqa_graph.json") else { return };
    let mut metadata = verify_step(&file, true);
    let width = file["setup"]["max_model_len"].as_u64().unwrap() / 16;
    let padded: BlockTables = metadata.padded_tables(width as usize).unwrap();
    metadata.block_tables = padded;
    assert_fields(&metadata, &file["metadata"]);
}

#[test]
fn metadata_reads_back_from_its_json() {
    for name in ["verify_8seq_mqa_eager.json", "verify_8seq_batch_expansion_eager.json"] {
        let Some(file) = reference(name) else { continue };
        let read: AttentionMetadata = serde_json::from_value(file["metadata"].clone()).unwrap();
        assert_eq!(read, verify_step(&file, false));
    }
}
