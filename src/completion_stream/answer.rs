//! Makes a completion from the events of its stream.

use pagedraft_workloads::replay::{StreamEnd, TokenCount, Usage};
use serde::Deserialize;
use serde_json::Value;

use super::failure::Failure;
use super::server_sent::Events;
use super::shortened;

/// A chunk of a completion, as far as it is looked at.
#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<ChunkUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    finish_reason: Option<String>,
    token_ids: Option<Vec<u32>>,
}

#[derive(Clone, Copy, Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

/// What has come of a completion.
#[derive(Default)]
pub struct Answer {
    events: Events,
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    text: String,
    token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
    usage: Option<ChunkUsage>,
    /// Whether the server counts its tokens in each chunk.
    continuous: bool,
    tokens: u32,
    /// Whether `[DONE]` has come.
    done: bool,
    failure: Option<Failure>,
}

impl Answer {
    /// Takes the next bytes of the stream. Returns the number of output tokens that came with them.
    ///
    /// # Errors
    ///
    /// The stream tells an error, or something that is no completion.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<u32, Failure> {
        let Self { events, seen } = self;
        let before = seen.tokens;
        let fed = events.feed(bytes, |data| seen.event(data));
        if let Some(failure) = seen.failure.take() {
            return Err(failure);
        }
        fed.map_err(|error| Failure::new("malformed", error.to_string()))?;
        Ok(seen.tokens - before)
    }

    /// Whether the stream has told that nothing more comes.
    pub fn is_done(&self) -> bool {
        self.seen.done
    }

    /// Whether all of the output has come: its end was told, or why it ended.
    pub fn is_whole(&self) -> bool {
        self.seen.done || self.seen.finish_reason.is_some()
    }

    /// The whole answer, whose last byte came at `at_ns`.
    ///
    /// # Errors
    ///
    /// The stream ended before the answer did, or the server ended it for a fault of its own.
    pub fn end(self, at_ns: u64) -> Result<StreamEnd, Failure> {
        if !self.is_whole() {
            let error = "the stream ended before a finish_reason or [DONE]";
            return Err(Failure::new("cut_stream", error.to_owned()));
        }
        let Seen { text, token_ids, finish_reason, usage, continuous, .. } = self.seen;
        if let Some(reason @ ("abort" | "error")) = finish_reason.as_deref() {
            let error = format!("the server ended it with the finish_reason {reason:?}");
            return Err(Failure::new("server_error", error));
        }
        Ok(StreamEnd {
            at_ns,
            finish_reason,
            text,
            token_ids,
            usage: usage.map(|usage| Usage {
                prompt_tokens: usage.prompt_tokens,
                output_tokens: usage.completion_tokens,
                cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens),
            }),
            counted_by: match usage {
                Some(_) if continuous => TokenCount::ContinuousUsage,
                Some(_) => TokenCount::Usage,
                None => TokenCount::Chunks,
            },
        })
    }
}

impl Seen {
    fn event(&mut self, data: &[u8]) {
        if self.done || self.failure.is_some() {
            return;
        }
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        let told = || shortened(&String::from_utf8_lossy(data));
        match serde_json::from_slice::<Chunk>(data) {
            Ok(Chunk { error: Some(error), .. }) if !error.is_null() => {
                let error = format!("the server tells an error: {}", shortened(&error.to_string()));
                self.failure = Some(Failure::new("server_error", error));
            }
            Ok(chunk) => self.chunk(chunk),
            Err(error) => {
                let error = format!("an event of the stream is no completion: {error}: {}", told());
                self.failure = Some(Failure::new("malformed", error));
            }
        }
    }

    fn chunk(&mut self, chunk: Chunk) {
        let ended = chunk.choices.iter().flatten().any(|choice| choice.finish_reason.is_some());
        let told = chunk.choices.as_ref().is_some_and(|choices| !choices.is_empty());
        let mut has_text = false;
        for choice in chunk.choices.into_iter().flatten() {
            let text = choice.text.unwrap_or_default();
            has_text |= !text.is_empty();
            self.text.push_str(&text);
            if let Some(ids) = choice.token_ids {
                self.token_ids.get_or_insert_default().extend(ids);
            }
            self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        }
        // A count beside the last piece is one of the whole. Beside an earlier piece it counts the pieces so far.
        self.continuous |= chunk.usage.is_some() && told && !ended;
        match chunk.usage.filter(|_| self.continuous) {
            Some(usage) => self.tokens = self.tokens.max(usage.completion_tokens),
            None => self.tokens = self.tokens.saturating_add(u32::from(has_text)),
        }
        self.usage = chunk.usage.or(self.usage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stream(chunks: &[Value]) -> String {
        let events = chunks.iter().map(|chunk| format!("data: {chunk}\n\n"));
        events.chain(["data: [DONE]\n\n".to_owned()]).collect()
    }

    fn piece(text: &str) -> Value {
        json!({"choices": [{"index": 0, "text": text, "finish_reason": null}]})
    }

    fn with_usage(mut chunk: Value, tokens: u32) -> Value {
        chunk["usage"] = json!({"prompt_tokens": 9, "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": 4}});
        chunk
    }

    fn read(text: &str) -> (Vec<u32>, Result<StreamEnd, Failure>) {
        let (mut answer, mut tokens) = (Answer::default(), Vec::new());
        for event in text.split_inclusive("\n\n") {
            match answer.feed(event.as_bytes()) {
                Ok(new) => tokens.push(new),
                Err(failure) => return (tokens, Err(failure)),
            }
        }
        (tokens, answer.end(7))
    }

    #[test]
    fn tokens_are_counted_by_the_best_count_that_there_is() {
        let last = |chunk: Value| {
            let mut chunk = chunk;
            chunk["choices"][0]["finish_reason"] = json!("length");
            chunk
        };
        let usage = |tokens| with_usage(json!({"choices": []}), tokens);
        // The server counts chunk by chunk: an empty piece may be a token, a piece may be several.
        let chunks = [
            with_usage(piece("a"), 1),
            with_usage(piece(""), 2),
            with_usage(last(piece("bcd")), 5),
            usage(5),
        ];
        let (tokens, end) = read(&stream(&chunks));
        let end = end.unwrap();
        assert_eq!(
            (tokens, end.text.as_str(), end.counted_by),
            (vec![1, 1, 3, 0, 0], "abcd", TokenCount::ContinuousUsage)
        );
        let told = Usage { prompt_tokens: 9, output_tokens: 5, cached_tokens: Some(4) };
        assert_eq!((end.usage, end.finish_reason.as_deref(), end.at_ns), (Some(told), Some("length"), 7));
        // It counts at the end, in a chunk of its own or beside the last piece.
        for chunks in
            [vec![piece("a"), last(piece("b")), usage(6)], vec![piece("a"), with_usage(last(piece("b")), 6)]]
        {
            let (tokens, end) = read(&stream(&chunks));
            assert_eq!(tokens[..2], [1, 1]);
            assert_eq!(end.as_ref().unwrap().counted_by, TokenCount::Usage);
            assert_eq!(end.unwrap().usage.unwrap().output_tokens, 6);
        }
        // It does not count.
        let (tokens, end) = read(&stream(&[piece(""), piece("a"), last(piece("b"))]));
        let end = end.unwrap();
        assert_eq!((tokens, end.usage, end.counted_by), (vec![0, 1, 1, 0], None, TokenCount::Chunks));
    }

    #[test]
    fn what_is_no_whole_completion_is_told_by_its_kind() {
        let aborted = json!({"choices": [{"text": "", "finish_reason": "abort"}]});
        for (text, kind) in [
            ("data: {\"choices\": [{\"text\": \"a\"}]}\n\n".to_owned(), "cut_stream"),
            (String::new(), "cut_stream"),
            (stream(&[piece("a"), json!({"error": {"message": "out of memory"}})]), "server_error"),
            (stream(&[piece("a"), aborted]), "server_error"),
            ("data: {\"choices\"\n\n".to_owned(), "malformed"),
            ("data: 7\n\n".to_owned(), "malformed"),
            ("data: {\"choices\": [{\"text\": 7}]}\n\n".to_owned(), "malformed"),
        ] {
            assert_eq!(read(&text).1.unwrap_err().kind, kind, "{text}");
        }
    }

    #[test]
    fn an_end_without_done_is_an_end_where_the_reason_was_told() {
        let (_, end) = read("data: {\"choices\": [{\"text\": \"a\", \"finish_reason\": \"stop\"}]}\n\n");
        assert_eq!(end.unwrap().finish_reason.as_deref(), Some("stop"));
    }
}
