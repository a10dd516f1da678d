//! What the files of a run look like, as JSON Schema (draft 2020-12), made from the types that read them.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::kv_events::KvGroupRecord;
use super::record::{ResumeRecord, SetupRecord, StepRecord};
use crate::measures::Summary;
use crate::replay::RequestLine;

/// Which file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchemaOf {
    /// A line of `trace_steps`.
    #[default]
    Steps,
    /// A line of `requests.jsonl`.
    Requests,
    /// `summary.json`.
    Summary,
    /// `config.json`.
    Config,
}

/// A line of `trace_steps`, by its `event`.
#[derive(JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(dead_code, reason = "only its form is used")]
enum Line {
    /// A step of the engine.
    Step(Box<StepRecord>),
    /// Another way to speculate.
    Setup(SetupRecord),
    /// A stopped run goes on.
    Resume(ResumeRecord),
}

/// The configuration of a traced engine: what readers of a trace have to know, beside anything else. In a replay's run
/// these are fields of `engine`.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its form is used")]
struct EngineConfig {
    /// Tokens a KV block: 16, 32 or 64.
    #[schemars(extend("enum" = [16, 32, 64]))]
    block_size: u32,
    /// KV blocks.
    num_blocks: Option<u64>,
    /// Whether block tables are in every step (`full`) or where they changed (`delta`).
    #[schemars(extend("enum" = ["full", "delta", null]))]
    trace_tables: Option<String>,
    /// Which drafts stand.
    acceptance: Option<String>,
    /// Token rows that graphs were captured at.
    graph_sizes: Option<Vec<u64>>,
    /// The KV groups, by their ids. The first is the one that `metadata` is of.
    kv_groups: Option<Vec<KvGroupRecord>>,
    /// The salt of the hashes in `kv_events` in hexadecimal digits: it stands for the model, the dtypes and the KV groups.
    kv_salt: Option<String>,
    /// The model's name.
    model_id: Option<String>,
    /// Engines that the trace is of, each with `num_blocks` of its own; 1 where it is not said.
    replicas: Option<u32>,
    /// Seed of anything drawn.
    seed: Option<u64>,
}

/// The schema of a file's lines, or of the file.
#[must_use]
pub fn schema(of: SchemaOf) -> Value {
    let generator = SchemaGenerator::default();
    match of {
        SchemaOf::Steps => steps(generator),
        SchemaOf::Requests => generator.into_root_schema_for::<RequestLine>().to_value(),
        SchemaOf::Summary => generator.into_root_schema_for::<Summary>().to_value(),
        SchemaOf::Config => config(generator),
    }
}

/// One of the events that are known, or an object with the name of another.
fn steps(generator: SchemaGenerator) -> Value {
    let mut schema = generator.into_root_schema_for::<Line>().to_value();
    if let Some(events) = schema.get_mut("oneOf").and_then(Value::as_array_mut) {
        let known: Vec<Value> =
            events.iter().filter_map(|event| event.pointer("/properties/event/const").cloned()).collect();
        events.push(json!({
            "description": "Another event, of which nothing is said here.",
            "type": "object",
            "properties": {"event": {"type": "string", "not": {"enum": known}}},
            "required": ["event"],
        }));
    }
    schema
}

fn config(generator: SchemaGenerator) -> Value {
    let mut schema = generator.into_root_schema_for::<EngineConfig>().to_value();
    let Some(fields) = schema.as_object_mut() else { return schema };
    let part = |fields: &serde_json::Map<String, Value>| {
        let named = ["type", "properties", "required"];
        named
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), fields.get(*name)?.clone())))
            .collect::<Value>()
    };
    let engine = part(fields);
    for name in ["type", "properties", "required"] {
        fields.remove(name);
    }
    fields.insert("title".to_owned(), json!("Config"));
    fields.insert("type".to_owned(), json!("object"));
    fields.insert(
        "properties".to_owned(),
        json!({"schema_version": {"const": super::SCHEMA_VERSION, "description": "Of the form of all files."}}),
    );
    fields.insert("required".to_owned(), json!(["schema_version"]));
    let inside = json!({"properties": {"engine": engine.clone()}, "required": ["engine"]});
    fields.insert("anyOf".to_owned(), json!([engine, inside]));
    schema
}
