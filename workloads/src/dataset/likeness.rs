//! Guesses what a file is, for the message when it is not what was asked for.

/// The columns or fields by which kinds of datasets are recognised. The first kind is taken of which the
/// file has all.
const MARKS: [(&str, &[&str]); 11] = [
    ("burstgpt", &["Timestamp", "Request tokens"]),
    ("azure", &["TIMESTAMP", "ContextTokens"]),
    ("vidur", &["num_prefill_tokens"]),
    ("mooncake", &["hash_ids"]),
    ("sharegpt", &["conversations"]),
    ("sharegpt", &["input_toks"]),
    ("longbench-v2", &["choice_A"]),
    ("spec-bench", &["turns"]),
    ("longbench", &["context", "answers"]),
    ("longbench", &["context", "input"]),
    ("ruler", &["input", "outputs"]),
];

/// The kind of dataset that has such columns or fields.
pub(super) fn workload_with(names: &[&str]) -> Option<&'static str> {
    MARKS.iter().find(|(_, marks)| marks.iter().all(|m| names.contains(m))).map(|(kind, _)| *kind)
}

/// The message that a column or field (`what`) is missing. It lists those that there are, and says what the
/// file seems to be.
pub(super) fn missing(what: &str, name: &str, found: &[&str], workload: &str) -> String {
    let mut text = format!("has no {what} `{name}`; its {what}s are {}", listed(found));
    if let Some(other) = workload_with(found).filter(|&other| other != workload) {
        text.push_str(": is it --workload ");
        text.push_str(other);
        text.push('?');
    }
    text
}

/// Lists names, but not too many of them.
fn listed(names: &[&str]) -> String {
    const MOST: usize = 20;
    let mut shown_names: Vec<String> = names.iter().take(MOST).map(|name| shown(name)).collect();
    if names.len() > MOST {
        shown_names.push(format!("and {} more", names.len() - MOST));
    }
    if shown_names.is_empty() { "none".into() } else { shown_names.join(", ") }
}

/// A value of a file as messages quote it, shortened if it is long.
pub(super) fn shown(value: &str) -> String {
    const MOST: usize = 40;
    let mut text: String = value.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() < value.len() {
        text.push('…');
    }
    format!("`{text}`")
}
