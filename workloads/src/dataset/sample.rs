use serde::{Deserialize, Serialize};

/// An item that a dataset gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A request.
    Sample(Sample),
    /// A record that is not a request.
    Skipped(Skipped),
}

/// A request as its dataset describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The dataset's own name for it, if it has one.
    pub source_id: Option<String>,
    /// The line of the file in which it begins, counted from 1; 0 if it was generated.
    pub line: u64,
    /// Its arrival in seconds since the window's start, if the dataset has times.
    pub arrival_s: Option<f64>,
    /// The prompt.
    pub prompt: Prompt,
    /// The length of the output.
    pub output: OutputLength,
    /// What a good answer is, if the dataset says so.
    pub expect: Option<Expectation>,
    /// The dataset's category, domain, model or kind of log, if it has one.
    pub category: Option<String>,
}

/// A prompt, as far as its dataset describes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// This many tokens, which no other request shares.
    Length(u32),
    /// Tokens in named blocks: blocks of equal names have equal tokens. The last block may be cut.
    Blocks {
        /// The number of tokens in all.
        length: u32,
        /// The number of tokens in a block.
        block_size: u32,
        /// The names of the blocks.
        ids: Vec<u64>,
    },
    /// Tokens that begin with a prefix which all prompts of the group share.
    SharedPrefix {
        /// The number of tokens in all.
        length: u32,
        /// The number of tokens in the shared prefix.
        prefix: u32,
        /// The group.
        group: u64,
    },
    /// A text.
    Text(String),
    /// Token ids of the dataset's own tokenizer.
    Tokens(Vec<u32>),
}

/// How long an output is.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputLength {
    /// This many tokens, whatever they are: the engine ignores end-of-sequence tokens.
    Tokens(u32),
    /// As many tokens as this text has, whatever they are.
    AsText(String),
    /// It ends when the model stops, but after at most this many tokens (`None`: the run's default).
    UntilStop(Option<u32>),
}

/// What a good answer is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Expectation {
    /// RULER: the answer should contain these strings. The score is the share that it contains; with `any`,
    /// one is enough.
    Contains {
        /// The strings.
        answers: Vec<String>,
        /// Whether one of them is enough (RULER's question answering).
        any: bool,
    },
    /// LongBench v2: this choice.
    Choice {
        /// The letter of the choice, `A` to `D`.
        answer: char,
    },
}

/// A record that is not run as a request, and the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Skipped {
    /// The dataset's own name for it, if it has one.
    pub source_id: Option<String>,
    /// The line of the file in which it begins, counted from 1.
    pub line: u64,
    /// Its arrival in seconds since the window's start, if the dataset has times.
    pub arrival_s: Option<f64>,
    /// The number of tokens in its prompt, if it is known.
    pub prompt_tokens: Option<u32>,
    /// The reason.
    pub reason: SkipReason,
}

/// Why a record was not run.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The trace marks it as failed: it has no output.
    FailedInTrace,
    /// Its prompt has no tokens.
    EmptyPrompt,
    /// It is a conversation without an answer.
    NoAnswer,
    /// Its prompt is longer than `--max-prompt-tokens`.
    PromptTooLong,
    /// Prompt and output together are longer than the model allows.
    LongerThanModel,
    /// Prompt and output together take more than the KV pool holds.
    LargerThanPool,
    /// Its prompt is longer than a step's token budget, and chunked prefill is off.
    LargerThanStep,
}
