//! Conversations in the form of text.

use super::{DatasetError, json_items::JsonItem};

/// A turn of a conversation.
pub(super) struct Turn {
    pub(super) role: Role,
    pub(super) text: String,
}

/// Who speaks in a turn.
pub(super) enum Role {
    User,
    Assistant,
    /// Somebody else, such as a system prompt or a tool, by the name in the file.
    Other(String),
}

impl Role {
    /// The role of a name; upper and lower case mean the same. The published ShareGPT files name the assistant after the program
    /// that answered: `gpt`, `chatgpt`, `bing` or `bard`.
    pub(super) fn named(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "human" | "user" => Self::User,
            "gpt" | "chatgpt" | "bing" | "bard" | "assistant" | "model" => Self::Assistant,
            "system" => Self::Other("System".into()),
            _ => Self::Other(name.to_owned()),
        }
    }

    fn label(&self) -> &str {
        match self {
            Self::User => "User",
            Self::Assistant => "Assistant",
            Self::Other(name) => name,
        }
    }
}

/// The turns in the field `conversations`, which is a list of `{from, value}`.
pub(super) fn turns_of(item: &JsonItem) -> Result<Vec<Turn>, DatasetError> {
    let mut turns = Vec::new();
    for (at, turn) in item.list("conversations")?.iter().enumerate() {
        let text = |field: &str| match turn.get(field) {
            Some(serde_json::Value::String(text)) => Ok(text.as_str()),
            Some(serde_json::Value::Null) if field == "value" => Ok(""),
            _ => Err(item.error(&format!("turn {} of `conversations` has no text `{field}`", at + 1))),
        };
        turns.push(Turn { role: Role::named(text("from")?), text: text("value")?.to_owned() });
    }
    Ok(turns)
}

/// The text of a conversation, turn by turn.
#[derive(Default)]
pub(super) struct Transcript(String);

impl Transcript {
    /// Adds a turn as a line: who speaks, and what.
    pub(super) fn push(&mut self, role: &Role, text: &str) {
        self.0.push_str(role.label());
        self.0.push_str(": ");
        self.0.push_str(text);
        self.0.push('\n');
    }

    /// The text as a prompt: it ends with the word after which the assistant's answer belongs.
    pub(super) fn prompt(&self) -> String {
        format!("{}{}:", self.0, Role::Assistant.label())
    }

    /// Whether no turn was added.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
