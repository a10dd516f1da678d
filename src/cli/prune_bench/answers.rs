//! The texts and tasks by which quality is measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use pagedraft::exit::usage;
use pagedraft::session::{Request, RequestPrune, Session};
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_workloads::dataset::{
    Expectation, LongbenchQuestion, OutputLength, Prompt, Sample, longbench_questions, ruler_questions,
};
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
    /// What a good answer is, if answers can be judged.
    expect: Option<Expectation>,
    /// The beginning of a right answer, where the task's authors give one.
    right: Option<Arc<[u32]>>,
}

/// The files that questions are read from.
pub struct Files<'a> {
    /// RULER's samples, as JSON lines.
    pub ruler: &'a [PathBuf],
    /// Questions of LongBench v1.
    pub longbench: &'a [PathBuf],
}

/// Texts with what follows them, and questions.
pub struct Answers {
    texts: Vec<(Vec<u32>, Arc<[u32]>)>,
    questions: Vec<Question>,
}

impl Answers {
    /// `samples` texts of `length` tokens, and as many questions of each task and of each dataset of the files; `None` for a model without
    /// a tokenizer or with random weights.
    pub fn new(
        session: &Session,
        (tasks, files): (&[String], &Files<'_>),
        (length, samples): (u32, u32),
        seed: u64,
    ) -> anyhow::Result<Option<Self>> {
        let Some(tokenizer) = session.shared_tokenizer().filter(|_| !session.info().dummy_weights) else {
            return Ok(None);
        };
        let longer = length as usize + FOLLOWING;
        let texts = held_out::prompts(session, samples as usize, longer, seed)?;
        let cut = |text: Vec<u32>| (text[..length as usize].to_vec(), text[length as usize..].into());
        let mut questions = generated(&tokenizer, tasks, (length, samples), seed)?;
        let most = session.info().max_model_len;
        for path in files.ruler {
            questions.extend(of_ruler(&tokenizer, path, samples, most)?);
        }
        questions.extend(of_longbench(&tokenizer, files.longbench, (length, samples))?);
        Ok(Some(Self { texts: texts.into_iter().map(cut).collect(), questions }))
    }

    /// The prompts of the questions, `most` of each task that a model of this quality solves, and how many tokens an answer has.
    pub fn solved(&self, quality: &Quality, most: usize) -> Vec<(&[u32], u32)> {
        let mut of_task: BTreeMap<&str, usize> = BTreeMap::new();
        let solved = self.questions.iter().filter(|question| quality.solves(&question.task));
        let questions = solved.filter(|question| {
            let count = of_task.entry(&question.task).or_default();
            *count += 1;
            *count <= most
        });
        let answer = |question: &Question| match &question.right {
            Some(right) => right.len() as u32,
            None => question.answer_tokens.max(1),
        };
        questions.map(|question| (&question.prompt[..], answer(question))).collect()
    }

    /// What the model makes of them when prompts are pruned so; `None` if Ctrl-C ended it.
    pub fn judge(&self, session: &mut Session, prune: &RequestPrune) -> anyhow::Result<Option<Quality>> {
        let mut quality = Quality::default();
        for (text, following) in &self.texts {
            let Some(logprobs) = follow(session, (text, following), prune)? else { return Ok(None) };
            quality.add_text(logprobs);
        }
        for question in &self.questions {
            if let Some(expect) = &question.expect {
                let mut request =
                    Request::new("question", question.prompt.clone(), question.answer_tokens.max(1));
                request.prune = prune.clone();
                let Some(output) = run(session, request)? else { return Ok(None) };
                quality.add_answer(&question.task, score(expect, &output.text));
            }
            if let Some(right) = &question.right {
                let both = (&question.prompt[..], right);
                let Some(logprobs) = follow(session, both, prune)? else { return Ok(None) };
                quality.add_right_answer(&question.task, logprobs);
            }
        }
        Ok(Some(quality))
    }
}

/// `samples` questions of `length` tokens of each of RULER's tasks.
fn generated(
    tokenizer: &Arc<Tokenizer>,
    tasks: &[String],
    (length, samples): (u32, u32),
    seed: u64,
) -> anyhow::Result<Vec<Question>> {
    let encoder = Arc::new(Encoder(Arc::clone(tokenizer)));
    let samples = u64::from(samples);
    let mut questions = Vec::new();
    for task in tasks {
        let options = RulerOptions { task: task.clone(), length, samples, ..RulerOptions::default() };
        let named = || format!("the task {task} cannot have {length} tokens");
        let made = ruler_samples(&options, seed, encoder.clone()).with_context(named).map_err(usage)?;
        for sample in made {
            let sample = sample.with_context(named).map_err(usage)?;
            questions.push(question(tokenizer, task, sample)?);
        }
    }
    Ok(questions)
}

/// The first `samples` questions of a file with RULER's samples, which are as long as the file has them. A sequence can have `most` tokens.
fn of_ruler(tokenizer: &Tokenizer, path: &Path, samples: u32, most: u32) -> anyhow::Result<Vec<Question>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let read = ruler_questions(path).map_err(|error| usage(error.into()))?;
    let questions = read.take(samples as usize).map(|sample| {
        let sample = sample.map_err(|error| usage(error.into()))?;
        let line = sample.line;
        let question = question(tokenizer, &format!("ruler/{name}"), sample)?;
        let tokens = question.prompt.len() + question.answer_tokens as usize;
        if tokens > most as usize {
            return Err(usage(anyhow!(
                "{}, line {line}: prompt and answer have {tokens} tokens, and a sequence can have {most} here: raise --lengths, or \
                 --max-model-len with --num-blocks",
                path.display()
            )));
        }
        Ok(question)
    });
    questions.collect()
}

/// A sample of RULER as a question. An answer of a task that nobody knows has as many tokens as the right one.
fn question(tokenizer: &Tokenizer, task: &str, sample: Sample) -> anyhow::Result<Question> {
    let (Prompt::Text(text), Some(expect)) = (&sample.prompt, sample.expect) else {
        return Err(anyhow!("a sample of {task} is no text with an answer"));
    };
    let answer_tokens = match (sample.output, &expect) {
        (OutputLength::Tokens(tokens) | OutputLength::UntilStop(Some(tokens)), _) => tokens,
        (_, Expectation::Contains { answers, .. }) => {
            let text: String = answers.iter().map(|answer| format!(" {answer}")).collect();
            tokenizer.encode(&text, false)?.len() as u32
        }
        _ => FOLLOWING as u32,
    };
    let prompt = tokenizer.encode(text, true)?;
    Ok(Question { task: task.to_owned(), prompt, answer_tokens, expect: Some(expect), right: None })
}

/// The first `samples` questions of each dataset in files of LongBench; longer prompts than `length` lose their middle.
fn of_longbench(
    tokenizer: &Tokenizer,
    files: &[PathBuf],
    (length, samples): (u32, u32),
) -> anyhow::Result<Vec<Question>> {
    let mut questions = Vec::new();
    let mut of_dataset: BTreeMap<String, u32> = BTreeMap::new();
    for path in files {
        for question in longbench_questions(path).map_err(|error| usage(error.into()))? {
            let LongbenchQuestion { sample, answers } = question.map_err(|error| usage(error.into()))?;
            let task = format!("longbench/{}", sample.category.as_deref().unwrap_or("unnamed"));
            let count = of_dataset.entry(task.clone()).or_default();
            let (Prompt::Text(text), true) = (&sample.prompt, *count < samples) else { continue };
            *count += 1;
            let prompt = without_middle(tokenizer.encode(text, true)?, length as usize);
            let right = answers.first().map(|answer| tokenizer.encode(answer, false)).transpose()?;
            let right = right.filter(|right| !right.is_empty());
            let right = right.map(|right| right[..right.len().min(FOLLOWING)].into());
            let most = FOLLOWING as u32;
            let answer_tokens = match sample.output {
                OutputLength::UntilStop(Some(tokens)) => tokens.min(most),
                _ => most,
            };
            questions.push(Question { task, prompt, answer_tokens, expect: sample.expect, right });
        }
    }
    Ok(questions)
}

/// The first and the last tokens of a prompt, `length` together, as LongBench cuts prompts that are too long.
fn without_middle(prompt: Vec<u32>, length: usize) -> Vec<u32> {
    if prompt.len() <= length {
        return prompt;
    }
    let (begin, end) = (length / 2, length - length / 2);
    prompt[..begin].iter().chain(&prompt[prompt.len() - end..]).copied().collect()
}

/// The log probabilities of the tokens that follow a text; `None` if Ctrl-C ended it.
fn follow(
    session: &mut Session,
    (text, following): (&[u32], &Arc<[u32]>),
    prune: &RequestPrune,
) -> anyhow::Result<Option<Vec<f32>>> {
    let mut request = Request::new("text", text.to_vec(), following.len() as u32);
    request.recorded = vec![Arc::clone(following)];
    (request.follows_recorded, request.ignore_eos) = (true, true);
    (request.sampling.logprobs, request.prune) = (Some(0), prune.clone());
    let Some(output) = run(session, request)? else { return Ok(None) };
    let logprobs = output.token_logprobs.context("the request gave no log probabilities")?;
    Ok(Some(logprobs.iter().map(|token| token.logprob).collect()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_loses_its_middle() {
        assert_eq!(without_middle((0..7).collect(), 7), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(without_middle((0..9).collect(), 5), [0, 1, 6, 7, 8]);
    }
}
