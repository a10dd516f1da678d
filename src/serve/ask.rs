//! What a client asks for: the bodies of `/v1/completions` and `/v1/chat/completions`.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};

use pagedraft_workloads::json_fault::JsonTexts;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::prompt::Prompts;

/// The most samples of one prompt.
const MOST_SAMPLES: u32 = 128;
/// The most log probabilities a token: what vLLM allows if it is told nothing else.
const MOST_LOGPROBS: u32 = 20;

/// The body of a completion or of a chat completion. Fields have OpenAI's names, or vLLM's where OpenAI has none. A field that
/// is missing or null has its default; fields that are not known are passed over.
#[derive(Debug, Default, Deserialize)]
pub struct Ask {
    pub model: Option<String>,
    /// Of a completion.
    pub prompt: Option<Prompts>,
    /// Of a chat completion. What a message has beside role and content is the template's to use.
    pub messages: Option<Vec<Map<String, Value>>>,
    pub max_tokens: Option<u32>,
    /// The newer name of `max_tokens` in chats.
    pub max_completion_tokens: Option<u32>,
    pub min_tokens: Option<u32>,
    pub ignore_eos: Option<bool>,
    pub n: Option<u32>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub seed: Option<i128>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    /// What is added to the logits of tokens, by their ids, which JSON can only write as texts.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub stop: Option<JsonTexts>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub include_stop_str_in_output: Option<bool>,
    pub logprobs: Option<Logprobs>,
    pub top_logprobs: Option<u32>,
    pub prompt_logprobs: Option<u32>,
    pub return_token_ids: Option<bool>,
    pub echo: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub priority: Option<i32>,
    pub cache_salt: Option<String>,
    pub add_special_tokens: Option<bool>,
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<bool>,
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Absent: as the engine's flags say; null: not at all; a spec, or the name of a preset.
    #[serde(default, deserialize_with = "said")]
    pub prune: Option<Option<Value>>,
    pub return_indexer_topk: Option<bool>,
    /// The most drafts that may follow a token; the engine's flags may allow fewer.
    pub num_speculative_tokens: Option<u32>,
    /// What this engine can't do. Each is refused by its name if it asks for more than nothing.
    pub audio: Option<Value>,
    pub allowed_token_ids: Option<Value>,
    pub bad_words: Option<Value>,
    pub best_of: Option<u32>,
    pub chat_template: Option<Value>,
    pub documents: Option<Value>,
    pub functions: Option<Value>,
    pub guided_choice: Option<Value>,
    pub guided_grammar: Option<Value>,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<Value>,
    pub logits_processors: Option<Value>,
    pub modalities: Option<Value>,
    pub prompt_embeds: Option<Value>,
    pub response_format: Option<Value>,
    pub skip_special_tokens: Option<bool>,
    pub structured_outputs: Option<Value>,
    pub suffix: Option<Value>,
    pub tool_choice: Option<Value>,
    pub tools: Option<Value>,
    pub truncate_prompt_tokens: Option<Value>,
    pub use_beam_search: Option<bool>,
}

/// A field that is there, though it may be null.
fn said<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<Value>>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// What a stream is to carry beside the text.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    /// A last chunk with the usage and no choices.
    pub include_usage: Option<bool>,
    /// The usage so far in every chunk.
    pub continuous_usage_stats: Option<bool>,
}

/// A completion asks for a number of log probabilities, a chat says whether it wants any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logprobs {
    Wanted(bool),
    Best(u32),
}

impl<'de> Deserialize<'de> for Logprobs {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Logprobs;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 0 on, or true or false in a chat")
            }

            fn visit_bool<E>(self, wanted: bool) -> Result<Logprobs, E> {
                Ok(Logprobs::Wanted(wanted))
            }

            fn visit_u64<E: Error>(self, best: u64) -> Result<Logprobs, E> {
                u32::try_from(best)
                    .map(Logprobs::Best)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(best), &self))
            }
        }
        json.deserialize_any(Either)
    }
}

/// Whether a field asks for nothing: `null`, `false`, or an empty text, list or object.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(wanted) => !wanted,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

impl Ask {
    /// Checks what depends on no model.
    ///
    /// # Errors
    ///
    /// A value is out of its range, or the engine can't do what a field asks for. The error names the field.
    pub fn check(&self) -> Result<(), ApiError> {
        self.refuse_unsupported()?;
        let n = self.n();
        if n == 0 || n > MOST_SAMPLES {
            return Err(ApiError::bad(format!("n is {n}, it should be from 1 to {MOST_SAMPLES}")).at("n"));
        }
        let counts = [
            ("logprobs", self.logprobs_count()),
            ("top_logprobs", self.top_logprobs),
            ("prompt_logprobs", self.prompt_logprobs),
        ];
        for (name, count) in counts {
            if let Some(count) = count.filter(|&count| count > MOST_LOGPROBS) {
                let most = format!("{name} is {count}, it should be {MOST_LOGPROBS} at most");
                return Err(ApiError::bad(most).at(name));
            }
        }
        if self.cache_salt.as_ref().is_some_and(String::is_empty) {
            let message = "cache_salt is an empty text: leave it out, or name whose prefixes may be shared";
            return Err(ApiError::bad(message).at("cache_salt"));
        }
        if self.stop.as_ref().is_some_and(|stop| stop.0.iter().any(String::is_empty)) {
            return Err(ApiError::bad("a stop string is empty").at("stop"));
        }
        if self.stream_options.is_some() && !self.stream() {
            let message = "stream_options needs stream: it says what a stream carries";
            return Err(ApiError::bad(message).at("stream_options"));
        }
        Ok(())
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let constraint = "answers can't be bound to a form here: ask for it in words, and check what comes";
        let tools = "the model is not told of tools, and its answers are not read for calls: leave it out";
        let unknown = "it would change the answer, and this server does not know how: leave it out";
        let is_there = |field: &Option<Value>| field.as_ref().is_some_and(|value| !is_nothing(value));
        let format = self.response_format.as_ref().filter(|format| !is_nothing(format));
        let is_text = |format: &&Value| format.get("type").and_then(Value::as_str) == Some("text");
        let only_text =
            |modes: &Value| modes.as_array().is_some_and(|modes| modes.iter().all(|m| m == "text"));
        let no_tools = self.tool_choice.as_ref().is_some_and(|choice| choice == "none");
        let asked = [
            ("response_format", format.is_some_and(|format| !is_text(&format)), constraint),
            ("guided_choice", is_there(&self.guided_choice), constraint),
            ("guided_grammar", is_there(&self.guided_grammar), constraint),
            ("guided_json", is_there(&self.guided_json), constraint),
            ("guided_regex", is_there(&self.guided_regex), constraint),
            ("structured_outputs", is_there(&self.structured_outputs), constraint),
            ("allowed_token_ids", is_there(&self.allowed_token_ids), constraint),
            ("bad_words", is_there(&self.bad_words), constraint),
            ("tools", is_there(&self.tools) && !no_tools, tools),
            ("functions", is_there(&self.functions), tools),
            ("audio", is_there(&self.audio), "only text comes out of these models: leave it out"),
            (
                "modalities",
                self.modalities.as_ref().is_some_and(|modes| !is_nothing(modes) && !only_text(modes)),
                "only text comes out of these models: ask for [\"text\"]",
            ),
            ("suffix", is_there(&self.suffix), "these models only go on from a prompt: leave it out"),
            ("best_of", self.best_of.is_some_and(|best| best != self.n()), "all samples are given: use n"),
            (
                "use_beam_search",
                self.use_beam_search == Some(true),
                "tokens are drawn or greedy: leave it out",
            ),
            (
                "skip_special_tokens",
                self.skip_special_tokens == Some(false),
                "texts never show special tokens: return_token_ids has their ids",
            ),
            (
                "chat_template",
                is_there(&self.chat_template),
                "a template of a client is not run: start the server with --chat-template",
            ),
            ("documents", is_there(&self.documents), "put them into a message"),
            ("prompt_embeds", is_there(&self.prompt_embeds), "give the prompt as text or as token ids"),
            ("logits_processors", is_there(&self.logits_processors), unknown),
            (
                "truncate_prompt_tokens",
                is_there(&self.truncate_prompt_tokens),
                "cut the prompt before you send it",
            ),
        ];
        match asked.iter().find(|(_, is_asked, _)| *is_asked) {
            Some((name, _, why)) => {
                Err(ApiError::unsupported(name, format!("{name} is not supported: {why}")))
            }
            None => Ok(()),
        }
    }

    /// The number of samples of each prompt.
    pub fn n(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// Whether the answer comes in pieces.
    pub fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether the prompt is told again in front of the answer.
    pub fn echo(&self) -> bool {
        self.echo.unwrap_or(false)
    }

    /// The most tokens to generate, if it says.
    pub fn most_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// How many of the best log probabilities it wants with each token; `None` if it wants none at all.
    pub fn logprobs_count(&self) -> Option<u32> {
        match self.logprobs {
            None | Some(Logprobs::Wanted(false)) => None,
            Some(Logprobs::Wanted(true)) => Some(self.top_logprobs.unwrap_or(0)),
            Some(Logprobs::Best(best)) => Some(best),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagedraft_workloads::json_fault;

    fn ask(json: &str) -> Result<Ask, String> {
        json_fault::parse::<Ask>(json.as_bytes()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn nulls_and_fields_that_nobody_knows_are_passed_over() {
        let ask = ask(
            r#"{"prompt": "a", "logprobs": null, "stop": null, "seed": null, "response_format": null, "tools": [],
                "no_stop_trim": true, "return_hidden_states": false, "kv_transfer_params": {"a": 1}, "user": "u"}"#,
        );
        let ask = ask.unwrap();
        ask.check().unwrap();
        assert_eq!((ask.logprobs_count(), ask.n(), ask.stream()), (None, 1, false));
        assert!(ask.prune.is_none());
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named() {
        for (json, told) in [
            (r#"{"temperature": "hot"}"#, "`temperature`: expected a number"),
            (r#"{"max_tokens": -1}"#, "`max_tokens`"),
            (r#"{"logprobs": "5"}"#, "`logprobs`: expected a whole number from 0 on, or true or false"),
            (r#"{"logit_bias": {"5": []}}"#, "`logit_bias.5`"),
            (r#"{"messages": ["hello"]}"#, "`messages[0]`"),
            (r#"{"stop": [1]}"#, "`stop[0]`: expected a text"),
            (r#"{"stream_options": {"include_usage": 1}}"#, "`stream_options.include_usage`"),
        ] {
            let error = ask(json).unwrap_err();
            assert!(error.contains(told), "{json}: {error}");
        }
    }

    #[test]
    fn what_the_engine_cannot_do_is_refused_by_name() {
        for json in [
            r#"{"response_format": {"type": "json_schema", "json_schema": {}}}"#,
            r#"{"response_format": {"type": "json_object"}}"#,
            r#"{"guided_regex": "a+"}"#,
            r#"{"structured_outputs": {"choice": ["a"]}}"#,
            r#"{"tools": [{"type": "function"}]}"#,
            r#"{"suffix": "end"}"#,
            r#"{"best_of": 3, "n": 2}"#,
            r#"{"modalities": ["text", "audio"]}"#,
            r#"{"skip_special_tokens": false}"#,
        ] {
            let name = json.split('"').nth(1).unwrap();
            let error = ask(json).unwrap().check().unwrap_err();
            assert_eq!(error.status().as_u16(), 422, "{json}");
            let told: Value = serde_json::from_str(&error.json()).unwrap();
            assert_eq!(told["error"]["param"], name, "{told}");
            assert!(told["error"]["message"].as_str().unwrap().contains(name), "{told}");
        }
        for json in [
            r#"{"response_format": {"type": "text"}, "modalities": ["text"], "best_of": 1}"#,
            r#"{"tools": [{"type": "function"}], "tool_choice": "none"}"#,
        ] {
            ask(json).unwrap().check().unwrap();
        }
    }

    #[test]
    fn a_value_out_of_its_range_is_refused() {
        for (json, param) in [
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 129}"#, "n"),
            (r#"{"logprobs": 21}"#, "logprobs"),
            (r#"{"logprobs": true, "top_logprobs": 21}"#, "logprobs"),
            (r#"{"stop": ""}"#, "stop"),
            (r#"{"cache_salt": ""}"#, "cache_salt"),
            (r#"{"stream_options": {}}"#, "stream_options"),
        ] {
            let error = ask(json).unwrap().check().unwrap_err();
            assert_eq!(error.status().as_u16(), 400);
            let told: Value = serde_json::from_str(&error.json()).unwrap();
            assert_eq!(told["error"]["param"], param, "{told}");
        }
    }
}
