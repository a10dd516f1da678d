//! Makes requests from samples: their prompts and arrivals, and the decision which records are not run.

use std::path::PathBuf;
use std::sync::Arc;

use crate::arrivals::{ArrivalTimes, Arrivals, within_a_century};
use crate::dataset::{
    self, DatasetError, DatasetOptions, Expectation, Item, OutputLength, Prompt, Sample, Samples, SkipReason,
    Survey,
};
use crate::prompt::{PromptMaker, TextTokens};

/// The next item of a source.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A request to send.
    Request(PlannedRequest),
    /// A record that is not run.
    Skipped(SkippedRequest),
}

/// A request whose prompt has been made and whose time is known.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRequest {
    /// Its index in the workload, counted from 0 with skipped records. It is its name.
    pub index: u64,
    /// The dataset's own name for it, if it has one.
    pub source_id: Option<String>,
    /// The dataset's category for it.
    pub category: Option<String>,
    /// When it should be sent, in nanoseconds since the run began. `None` means as soon as there is room
    /// for it.
    pub arrival_ns: Option<u64>,
    /// The token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The text that they were made from, if the dataset has text. A server with a tokenizer of its own is sent this.
    pub text: Option<String>,
    /// The most tokens to generate.
    pub max_tokens: u32,
    /// Whether end-of-sequence tokens end it.
    pub until_stop: bool,
    /// What a good answer is.
    pub expect: Option<Expectation>,
}

/// A record that is not run.
#[derive(Clone, Debug, PartialEq)]
pub struct SkippedRequest {
    /// Its index in the workload.
    pub index: u64,
    /// The dataset's own name for it, if it has one.
    pub source_id: Option<String>,
    /// The dataset's category for it.
    pub category: Option<String>,
    /// When it would have been sent.
    pub arrival_ns: Option<u64>,
    /// The number of tokens in its prompt, if they were counted.
    pub prompt_tokens: Option<u32>,
    /// The reason.
    pub reason: SkipReason,
}

/// How requests are made.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceOptions {
    /// How their arrivals are made.
    pub arrivals: Arrivals,
    /// The seed of prompts without text, and of gaps between arrivals.
    pub seed: u64,
    /// The factor on the lengths of traces that have no text. Lengths stay at least 1.
    pub length_scale: f64,
    /// Requests with longer prompts are skipped.
    pub max_prompt_tokens: Option<u32>,
    /// Longer outputs are cut to this. It is also the limit of outputs that end by themselves.
    pub max_new_tokens: Option<u32>,
    /// The model's greatest length. Requests that can't fit are skipped.
    pub max_model_len: u32,
    /// The number of tokens that the KV pool holds. Requests that can't fit are skipped. A request's last
    /// token is never computed, so it needs no slot.
    pub pool_tokens: u64,
    /// The token budget of a step, if a prompt must fit in it (chunked prefill is off).
    pub step_tokens: Option<u32>,
    /// The token ids that prompts without text are made of.
    pub vocabulary: std::ops::Range<u32>,
}

/// The most tokens of an output that ends by itself, if neither its dataset nor
/// [`SourceOptions::max_new_tokens`] says how many.
pub const DEFAULT_NEW_TOKENS: u32 = 256;

/// Makes requests from samples.
///
/// A prompt is run whole or not at all. If it does not fit, the item is [`Incoming::Skipped`], with the
/// reason.
///
/// Recorded arrivals stay with their records. Where arrivals are made (constant, drawn, a ramp):
///
/// - For a dataset of lengths or token ids, [`Source::open`] first counts the records that fit. Arrivals are made for these
///   alone, so that the rate asked for is the rate of the requests sent.
/// - For text, lengths are known only when it is tokenised, record by record. Arrivals are made for all records that the
///   dataset does not mark as failed. A record that turns out not to fit takes its arrival, which passes without a request.
///   The arrivals keep their form and their length, and the rate sent is the rate asked for times the share of records that
///   are run. The same holds for [`Source::new`], which can't read its samples twice.
pub struct Source {
    samples: Samples,
    /// The first item, which was read when the source was made.
    first: Option<Item>,
    options: SourceOptions,
    tokenizer: Option<Arc<dyn TextTokens>>,
    maker: PromptMaker,
    times: ArrivalTimes,
    /// Whether arrivals are made only for records that fit, so that a skipped record takes none.
    fitting: bool,
    /// The file of the samples, for errors.
    path: Option<PathBuf>,
    index: u64,
    over: bool,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("options", &self.options)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// Makes requests from `samples`. `survey` says how many there are.
    ///
    /// # Errors
    ///
    /// The options do not go with the dataset: recorded arrivals without times, text without a tokenizer,
    /// or a scale for the lengths of text.
    pub fn new(
        samples: Samples,
        survey: &Survey,
        options: SourceOptions,
        tokenizer: Option<Arc<dyn TextTokens>>,
    ) -> Result<Self, DatasetError> {
        Self::over(samples, survey, None, options, tokenizer)
    }

    /// Makes requests from a dataset, which `survey` describes. If arrivals are made and lengths are known
    /// without a tokenizer, the dataset is first read once more to count the records that fit. Errors name
    /// the dataset's file.
    ///
    /// # Errors
    ///
    /// The errors of [`new`](Self::new), or a dataset that can't be read.
    pub fn open(
        dataset: &DatasetOptions,
        survey: &Survey,
        options: SourceOptions,
        tokenizer: Option<Arc<dyn TextTokens>>,
    ) -> Result<Self, DatasetError> {
        let open = || dataset::open(dataset, tokenizer.clone());
        let made = !matches!(options.arrivals, Arrivals::Recorded { .. } | Arrivals::AtOnce);
        let fitting = if made { fitting(open()?, &options)? } else { None };
        let mut source = Self::over(open()?, survey, fitting, options, tokenizer.clone())?;
        source.path.clone_from(&dataset.path);
        Ok(source)
    }

    fn over(
        mut samples: Samples,
        survey: &Survey,
        fitting: Option<u64>,
        options: SourceOptions,
        tokenizer: Option<Arc<dyn TextTokens>>,
    ) -> Result<Self, DatasetError> {
        let maker = PromptMaker::new(options.seed, options.vocabulary.clone(), options.length_scale)
            .map_err(DatasetError::Options)?;
        if matches!(options.arrivals, Arrivals::Recorded { .. }) && !survey.timed {
            return Err(DatasetError::Options(NO_TIMES.into()));
        }
        if let Arrivals::Recorded { speed } = options.arrivals {
            within_a_century("--speed", survey.span_s / speed).map_err(DatasetError::Options)?;
        }
        let requests = fitting.unwrap_or_else(|| survey.items.saturating_sub(survey.skipped));
        let times = options.arrivals.times(requests, options.seed).map_err(DatasetError::Options)?;
        let first = samples.next().transpose()?;
        if let Some(Item::Sample(sample)) = &first {
            check(sample, &options, tokenizer.is_some())?;
        }
        let fitting = fitting.is_some();
        Ok(Self {
            samples,
            first,
            options,
            tokenizer,
            maker,
            times,
            fitting,
            path: None,
            index: 0,
            over: false,
        })
    }

    fn pull(&mut self) -> Result<Option<Incoming>, DatasetError> {
        let next = match self.first.take() {
            Some(first) => Some(first),
            None => self.samples.next().transpose()?,
        };
        let Some(item) = next else { return Ok(None) };
        let incoming = match item {
            Item::Sample(sample) => self.plan(sample)?,
            Item::Skipped(skipped) => Incoming::Skipped(SkippedRequest {
                index: self.index,
                source_id: skipped.source_id,
                category: None,
                arrival_ns: self.recorded(skipped.arrival_s),
                prompt_tokens: skipped.prompt_tokens,
                reason: skipped.reason,
            }),
        };
        self.index += 1;
        Ok(Some(incoming))
    }

    /// When a record that is not run would have been sent.
    fn recorded(&mut self, arrival_s: Option<f64>) -> Option<u64> {
        let recorded = matches!(self.options.arrivals, Arrivals::Recorded { .. });
        arrival_s.filter(|_| recorded).and_then(|time| self.times.next(Some(time)))
    }

    /// The same for a record that was found not to fit: it takes the arrival that was made for it.
    fn passed(&mut self, arrival_s: Option<f64>) -> Option<u64> {
        match self.options.arrivals {
            Arrivals::Recorded { .. } => self.recorded(arrival_s),
            Arrivals::AtOnce => None,
            _ if self.fitting => None,
            _ => self.times.next(None),
        }
    }

    fn plan(&mut self, sample: Sample) -> Result<Incoming, DatasetError> {
        check(&sample, &self.options, self.tokenizer.is_some())?;
        let recorded = matches!(self.options.arrivals, Arrivals::Recorded { .. });
        if recorded && sample.arrival_s.is_none() {
            return Err(DatasetError::Options(NO_TIMES.into()));
        }
        // Text must be tokenised before it can be measured. All else is measured first, and made only if it
        // is run.
        let encoded = match &sample.prompt {
            Prompt::Text(text) => Some(self.encode(text, &sample)?),
            _ => None,
        };
        let counted = encoded.as_ref().map(|tokens| u32::try_from(tokens.len()).unwrap_or(u32::MAX));
        let prompt_tokens = counted.or_else(|| self.maker.length(&sample.prompt)).unwrap_or(0);
        let max_tokens = self.output_tokens(&sample)?;
        if let Some(reason) = misfit(&self.options, prompt_tokens, max_tokens) {
            return Ok(Incoming::Skipped(SkippedRequest {
                index: self.index,
                arrival_ns: self.passed(sample.arrival_s),
                source_id: sample.source_id,
                category: sample.category,
                prompt_tokens: Some(prompt_tokens),
                reason,
            }));
        }
        let prompt = encoded.or_else(|| self.maker.make(self.index, &sample.prompt)).unwrap_or_default();
        let text = match sample.prompt {
            Prompt::Text(text) => Some(text),
            _ => None,
        };
        Ok(Incoming::Request(PlannedRequest {
            index: self.index,
            source_id: sample.source_id,
            category: sample.category,
            arrival_ns: self.times.next(sample.arrival_s),
            prompt,
            text,
            max_tokens,
            until_stop: matches!(sample.output, OutputLength::UntilStop(_)),
            expect: sample.expect,
        }))
    }

    /// The number of output tokens of a sample, at least 1.
    fn output_tokens(&self, sample: &Sample) -> Result<u32, DatasetError> {
        let counted = match &sample.output {
            OutputLength::AsText(text) => self.ask(sample, |tokenizer| tokenizer.count(text))?,
            _ => 0,
        };
        Ok(output_tokens(&sample.output, counted, &self.maker, &self.options))
    }

    fn encode(&self, text: &str, sample: &Sample) -> Result<Vec<u32>, DatasetError> {
        self.ask(sample, |tokenizer| tokenizer.encode(text))
    }

    /// Calls the tokenizer for a sample's text, and adds the sample to its error.
    fn ask<T>(
        &self,
        sample: &Sample,
        what: impl FnOnce(&dyn TextTokens) -> Result<T, String>,
    ) -> Result<T, DatasetError> {
        let Some(tokenizer) = &self.tokenizer else { return Err(DatasetError::Options(NO_TOKENIZER.into())) };
        what(tokenizer.as_ref()).map_err(|e| {
            let what = format!("the tokenizer can't encode the text of request {}: {e}", self.index);
            match self.path.clone() {
                Some(path) => DatasetError::Line { path, line: sample.line, what },
                None => DatasetError::Options(format!("{what} (line {})", sample.line)),
            }
        })
    }
}

const NO_TIMES: &str = "the dataset has no arrival times to replay: give --request-rate (inf: all at once)";

const NO_TOKENIZER: &str =
    "the dataset is text: it takes a model with a tokenizer to make token ids of it (--model)";

/// The number of samples that fit; `None` if one of them is text, which only a tokenizer can measure.
fn fitting(samples: Samples, options: &SourceOptions) -> Result<Option<u64>, DatasetError> {
    let maker = PromptMaker::new(options.seed, options.vocabulary.clone(), options.length_scale)
        .map_err(DatasetError::Options)?;
    let mut fitting = 0;
    for item in samples {
        let Item::Sample(sample) = item? else { continue };
        let text = matches!(sample.output, OutputLength::AsText(_));
        let Some(prompt) = maker.length(&sample.prompt).filter(|_| !text) else { return Ok(None) };
        let output = output_tokens(&sample.output, 0, &maker, options);
        fitting += u64::from(misfit(options, prompt, output).is_none());
    }
    Ok(Some(fitting))
}

/// The number of output tokens, at least 1. `counted` is the number for an output that is as long as a
/// text.
fn output_tokens(output: &OutputLength, counted: u32, maker: &PromptMaker, options: &SourceOptions) -> u32 {
    let most = options.max_new_tokens;
    let wanted = match output {
        OutputLength::Tokens(tokens) => maker.scaled(*tokens),
        OutputLength::AsText(_) => counted,
        OutputLength::UntilStop(tokens) => tokens.or(most).unwrap_or(DEFAULT_NEW_TOKENS),
    };
    most.map_or(wanted, |most| wanted.min(most)).max(1)
}

/// The reason why a request of these lengths can't be run, if there is one.
fn misfit(options: &SourceOptions, prompt: u32, output: u32) -> Option<SkipReason> {
    let total = u64::from(prompt) + u64::from(output);
    if prompt == 0 {
        Some(SkipReason::EmptyPrompt)
    } else if options.max_prompt_tokens.is_some_and(|most| prompt > most) {
        Some(SkipReason::PromptTooLong)
    } else if total > u64::from(options.max_model_len) {
        Some(SkipReason::LongerThanModel)
    } else if total > options.pool_tokens.saturating_add(1) {
        // The last token is never computed, so it needs no slot.
        Some(SkipReason::LargerThanPool)
    } else if options.step_tokens.is_some_and(|most| prompt > most) {
        Some(SkipReason::LargerThanStep)
    } else {
        None
    }
}

/// Checks that a sample goes with the options.
fn check(sample: &Sample, options: &SourceOptions, tokenizer: bool) -> Result<(), DatasetError> {
    let text = matches!(sample.prompt, Prompt::Text(_)) || matches!(sample.output, OutputLength::AsText(_));
    if text && !tokenizer {
        return Err(DatasetError::Options(NO_TOKENIZER.into()));
    }
    if options.length_scale != 1.0 && (text || matches!(sample.prompt, Prompt::Tokens(_))) {
        let what = "--length-scale is for traces of lengths; this dataset has its prompts' text or token ids";
        return Err(DatasetError::Options(what.into()));
    }
    Ok(())
}

impl Iterator for Source {
    type Item = Result<Incoming, DatasetError>;

    /// The next request. After an error there is none.
    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.pull().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests;
