//! `pagedraft chat`: a conversation in the terminal.

mod conversation;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use pagedraft::engine::handle::{End, EngineHandle, Limits};
use pagedraft::exit::usage_hint;
use pagedraft::session::{Request, RequestOutput, Session};
use pagedraft_spec_decode::sampling::SamplingParams;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::json;

use super::engine_flags::EngineFlags;
use super::{Ended, interrupt, recording, serve, stdout};
use conversation::{Conversation, Line};

/// How often an answer is interrupted by a look for Ctrl-C.
const LOOK: Duration = Duration::from_millis(20);

const HELP: &str = "\
/clear        begin a new conversation; the prefix cache stays
/system TEXT  begin a new conversation with this system message (no TEXT: with none)
/regen        another answer to the last message
/stats        figures of the last answer
/quit         leave, as Ctrl-D does
Ctrl-C stops an answer.
";

#[derive(Clone, Debug, Args)]
pub struct Chat {
    #[command(flatten)]
    chat: ChatFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Chat")]
struct ChatFlags {
    /// The system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f32,
    /// Only the likeliest tokens that have this probability together
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// End an answer before this text (may be given several times)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// A Jinja file that makes the prompt of a conversation (default: the model's own)
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
}

/// The last answer, and how long it took.
struct Answer {
    output: RequestOutput,
    first_token: Option<Duration>,
    took: Duration,
}

impl Chat {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let mut options = self.engine.options(true)?;
        options.interrupt = None;
        if recording::plain(&options).is_some() {
            let error = anyhow::anyhow!(
                "--draft synthetic proposes what a run without drafts gave, and a chat has none"
            );
            return Err(usage_hint(error, "choose another --draft"));
        }
        let template = serve::chat_template(&self.engine.model, self.chat.chat_template.as_deref())?;
        let Some(template) = template else {
            let error = anyhow::anyhow!("{} has no chat template", self.engine.model);
            return Err(usage_hint(error, "give one with --chat-template"));
        };
        let sampling = SamplingParams {
            temperature: self.chat.temperature,
            top_p: self.chat.top_p,
            ..SamplingParams::default()
        };
        sampling.validate().map_err(|error| pagedraft::exit::usage(error.into()))?;
        interrupt::listen()?;
        let session = interrupt::preparing(|| Session::open(&options))?;
        self.engine.tell_of_the_device(session.info());
        self.engine.refuse_for_canvases(session.info())?;
        if session.tokenizer().is_none() {
            let error = anyhow::anyhow!("{} has no tokenizer, so text can't be read", self.engine.model);
            return Err(usage_hint(error, "put the model's tokenizer.json beside its weights"));
        }
        let (engine, thread) = EngineHandle::start(session, Limits::default())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut talk = Talk {
            conversation: Conversation::new(template, self.chat.system.clone()),
            flags: &self.chat,
            sampling,
            seed: self.engine.seed,
            engine,
            last: None,
        };
        let talked = talk.run(&runtime);
        drop(talk);
        let mut session = thread.join()?;
        talked?;
        session.close(&json!({"command": "chat"}))?;
        Ok(Ended::Done)
    }
}

/// A conversation with an engine.
struct Talk<'a> {
    conversation: Conversation,
    flags: &'a ChatFlags,
    sampling: SamplingParams,
    /// The seed of the next answer.
    seed: u64,
    engine: EngineHandle,
    last: Option<Answer>,
}

impl Talk<'_> {
    fn run(&mut self, runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
        let mut editor = DefaultEditor::new().context("the terminal can't be read")?;
        stdout::print("/help lists the commands.\n")?;
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    stdout::print("(/quit or Ctrl-D to leave)\n")?;
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error).context("the terminal can't be read"),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            // A line that can't be kept in the history was still typed.
            let _ = editor.add_history_entry(line);
            match Line::read(line) {
                Line::Quit => return Ok(()),
                Line::Help => stdout::print(HELP)?,
                Line::Clear => self.conversation.clear(),
                Line::System(text) => self.conversation.begin(text),
                Line::Stats => stdout::print(&self.stats())?,
                Line::Unknown(name) => {
                    stdout::print(&format!("there is no {name}; /help lists the commands\n"))?
                }
                Line::Regenerate if self.conversation.forget_answer() => runtime.block_on(self.answer())?,
                Line::Regenerate => stdout::print("there is no message to answer yet\n")?,
                Line::Say(text) => {
                    self.conversation.say(text);
                    runtime.block_on(self.answer())?;
                }
            }
        }
    }

    /// Answers the last message. What is wrong with it is said, and the conversation is as before it.
    async fn answer(&mut self) -> anyhow::Result<()> {
        interrupt::take();
        match self.stream().await? {
            Ok(text) => self.conversation.answered(text),
            Err(why) => {
                self.conversation.forget_message();
                stdout::print(&format!("({why})\n"))?;
            }
        }
        Ok(())
    }

    async fn stream(&mut self) -> anyhow::Result<Result<String, String>> {
        let prompt = match self.prompt() {
            Ok(prompt) => prompt,
            Err(why) => return Ok(Err(why)),
        };
        let mut request = Request::new("chat", prompt, self.flags.max_tokens);
        request.sampling = SamplingParams { seed: self.seed, ..self.sampling.clone() };
        request.stop.clone_from(&self.flags.stop);
        self.seed = self.seed.wrapping_add(1);
        let start = Instant::now();
        let mut output = match self.engine.submit(request).await {
            Ok(output) => output,
            Err(error) => return Ok(Err(format!("{error}; /clear begins anew"))),
        };
        let (mut text, mut first_token) = (String::new(), None);
        loop {
            let delta = match tokio::time::timeout(LOOK, output.next()).await {
                Err(_) if !interrupt::take() => continue,
                Err(_) => break,
                Ok(None) => break,
                Ok(Some(delta)) => delta,
            };
            if !delta.token_ids.is_empty() {
                first_token.get_or_insert_with(|| start.elapsed());
            }
            text.push_str(&delta.text);
            stdout::print(&delta.text)?;
            match delta.end {
                None if interrupt::take() => break,
                None => {}
                Some(End::Finished(output)) => {
                    let failed = output.error.clone();
                    self.last = Some(Answer { output: *output, first_token, took: start.elapsed() });
                    stdout::print("\n")?;
                    return Ok(failed.map_or(Ok(text), Err));
                }
                Some(End::StepFailed(why)) => return Ok(Err(why)),
                Some(End::TooSlow | End::EngineStopped) => {
                    return Ok(Err("the engine has stopped".to_owned()));
                }
            }
        }
        stdout::print("\n(stopped)\n")?;
        self.last = None;
        Ok(Ok(text))
    }

    /// The tokens of the conversation so far.
    fn prompt(&self) -> Result<Vec<u32>, String> {
        let text = self.conversation.prompt()?;
        let tokenizer = self.engine.tokenizer().ok_or("the model has no tokenizer")?;
        tokenizer.encode(&text, false).map_err(|error| error.to_string())
    }

    fn stats(&self) -> String {
        let Some(Answer { output, first_token, took }) = &self.last else {
            return "there are no figures: no answer was given to its end\n".to_owned();
        };
        let tokens = output.token_ids.len();
        let rate = tokens as f64 / took.as_secs_f64().max(1e-9);
        let first = first_token.map_or_else(String::new, |first| {
            format!(", the first after {:.0} ms", first.as_secs_f64() * 1e3)
        });
        let mut text = format!(
            "{tokens} tokens in {:.2} s ({rate:.0} tokens/s){first}\n{} of {} prompt tokens were cached\n",
            took.as_secs_f64(),
            output.num_cached_tokens,
            output.prompt_token_ids.len(),
        );
        if output.num_drafts > 0 {
            let share = 100.0 * f64::from(output.num_accepted) / f64::from(output.num_drafts);
            text.push_str(&format!(
                "{} of {} drafts were accepted ({share:.0} %)\n",
                output.num_accepted, output.num_drafts
            ));
        }
        text
    }
}
