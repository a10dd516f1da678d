//! What one step feeds to the model.

use std::sync::LazyLock;

use pagedraft_attention::metadata::AttentionMetadata;
use serde::ser::{Serialize, SerializeStruct, Serializer};

/// What one step feeds to one segment of a model.
///
/// In JSON the fields are `input_tokens`, `input_positions`, `metadata` (of group 0) and, where the model keeps several KV
/// groups, `more_metadata` with the metadata of groups 1, 2, ...
#[derive(Clone, Debug, Default)]
pub struct StepInputs {
    /// Token ids, one a token row.
    pub tokens: Vec<u32>,
    /// Position of each token in its sequence (it decides the rotation), one a token row.
    pub positions: Vec<u32>,
    /// The attention metadata of each KV group of the architecture, in the order of their ids. A group that the segment does
    /// not use may have empty metadata.
    pub groups: Vec<AttentionMetadata>,
}

/// The metadata of a step that has none.
static NO_METADATA: LazyLock<AttentionMetadata> = LazyLock::new(AttentionMetadata::default);

impl StepInputs {
    /// The inputs of a model that keeps one KV group.
    #[must_use]
    pub fn dense(tokens: Vec<u32>, positions: Vec<u32>, metadata: AttentionMetadata) -> Self {
        Self { tokens, positions, groups: vec![metadata] }
    }

    /// The metadata of group 0; empty metadata if the step has none at all.
    #[must_use]
    pub fn metadata(&self) -> &AttentionMetadata {
        self.group(0)
    }

    /// The metadata of a group; empty metadata if the step has none for it.
    #[must_use]
    pub fn group(&self, group: usize) -> &AttentionMetadata {
        self.groups.get(group).unwrap_or(&NO_METADATA)
    }

    /// The metadata of group 0, to be changed; it is made if the step has none.
    pub fn metadata_mut(&mut self) -> &mut AttentionMetadata {
        if self.groups.is_empty() {
            self.groups.push(AttentionMetadata::default());
        }
        &mut self.groups[0]
    }

    /// The query tokens of the longest metadata row of any group.
    #[must_use]
    pub fn max_query_len(&self) -> u32 {
        self.groups.iter().map(|metadata| metadata.max_query_len).max().unwrap_or(0)
    }

    /// How many metadata rows the group with the most of them has.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.groups.iter().map(AttentionMetadata::num_rows).max().unwrap_or(0)
    }
}

impl Serialize for StepInputs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let more = self.groups.get(1..).filter(|more| !more.is_empty());
        let mut fields = serializer.serialize_struct("StepInputs", 3 + usize::from(more.is_some()))?;
        fields.serialize_field("input_tokens", &self.tokens)?;
        fields.serialize_field("input_positions", &self.positions)?;
        fields.serialize_field("metadata", self.metadata())?;
        if let Some(more) = more {
            fields.serialize_field("more_metadata", more)?;
        }
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_metadata_of_other_groups_only_where_there_are_some() {
        let json = |inputs: &StepInputs| serde_json::to_value(inputs).unwrap();
        let metadata = || AttentionMetadata { num_prefills: 3, ..AttentionMetadata::default() };
        let mut inputs = StepInputs::dense(vec![7], vec![0], metadata());
        let one = json(&inputs);
        assert_eq!((&one["input_tokens"][0], &one["metadata"]["num_prefills"]), (&7.into(), &3.into()));
        assert!(one.get("more_metadata").is_none());
        inputs.groups.push(AttentionMetadata { max_query_len: 5, ..metadata() });
        assert_eq!(json(&inputs)["metadata"], one["metadata"]);
        assert_eq!(json(&inputs)["more_metadata"][0]["max_query_len"], 5);
        assert_eq!(json(&StepInputs::default())["metadata"]["num_prefills"], 0);
        assert_eq!(inputs.max_query_len(), 5);
    }
}
