//! A fault that can be injected, for showing that it is noticed: verify rows replayed on a graph of single tokens.

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::metadata::{AttentionMetadata, MaskKind, PAD_SLOT};

use crate::error::ModelError;
use crate::graph::GraphKey;
use crate::step_inputs::StepInputs;

/// What a graph of single tokens takes these inputs for: token row r is the one query of sequence r.
pub(crate) fn as_single_tokens(
    builder: &mut MetadataBuilder,
    inputs: &StepInputs,
    key: GraphKey,
) -> Result<StepInputs, ModelError> {
    let rows = key.token_rows as usize;
    let groups = inputs.groups.iter().map(|metadata| of_group(builder, metadata, rows));
    let mut seen = StepInputs {
        tokens: inputs.tokens.clone(),
        positions: inputs.positions.clone(),
        groups: groups.collect::<Result<_, _>>()?,
    };
    seen.tokens.resize(rows, 0);
    seen.positions.resize(rows, 0);
    Ok(seen)
}

fn of_group(
    builder: &mut MetadataBuilder,
    metadata: &AttentionMetadata,
    rows: usize,
) -> Result<AttentionMetadata, ModelError> {
    builder.begin();
    for row in 0..rows {
        match (metadata.seq_lens.get(row), metadata.block_tables.get(row)) {
            (Some(&len), Some(table)) => {
                builder.push_row(len.saturating_sub(1), 1, table, MaskKind::Causal)?;
            }
            _ => builder.push_pad_row(1)?,
        }
    }
    let mut seen = builder.finish().clone();
    seen.window = metadata.window;
    seen.slot_mapping.clone_from(&metadata.slot_mapping);
    seen.slot_mapping.resize(rows, PAD_SLOT);
    Ok(seen)
}
