//! The form of the files of a run as JSON Schema (draft 2020-12), derived from the types that read them.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::dsa::{DsaTopkRecord, DsaTraceConfig};
use super::kv_events::KvGroupRecord;
use super::prune::PruneRecord;
use super::record::{ResumeRecord, SetupRecord, StepRecord};
use super::skip_judge::SkipJudgeRecord;
use super::tensor::TensorRecord;
use crate::measures::Summary;
use crate::replay::RequestLine;

/// The file that a schema is for.
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
    /// A line of `trace_tensors.jsonl`.
    Tensors,
}

/// A line of `trace_steps`, by its `event`.
#[derive(JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(dead_code, reason = "only its form is used")]
enum Line {
    /// A step of the engine.
    Step(Box<StepRecord>),
    /// The engine begins to speculate in another way.
    Setup(SetupRecord),
    /// A stopped run is resumed.
    Resume(ResumeRecord),
    /// Which tokens of a prompt went on behind a layer.
    Prune(Box<PruneRecord>),
    /// How the tokens of a block of a canvas were judged.
    SkipJudge(SkipJudgeRecord),
    /// What a layer with sparse attention attended to for a query token. These lines are in `dsa_topk.jsonl`, or coded in `dsa_topk.bin`.
    DsaTopk(Box<DsaTopkRecord>),
}

/// The part of a traced engine's configuration that readers of a trace need. In a replay's run these are
/// fields of `engine`.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its form is used")]
struct EngineConfig {
    /// How many tokens a KV block holds: 16, 32 or 64.
    #[schemars(extend("enum" = [16, 32, 64]))]
    block_size: u32,
    /// The number of KV blocks.
    num_blocks: Option<u64>,
    /// Whether block tables are in every step (`full`) or only where they changed (`delta`).
    #[schemars(extend("enum" = ["full", "delta", null]))]
    trace_tables: Option<String>,
    /// The acceptance rule.
    acceptance: Option<String>,
    /// The numbers of token rows that graphs were captured for.
    graph_sizes: Option<Vec<u64>>,
    /// What the records of sparse attention are about; null if there are none.
    dsa: Option<DsaTraceConfig>,
    /// The KV groups, by their ids. The first is the one that `metadata` describes.
    kv_groups: Option<Vec<KvGroupRecord>>,
    /// The salt of the hashes in `kv_events`, in hexadecimal digits. It stands for the model, the dtypes
    /// and the KV groups.
    kv_salt: Option<String>,
    /// The model's name.
    model_id: Option<String>,
    /// The number of engines of the trace, each with `num_blocks` blocks of its own; 1 if it is missing.
    replicas: Option<u32>,
    /// The seed of everything that is drawn.
    seed: Option<u64>,
}

/// The schema of a file, or of its lines.
#[must_use]
pub fn schema(of: SchemaOf) -> Value {
    let generator = SchemaGenerator::default();
    match of {
        SchemaOf::Steps => steps(generator),
        SchemaOf::Requests => generator.into_root_schema_for::<RequestLine>().to_value(),
        SchemaOf::Summary => generator.into_root_schema_for::<Summary>().to_value(),
        SchemaOf::Config => config(generator),
        SchemaOf::Tensors => generator.into_root_schema_for::<TensorRecord>().to_value(),
    }
}

/// One of the known events, or an object with another event's name.
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
