//! The texts and tasks by which quality is measured.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use pagedraft::exit::usage;
use pagedraft::session::{Request, RequestPrune, Session};
use pagedraft_workloads::dataset::{Expectation, OutputLength, Prompt};
use pagedraft_workloads::tasks::{RulerOptions, ruler_samples, score};

use super::quality::Quality;
use crate::cli::replay::workload::Encoder;
use crate::cli::{held_out, interrupt};

/// Tokens behind each text whose probabilities are looked at.
const FOLLOWING: usize = 64;

/// A question, and how its answer is judged.
struct Question {
    task: String,
    prompt: Vec<u32>,
    answer_tokens: u32,
    expect: Expectation,
}

/// Texts with what follows them, and questions.
pub struct Answers {
    texts: Vec<(Vec<u32>, Arc<[u32]>)>,
    questions: Vec<Question>,
}

impl Answers {
    /// `samples` texts of `length` tokens, and as many questions of each task; `None` for a model without a tokenizer or with random weights.
    pub fn new(
        session: &Session,
        tasks: &[String],
        (length, samples): (u32, u32),
        seed: u64,
    ) -> anyhow::Result<Option<Self>> {
        let Some(tokenizer) = session.shared_tokenizer().filter(|_| !session.info().dummy_weights) else {
            return Ok(None);
        };
        let longer = length as usize + FOLLOWING;
        let texts = held_out::prompts(session, samples as usize, longer, seed)?;
        let cut = |text: Vec<u32>| (text[..length as usize].to_vec(), text[length as usize..].into());
        let encoder = Arc::new(Encoder(Arc::clone(&tokenizer)));
        let mut questions = Vec::new();
        for task in tasks {
            let samples = u64::from(samples);
            let options = RulerOptions { task: task.clone(), length, samples, ..RulerOptions::default() };
            let named = || format!("the task {task} cannot have {length} tokens");
            let made = ruler_samples(&options, seed, encoder.clone()).with_context(named).map_err(usage)?;
            for sample in made {
                let sample = sample.with_context(named).map_err(usage)?;
                let (Prompt::Text(text), Some(expect)) = (&sample.prompt, sample.expect) else {
                    return Err(anyhow!("a sample of {task} is no text with an answer"));
                };
                let answer_tokens = match sample.output {
                    OutputLength::Tokens(tokens) | OutputLength::UntilStop(Some(tokens)) => tokens,
                    _ => FOLLOWING as u32,
                };
                let prompt = tokenizer.encode(text, true)?;
                questions.push(Question { task: task.clone(), prompt, answer_tokens, expect });
            }
        }
        Ok(Some(Self { texts: texts.into_iter().map(cut).collect(), questions }))
    }

    /// What the model makes of them when prompts are pruned so; `None` if Ctrl-C ended it.
    pub fn judge(&self, session: &mut Session, prune: &RequestPrune) -> anyhow::Result<Option<Quality>> {
        let mut quality = Quality::default();
        for (text, following) in &self.texts {
            let mut request = Request::new("text", text.clone(), following.len() as u32);
            request.recorded = vec![Arc::clone(following)];
            (request.follows_recorded, request.ignore_eos) = (true, true);
            (request.sampling.logprobs, request.prune) = (Some(0), prune.clone());
            let Some(output) = run(session, request)? else { return Ok(None) };
            let logprobs = output.token_logprobs.context("the request gave no log probabilities")?;
            quality.add_text(logprobs.iter().map(|token| token.logprob));
        }
        for question in &self.questions {
            let mut request =
                Request::new("question", question.prompt.clone(), question.answer_tokens.max(1));
            request.prune = prune.clone();
            let Some(output) = run(session, request)? else { return Ok(None) };
            quality.add_answer(&question.task, score(&question.expect, &output.text));
        }
        Ok(Some(quality))
    }
}

/// Runs a request alone; `None` if Ctrl-C ended it.
pub fn run(
    session: &mut Session,
    request: Request,
) -> anyhow::Result<Option<pagedraft::session::RequestOutput>> {
    session.clear_prefix_cache();
    let ids = session.submit(request)?;
    while session.has_unfinished() {
        if interrupt::pressed() {
            interrupt::forget(session, &ids)?;
            return Ok(None);
        }
        interrupt::step(session)?;
    }
    let output = session.take_output(ids[0]).context("the request gave no output")?;
    match &output.error {
        Some(error) => Err(anyhow!("{error}")),
        None => Ok(Some(output)),
    }
}
