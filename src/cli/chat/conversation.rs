//! The messages of a conversation, and the lines that are typed into it.

use pagedraft::serve::{Asked, ChatTemplate, Message};
use serde_json::Value;

/// What a typed line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Say(&'a str),
    Clear,
    /// To begin anew with this system message, or with none.
    System(Option<&'a str>),
    Regenerate,
    Stats,
    Help,
    Quit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    /// Reads a line. What begins with `/` is a command, and what begins with `//` is a message that begins with `/`.
    pub fn read(line: &'a str) -> Self {
        let Some(command) = line.strip_prefix('/') else { return Self::Say(line) };
        if command.starts_with('/') {
            return Self::Say(command);
        }
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        match (name, rest) {
            ("/system", text) => Self::System(text),
            ("/clear", None) => Self::Clear,
            ("/regen", None) => Self::Regenerate,
            ("/stats", None) => Self::Stats,
            ("/help", None) => Self::Help,
            ("/quit" | "/exit", None) => Self::Quit,
            _ => Self::Unknown(name),
        }
    }
}

/// The messages so far.
pub struct Conversation {
    template: ChatTemplate,
    system: Option<String>,
    messages: Vec<Message>,
}

impl Conversation {
    /// A conversation in which nothing was said.
    pub fn new(template: ChatTemplate, system: Option<String>) -> Self {
        let mut new = Self { template, system, messages: Vec::new() };
        new.clear();
        new
    }

    /// Begins anew, with the same system message.
    pub fn clear(&mut self) {
        self.messages.clear();
        if let Some(system) = self.system.clone() {
            self.push("system", system);
        }
    }

    /// Begins anew with another system message.
    pub fn begin(&mut self, system: Option<&str>) {
        self.system = system.map(str::to_owned);
        self.clear();
    }

    pub fn say(&mut self, text: &str) {
        self.push("user", text.to_owned());
    }

    pub fn answered(&mut self, text: String) {
        self.push("assistant", text);
    }

    /// Forgets the last answer. Returns whether a message is there that can be answered.
    pub fn forget_answer(&mut self) -> bool {
        if self.last_is("assistant") {
            self.messages.pop();
        }
        self.last_is("user")
    }

    /// Forgets the last message, which could not be answered.
    pub fn forget_message(&mut self) {
        if self.last_is("user") {
            self.messages.pop();
        }
    }

    /// The prompt of the next answer.
    pub fn prompt(&self) -> Result<String, String> {
        self.template.render(Asked { messages: &self.messages, add_generation_prompt: true, variables: None })
    }

    fn last_is(&self, role: &str) -> bool {
        self.messages.last().is_some_and(|message| message.get("role").and_then(Value::as_str) == Some(role))
    }

    fn push(&mut self, role: &str, content: String) {
        let fields = [("role", role.to_owned()), ("content", content)];
        self.messages
            .push(fields.map(|(name, text)| (name.to_owned(), Value::String(text))).into_iter().collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_begins_with_a_slash_is_a_command_unless_the_slash_is_doubled() {
        assert_eq!(Line::read("hello /clear"), Line::Say("hello /clear"));
        assert_eq!(Line::read("//clear"), Line::Say("/clear"));
        assert_eq!(Line::read("/system  Be brief. "), Line::System(Some("Be brief.")));
        assert_eq!(Line::read("/system"), Line::System(None));
        assert_eq!([Line::read("/clear"), Line::read("/clear all")], [Line::Clear, Line::Unknown("/clear")]);
        assert_eq!(Line::read("/cleer"), Line::Unknown("/cleer"));
    }

    #[test]
    fn an_answer_can_be_given_anew_and_a_new_conversation_keeps_its_system_message() {
        let mut talk = Conversation::new(ChatTemplate::builtin().unwrap(), Some("Be kind.".to_owned()));
        let empty = talk.prompt().unwrap();
        assert!(empty.contains("Be kind.") && !talk.forget_answer());
        talk.say("Who is there?");
        let asked = talk.prompt().unwrap();
        talk.answered("Nobody.".to_owned());
        assert!(talk.prompt().unwrap().contains("Nobody."));
        assert!(talk.forget_answer());
        assert_eq!(talk.prompt().unwrap(), asked);
        talk.forget_message();
        assert_eq!(talk.prompt().unwrap(), empty);
        talk.say("Again.");
        talk.clear();
        assert_eq!(talk.prompt().unwrap(), empty);
        talk.begin(None);
        assert!(!talk.prompt().unwrap().contains("kind"));
    }
}
