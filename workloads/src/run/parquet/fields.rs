//! Defines which parts of a line have columns.

/// A part of a line. If it is missing or has another type, its value is null.
pub(super) enum Field {
    Text,
    Integer,
    /// 64 unsigned bits, in a column of type UINT_64.
    Bits,
    Real,
    Group(&'static [(&'static str, Field)]),
    List(&'static Field),
}

use Field::{Bits, Group, Integer, List, Real, Text};

const ROW: Field = Group(&[
    ("request_id", Text),
    ("kind", Text),
    ("num_computed", Integer),
    ("num_new", Integer),
    ("num_drafts", Integer),
    ("drafts_max", Integer),
]);

const OUTCOME: Field = Group(&[
    ("request_id", Text),
    ("token_ids", List(&Integer)),
    ("num_drafts", Integer),
    ("num_accepted", Integer),
    ("finish_reason", Text),
]);

const METADATA: Field = Group(&[
    ("num_prefills", Integer),
    ("num_prefill_tokens", Integer),
    ("num_decode_tokens", Integer),
    ("slot_mapping", List(&Integer)),
    ("seq_lens", List(&Integer)),
    ("context_lens", List(&Integer)),
    ("query_start_loc", List(&Integer)),
    ("seq_start_loc", List(&Integer)),
    ("max_query_len", Integer),
    ("max_prefill_seq_len", Integer),
    ("max_decode_seq_len", Integer),
    ("block_tables", List(&List(&Integer))),
    ("window", Integer),
]);

const KV_EVENT: Field = Group(&[
    ("kind", Text),
    ("group", Text),
    ("block", Integer),
    ("hash", Bits),
    ("parent", Bits),
    ("num_tokens", Integer),
]);

/// A line of `trace_steps`. The columns have the names of its fields.
pub(super) static STEP: Field = Group(&[
    ("event", Text),
    ("step", Integer),
    ("replica", Integer),
    ("mode", Text),
    (
        "time_us",
        Group(&[
            ("schedule", Real),
            ("metadata", Real),
            ("propose", Real),
            ("execute", Real),
            ("sample", Real),
        ]),
    ),
    ("rows", List(&ROW)),
    ("input_tokens", List(&Integer)),
    ("input_positions", List(&Integer)),
    ("plan_rows", List(&Integer)),
    ("metadata", METADATA),
    ("outcome", List(&OUTCOME)),
    ("preempted", List(&Text)),
    ("finished", List(&Text)),
    (
        "pool",
        Group(&[
            ("num_blocks", Integer),
            ("used", Integer),
            ("free", Integer),
            ("cached", Integer),
            ("bytes_total", Integer),
            ("bytes_used", Integer),
            ("bytes_free", Integer),
            ("bytes_cached", Integer),
            ("bytes_fragmented", Integer),
        ]),
    ),
    ("kv_events", List(&KV_EVENT)),
    // Of other events than steps.
    ("request_id", Text),
    ("layer", Integer),
    ("block", Integer),
    ("pass", Integer),
]);

/// The schema: the columns of the fields in their order, then one with the whole text.
pub(super) fn message_type(text: &str) -> String {
    let mut message = "message line {\n".to_owned();
    if let Group(fields) = &STEP {
        fields.iter().for_each(|(name, field)| declare(name, field, &mut message));
    }
    message.push_str(&format!("required binary {text} (STRING);\n}}"));
    message
}

fn declare(name: &str, field: &Field, message: &mut String) {
    match field {
        Text => message.push_str(&format!("optional binary {name} (STRING);\n")),
        Integer => message.push_str(&format!("optional int64 {name};\n")),
        Bits => message.push_str(&format!("optional int64 {name} (INTEGER(64,false));\n")),
        Real => message.push_str(&format!("optional double {name};\n")),
        Group(fields) => {
            message.push_str(&format!("optional group {name} {{\n"));
            fields.iter().for_each(|(name, field)| declare(name, field, message));
            message.push_str("}\n");
        }
        List(element) => {
            message.push_str(&format!("optional group {name} (LIST) {{\nrepeated group list {{\n"));
            declare("element", element, message);
            message.push_str("}\n}\n");
        }
    }
}
