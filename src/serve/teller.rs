//! Tells what a request got: in one answer, or as the events of a stream.

use std::borrow::Cow;
use std::sync::Arc;

use pagedraft_engine::handle::{Delta, End};
use pagedraft_engine::session::RequestOutput;
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_scheduler::FinishReason;
use serde::Serialize;

use super::answer::{Answer, Choice, Message, More, Said, StopReason, Usage};
use super::app::{self, App};
use super::ask::Ask;
use super::error::ApiError;
use super::logprobs::{self, Lists, Logprobs};
use super::parameters::Encoded;
use super::stopped;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Completion,
    Chat,
}

/// A request, and what was told of it so far.
pub struct Teller {
    app: Arc<App>,
    kind: Kind,
    ask: Ask,
    prompts: Vec<Encoded>,
    id: String,
    created: u64,
    /// The characters told of each choice, for `text_offset`.
    offsets: Vec<usize>,
    /// The choices that have not ended.
    open: usize,
    usage: Usage,
    done: bool,
}

impl Teller {
    /// A request of which nothing was told yet.
    pub fn new(app: Arc<App>, kind: Kind, ask: Ask, prompts: Vec<Encoded>) -> Self {
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{:016x}", app.serial.draw());
        let choices = prompts.len() * ask.n() as usize;
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len() as u64).sum();
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
        let offsets = vec![0; choices];
        let created = app::now();
        Self { app, kind, ask, prompts, id, created, offsets, open: choices, usage, done: false }
    }

    /// The name of the request.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the client asked for.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    /// The prompts.
    pub fn prompts(&self) -> &[Encoded] {
        &self.prompts
    }

    /// The number of choices: samples of all prompts.
    pub fn choices(&self) -> usize {
        self.offsets.len()
    }

    /// The place of a sample of a prompt among the choices.
    pub fn index(&self, prompt: usize, sample: u32) -> u32 {
        prompt as u32 * self.ask.n() + sample
    }

    /// Whether nothing more is to be told.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The answer, of what all choices got from their beginning to their end.
    ///
    /// # Errors
    ///
    /// A choice failed.
    pub fn whole(&mut self, deltas: &[Delta]) -> Result<String, ApiError> {
        let n = self.ask.n() as usize;
        deltas.iter().enumerate().try_for_each(|(i, delta)| self.count(i / n, delta).map(drop))?;
        if self.open > 0 {
            return Err(ending());
        }
        let mut offsets = std::mem::take(&mut self.offsets);
        let choices = deltas.iter().zip(&mut offsets).enumerate();
        let choices = choices.map(|(i, (delta, offset))| self.choice(i / n, delta, offset)).collect();
        let object = if self.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
        let mut json = Vec::new();
        write(&mut json, &self.answer(object, choices, Some(Some(self.usage))));
        String::from_utf8(json).map_err(|error| ApiError::failed(error.to_string()))
    }

    /// Adds what a sample got to the events of a stream.
    pub fn piece(&mut self, prompt: usize, delta: &Delta, packet: &mut Vec<u8>) {
        if let Err(error) = self.count(prompt, delta) {
            return self.fail(&error, packet);
        }
        let index = self.index(prompt, delta.sample);
        let options = self.ask.stream_options.unwrap_or_default();
        let usage = match (options.continuous_usage_stats, options.include_usage) {
            (Some(true), _) => Some(Some(self.usage)),
            (_, Some(true)) => Some(None),
            _ => None,
        };
        if self.kind == Kind::Chat && delta.prompt.is_some() {
            let said = Said::Delta(Message { role: Some("assistant"), content: Cow::Borrowed("") });
            let choice = Choice { index, said, logprobs: None, finish_reason: None, more: More::default() };
            self.event(packet, &self.answer(self.chunk(), vec![choice], usage));
        }
        let Some(mut offset) = self.offsets.get(index as usize).copied() else { return };
        let choice = self.choice(prompt, delta, &mut offset);
        self.event(packet, &self.answer(self.chunk(), vec![choice], usage));
        if let Some(told) = self.offsets.get_mut(index as usize) {
            *told = offset;
        }
    }

    /// Adds the end of a stream: the usage, if it is asked for, and `[DONE]`.
    pub fn end(&mut self, packet: &mut Vec<u8>) {
        if self.open > 0 {
            return self.fail(&ending(), packet);
        }
        if self.ask.stream_options.is_some_and(|options| options.include_usage == Some(true)) {
            self.event(packet, &self.answer(self.chunk(), Vec::new(), Some(Some(self.usage))));
        }
        self.close(packet);
    }

    /// An error ends a stream that has begun: its status was sent long ago.
    fn fail(&mut self, error: &ApiError, packet: &mut Vec<u8>) {
        packet.extend_from_slice(format!("data: {}\n\n", error.json()).as_bytes());
        self.close(packet);
    }

    fn close(&mut self, packet: &mut Vec<u8>) {
        packet.extend_from_slice(b"data: [DONE]\n\n");
        self.done = true;
    }

    fn event(&self, packet: &mut Vec<u8>, answer: &Answer<'_>) {
        packet.extend_from_slice(b"data: ");
        write(packet, answer);
        packet.extend_from_slice(b"\n\n");
    }

    fn chunk(&self) -> &'static str {
        if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    fn answer<'a>(
        &'a self,
        object: &'static str,
        choices: Vec<Choice<'a>>,
        usage: Option<Option<Usage>>,
    ) -> Answer<'a> {
        Answer { id: &self.id, object, created: self.created, model: self.app.name(), choices, usage }
    }

    /// Counts the tokens of a delta.
    ///
    /// # Errors
    ///
    /// The sample failed.
    fn count(&mut self, prompt: usize, delta: &Delta) -> Result<(), ApiError> {
        let cached = delta.prompt.as_ref().filter(|_| delta.sample == 0);
        let cached = cached.map_or(0, |prompt| u64::from(prompt.num_cached_tokens));
        self.usage.prompt_tokens_details.cached_tokens += cached;
        if !self.tells_no_answer() {
            self.usage.completion_tokens += delta.token_ids.len() as u64;
        }
        self.usage.total_tokens = self.usage.prompt_tokens + self.usage.completion_tokens;
        self.open = self.open.saturating_sub(usize::from(delta.end.is_some()));
        let of = || if self.prompts.len() > 1 { format!("prompt {prompt}: ") } else { String::new() };
        match &delta.end {
            None => Ok(()),
            Some(End::Finished(output)) => match &output.error {
                None => Ok(()),
                Some(why) => Err(ApiError::failed(format!("{}{why}", of()))),
            },
            Some(End::StepFailed(why)) => Err(ApiError::failed(format!("{}the engine failed: {why}", of()))),
            Some(End::TooSlow) => Err(ApiError::failed(
                "the answer was given up, because it was read much more slowly than it was generated",
            )),
            Some(End::EngineStopped) => Err(ApiError::unavailable("the engine has stopped")),
        }
    }

    /// Whether only the prompt is told. The engine generated a token all the same.
    fn tells_no_answer(&self) -> bool {
        self.ask.echo() && self.ask.most_tokens() == Some(0)
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.app.engine.tokenizer().map(Arc::as_ref)
    }

    /// A choice, of what its sample got. `offset` is the number of characters that were told before, and is moved on.
    fn choice<'a>(&'a self, prompt: usize, delta: &'a Delta, offset: &mut usize) -> Choice<'a> {
        let output = match &delta.end {
            Some(End::Finished(output)) => Some(output.as_ref()),
            _ => None,
        };
        let stop = output.and_then(|output| self.stop_reason(output));
        let (said, streams) = (self.text(prompt, delta), self.ask.stream());
        Choice {
            index: self.index(prompt, delta.sample),
            said: match self.kind {
                Kind::Completion => Said::Text(said),
                Kind::Chat if streams => Said::Delta(Message { role: None, content: said }),
                Kind::Chat => Said::Message(Message { role: Some("assistant"), content: said }),
            },
            logprobs: self.logprobs(prompt, delta, offset),
            finish_reason: output.and_then(|output| output.finish_reason).map(name),
            more: self.more(prompt, delta, output, stop),
        }
    }

    fn stop_reason(&self, output: &RequestOutput) -> Option<StopReason<'_>> {
        if output.finish_reason != Some(FinishReason::Stop) {
            return None;
        }
        let stops = self.ask.stop.as_ref().map_or(&[][..], |stop| &stop.0);
        let ids = self.ask.stop_token_ids.as_deref().unwrap_or_default();
        stopped::reason(self.tokenizer(), stops, ids, &output.token_ids)
    }

    fn text<'a>(&'a self, prompt: usize, delta: &'a Delta) -> Cow<'a, str> {
        let text = if self.tells_no_answer() { "" } else { delta.text.as_str() };
        if !self.ask.echo() || delta.prompt.is_none() {
            return Cow::Borrowed(text);
        }
        let told = self.prompts.get(prompt).map_or("", |prompt| prompt.text.as_str());
        Cow::Owned(format!("{told}{text}"))
    }

    fn logprobs(&self, prompt: usize, delta: &Delta, offset: &mut usize) -> Option<Logprobs> {
        self.ask.logprobs_count()?;
        let tokenizer = self.tokenizer();
        if self.kind == Kind::Chat {
            return Some(Logprobs::Content { content: logprobs::content(tokenizer, &delta.logprobs) });
        }
        let mut lists = Lists::default();
        if let (true, Some(known), Some(prompt)) = (self.ask.echo(), &delta.prompt, self.prompts.get(prompt))
        {
            let own = known.token_logprobs.as_deref().unwrap_or_default();
            let best = known.logprobs.as_deref().unwrap_or_default();
            lists.extend_prompt(tokenizer, &prompt.ids, own, best, offset);
        }
        if !self.tells_no_answer() {
            lists.extend(tokenizer, &delta.logprobs, offset);
        }
        Some(Logprobs::Lists(lists))
    }

    fn more<'a>(
        &'a self,
        prompt: usize,
        delta: &'a Delta,
        output: Option<&'a RequestOutput>,
        stop_reason: Option<StopReason<'a>>,
    ) -> More<'a> {
        let wants_ids = self.ask.return_token_ids == Some(true);
        let first = delta.prompt.as_deref();
        let ids = self.prompts.get(prompt).map(|prompt| prompt.ids.as_slice());
        let known = first.filter(|_| self.ask.prompt_logprobs.is_some());
        let known =
            known.and_then(|known| Some((known.token_logprobs.as_deref()?, known.logprobs.as_deref()?)));
        More {
            stop_reason,
            prompt_token_ids: ids.filter(|_| wants_ids && first.is_some()),
            token_ids: Some(delta.token_ids.as_slice()).filter(|_| wants_ids),
            prompt_logprobs: known.map(|(own, best)| logprobs::of_prompt(self.tokenizer(), own, best)),
            indexer_topk: output.and_then(|output| output.indexer_topk.as_ref()),
        }
    }
}

/// Why a request has no end.
fn ending() -> ApiError {
    ApiError::unavailable("the server is shutting down, and its time of grace is over")
}

fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort | FinishReason::Failed => "abort",
    }
}

fn write<T: Serialize>(to: &mut Vec<u8>, value: &T) {
    // Numbers, texts and lists have a JSON, and a vector takes all that is written.
    let _ = serde_json::to_writer(to, value);
}
