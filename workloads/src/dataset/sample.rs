use serde::{Deserialize, Serialize};

/// What a dataset gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A request.
    Sample(Sample),
    /// A record that is none.
    Skipped(Skipped),
}

/// A request as its dataset tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The dataset's own name for it, where it has one.
    pub source_id: Option<String>,
    /// The line of the file that it begins in, from 1; 0 when it was generated.
    pub line: u64,
    /// Seconds since the window's start, where the dataset has times.
    pub arrival_s: Option<f64>,
    /// What is asked.
    pub prompt: Prompt,
    /// How much is answered.
    pub output: OutputLength,
    /// What a good answer is, where the dataset says.
    pub expect: Option<Expectation>,
    /// The dataset's category, domain, model or kind of log, where it has one.
    pub category: Option<String>,
}

/// A prompt, as far as its dataset tells it.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// So many tokens, of no other request.
    Length(u32),
    /// So many tokens, in blocks that are named: equal names are equal tokens. The last block may be cut.
    Blocks {
        /// Tokens in all.
        length: u32,
        /// Tokens a block.
        block_size: u32,
        /// Names of the blocks.
        ids: Vec<u64>,
    },
    /// So many tokens, the first of which are those of every prompt of the group.
    SharedPrefix {
        /// Tokens in all.
        length: u32,
        /// Of these, the group's.
        prefix: u32,
        /// Which group.
        group: u64,
    },
    /// Text.
    Text(String),
    /// Token ids (of the dataset's own tokenizer).
    Tokens(Vec<u32>),
}

/// How long an answer is.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputLength {
    /// So many tokens, whatever they are: the engine ignores end-of-sequence tokens.
    Tokens(u32),
    /// As many tokens as this text has, likewise.
    AsText(String),
    /// Until the model stops, at most so many tokens (`None`: the run's default).
    UntilStop(Option<u32>),
}

/// What a good answer is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Expectation {
    /// RULER: all of these strings, each its share (or, with `any`, the best of them).
    Contains {
        /// The strings.
        answers: Vec<String>,
        /// Whether one of them is enough (RULER's question answering).
        any: bool,
    },
    /// LongBench v2: this choice.
    Choice {
        /// `A` to `D`.
        answer: char,
    },
}

/// A record that is no request, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Skipped {
    /// The dataset's own name for it, where it has one.
    pub source_id: Option<String>,
    /// The line of the file that it begins in, from 1.
    pub line: u64,
    /// Seconds since the window's start, where the dataset has times.
    pub arrival_s: Option<f64>,
    /// Tokens of its prompt, where they are known.
    pub prompt_tokens: Option<u32>,
    /// Why.
    pub reason: SkipReason,
}

/// Why a record was not run.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The trace has it as failed: no output.
    FailedInTrace,
    /// Its prompt has no token.
    EmptyPrompt,
    /// A conversation without an answer.
    NoAnswer,
    /// Its prompt is longer than `--max-prompt-tokens`.
    PromptTooLong,
    /// Prompt and output are longer than the model can take.
    LongerThanModel,
    /// Prompt and output are more than the KV pool holds.
    LargerThanPool,
    /// Its prompt is more than a step's budget, and chunked prefill is off.
    LargerThanStep,
}
