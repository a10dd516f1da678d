use super::common_words::CommonWords;
use super::draws::Draws;
use super::essay::{Essay, FileText};
use super::fit::{Composition, Fit, Misfit, fit};
use super::frequent_words::FrequentWords;
use super::needles::Needles;
use super::options::RulerOptions;
use super::questions::Questions;
use super::squad::Squad;
use super::task::{Haystack, Kind, Task};
use super::variables::{Chain, Variables};
use crate::dataset::{DatasetError, Expectation, OutputLength, Prompt, Sample};
use crate::prompt::TextTokens;
use std::sync::Arc;

/// The greatest length in tokens. A prompt is held in memory several times.
const MAX_LENGTH: u32 = 1 << 22;
/// The most tokens of the example before `vt`.
const EXAMPLE_TOKENS: u32 = 500;

/// A sample in a shape that fits in the length.
pub(super) struct Fitted {
    pub(super) composition: Box<dyn Composition>,
    pub(super) fit: Fit,
    /// The most tokens of the answer.
    pub(super) answer_tokens: u32,
}

/// Makes the samples of a RULER task, each independently of the others.
pub struct RulerGenerator {
    task: Task,
    length: u32,
    seed: u64,
    tokenizer: Arc<dyn TextTokens>,
    haystack: Option<Arc<FileText>>,
    squad: Option<Arc<Squad>>,
}

impl std::fmt::Debug for RulerGenerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RulerGenerator")
            .field("task", &self.task.name())
            .field("length", &self.length)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl RulerGenerator {
    /// Reads the files that the options name. It makes no sample.
    ///
    /// # Errors
    ///
    /// The task is unknown; no task can have this length; the task has no use for a file, or it can't be
    /// read or is not what it should be; or more samples are asked for than a SQuAD file has questions.
    pub fn new(
        options: &RulerOptions,
        seed: u64,
        tokenizer: Arc<dyn TextTokens>,
    ) -> Result<Self, DatasetError> {
        let task = Task::named(&options.task)?;
        let error = |what: String| Err(DatasetError::Options(what));
        if options.length > MAX_LENGTH {
            return error(format!("a length of {} is more than {MAX_LENGTH} tokens", options.length));
        }
        let has_essay = matches!(task.kind, Kind::Needles(needles) if needles.haystack == Haystack::Essay);
        let haystack = match &options.haystack {
            Some(path) if has_essay => Some(Arc::new(FileText::read(path)?)),
            Some(_) => {
                return error(format!("{} hides nothing in prose: it takes no haystack file", task.name()));
            }
            None => None,
        };
        let squad = match &options.squad {
            Some(path) if task.kind == (Kind::Questions { two_hops: false }) => {
                Some(Arc::new(Squad::read(path)?))
            }
            Some(_) => return error(format!("{} takes no SQuAD file; qa_1 does", task.name())),
            None => None,
        };
        if let Some(squad) = &squad {
            let questions = squad.questions.len();
            if options.samples > questions as u64 {
                let samples = options.samples;
                return error(format!(
                    "the SQuAD file has {questions} questions: {samples} samples can't be made"
                ));
            }
        }
        Ok(Self { task, length: options.length, seed, tokenizer, haystack, squad })
    }

    /// The sample with an index. It is a function of task, length, seed and index (and of the files and the
    /// tokenizer).
    ///
    /// # Errors
    ///
    /// The length is too small for it (the error says which length would do), or the tokenizer fails.
    pub fn sample(&self, index: u64) -> Result<Sample, DatasetError> {
        let Fitted { composition, fit, answer_tokens } = self.fitted(index)?;
        Ok(Sample {
            source_id: Some(index.to_string()),
            line: 0,
            arrival_s: None,
            prompt: Prompt::Text(fit.prompt),
            output: OutputLength::UntilStop(Some(answer_tokens)),
            expect: Some(Expectation::Contains { answers: composition.answers(), any: self.task.any() }),
            category: Some(self.task.name().to_owned()),
        })
    }

    /// The most tokens of a prompt if the answer gets all tokens that are meant for it.
    fn budget(&self) -> u32 {
        self.length.saturating_sub(self.task.tokens_to_generate())
    }

    /// The first shape of the sample that fits. If necessary, the answer gets less room.
    pub(super) fn fitted(&self, index: u64) -> Result<Fitted, DatasetError> {
        let draws = Draws { task: self.task.number as u64, seed: self.seed, index };
        let whole_answer = self.task.tokens_to_generate();
        let refused = |what: String| self.tokenizer_error(&what);
        let within = |composition: &dyn Composition, budget| match fit(
            composition,
            u64::from(budget),
            self.tokenizer.as_ref(),
        ) {
            Ok(fit) => Ok(Ok(fit)),
            Err(Misfit::TooLong(tokens)) => Ok(Err(tokens)),
            Err(Misfit::Tokenizer(what)) => Err(refused(what)),
        };
        let mut least = u64::MAX;
        let mut shape = Some(self.composition(draws)?);
        for shorter in 0.. {
            let Some(composition) = shape.take() else { break };
            let tokens = match within(composition.as_ref(), self.budget())? {
                Ok(fit) => return Ok(Fitted { composition, fit, answer_tokens: whole_answer }),
                Err(tokens) => tokens,
            };
            let answer = self.least_answer(&composition.answers())?;
            least = least.min(tokens + u64::from(answer));
            if tokens + u64::from(answer) <= u64::from(self.length) {
                // The number is below the length, so the cast loses nothing.
                let tokens = tokens as u32;
                if let Ok(fit) = within(composition.as_ref(), tokens)? {
                    return Ok(Fitted { composition, fit, answer_tokens: self.length - tokens });
                }
            }
            shape = self.short(draws, shorter);
        }
        Err(DatasetError::Options(format!(
            "a length of {} is too small for sample {index} of {}: its own text and answer take {least} tokens; \
             give a length of {least} or more (other samples may take some tokens more)",
            self.length,
            self.task.name(),
        )))
    }

    /// The least room for an answer: twice the tokens of a perfect one.
    fn least_answer(&self, answers: &[String]) -> Result<u32, DatasetError> {
        let tokens = |text: &str| match self.tokenizer.encode(text) {
            Ok(tokens) => Ok(u32::try_from(tokens.len()).unwrap_or(u32::MAX)),
            Err(what) => Err(self.tokenizer_error(&what)),
        };
        let told = match self.task.any() {
            true => answers.iter().try_fold(0, |most: u32, answer| Ok(most.max(tokens(answer)?)))?,
            false => tokens(&answers.join(", "))?,
        };
        Ok(told.saturating_mul(2).min(self.task.tokens_to_generate()))
    }

    fn tokenizer_error(&self, what: &str) -> DatasetError {
        DatasetError::Options(format!("the tokenizer can't encode a prompt of {}: {what}", self.task.name()))
    }

    /// The number of tokens of a prompt.
    #[cfg(test)]
    pub(super) fn tokens(&self, prompt: &str) -> u64 {
        self.tokenizer.encode(prompt).map_or(u64::MAX, |tokens| tokens.len() as u64)
    }

    /// The whole sample, with a haystack of any size.
    fn composition(&self, draws: Draws) -> Result<Box<dyn Composition>, DatasetError> {
        let index = draws.index;
        Ok(match self.task.kind {
            Kind::Needles(task) => {
                let essay = match &self.haystack {
                    Some(file) => Essay::File(file.clone()),
                    None => Essay::Written(draws),
                };
                Box::new(Needles::new(task, draws, essay))
            }
            Kind::Variables => self.variables(draws)?,
            Kind::CommonWords => self.common_words(draws)?,
            Kind::FrequentWords => Box::new(FrequentWords::new(draws, self.budget())),
            Kind::Questions { two_hops } => match &self.squad {
                Some(squad) => Box::new(Questions::of_squad(draws, squad).ok_or_else(|| {
                    let questions = squad.questions.len();
                    DatasetError::Options(format!(
                        "the SQuAD file has {questions} questions, and none is sample {index}"
                    ))
                })?),
                None => Box::new(Questions::made(draws, two_hops)),
            },
        })
    }

    /// A reduced sample, for lengths without room for the whole one. The greater `shorter` is, the more it
    /// is reduced. `None` if it can't be reduced further.
    fn short(&self, draws: Draws, shorter: usize) -> Option<Box<dyn Composition>> {
        match self.task.kind {
            Kind::Variables => Chain::short(draws, shorter).map(|chain| Box::new(chain) as _),
            Kind::CommonWords => CommonWords::short(draws, shorter).map(|words| Box::new(words) as _),
            Kind::FrequentWords if shorter == 0 => Some(Box::new(FrequentWords::short(draws, self.budget()))),
            Kind::FrequentWords | Kind::Needles(_) | Kind::Questions { .. } => None,
        }
    }

    fn variables(&self, draws: Draws) -> Result<Box<dyn Composition>, DatasetError> {
        let example = Chain::example(draws);
        let budget = u64::from(EXAMPLE_TOKENS.min(self.length / 3));
        let prompt = match fit(&example, budget, self.tokenizer.as_ref()) {
            Ok(fitted) => fitted.prompt,
            // The length is small, but the least example may fit.
            Err(Misfit::TooLong(_)) => example.prompt(example.least()),
            Err(Misfit::Tokenizer(what)) => return Err(self.tokenizer_error(&what)),
        };
        Ok(Box::new(Variables { example: example.answered(&prompt), chain: Chain::asked(draws) }))
    }

    /// Uses English words if there are enough of them.
    fn common_words(&self, draws: Draws) -> Result<Box<dyn Composition>, DatasetError> {
        let english = CommonWords::english(draws, self.length);
        let all = english.prompt(english.most());
        let tokens = self.tokenizer.encode(&all).map_err(|what| self.tokenizer_error(&what))?.len();
        Ok(Box::new(if tokens as u64 > u64::from(self.budget()) {
            english
        } else {
            CommonWords::coined(draws, self.length)
        }))
    }
}

/// The first `options.samples` samples of a RULER task. The first one is made at once, so that a length
/// that is too small is reported at once.
///
/// # Errors
///
/// Those of [`RulerGenerator::new`] and of the first [`RulerGenerator::sample`]. Errors of other samples
/// are items.
pub fn ruler_samples(
    options: &RulerOptions,
    seed: u64,
    tokenizer: Arc<dyn TextTokens>,
) -> Result<Box<dyn Iterator<Item = Result<Sample, DatasetError>> + Send>, DatasetError> {
    let generator = RulerGenerator::new(options, seed, tokenizer)?;
    let first = generator.sample(0)?;
    let samples =
        std::iter::once(Ok(first)).chain((1..options.samples).map(move |index| generator.sample(index)));
    Ok(Box::new(samples.take(usize::try_from(options.samples).unwrap_or(usize::MAX))))
}
