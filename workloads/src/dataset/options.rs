//! The options that say which samples are read or drawn.

use std::path::PathBuf;

/// A kind of dataset or trace, by the name that `--workload` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// BurstGPT's csv files, with the columns in either order: `Timestamp` in seconds, `Request tokens`,
    /// `Response tokens`, and `Log Type`, which is the category.
    Burstgpt,
    /// Azure's LLM inference traces (csv): `TIMESTAMP` (date and time, with up to nine decimals of a second
    /// and with or without an offset from UTC), `ContextTokens` and `GeneratedTokens`.
    Azure,
    /// Mooncake's traces (JSON lines): `timestamp` in milliseconds, `input_length`, `output_length`, and
    /// `hash_ids`, which has a name for each block of 512 prompt tokens.
    Mooncake,
    /// Vidur's processed traces (csv): `num_prefill_tokens`, `num_decode_tokens`, and in some of them
    /// `arrived_at` in seconds.
    Vidur,
    /// ShareGPT conversations (a JSON array, or JSON lines), or JSON lines of token ids made from them.
    ///
    /// A prompt has a line for each turn before the answer (`User: ..`, `Assistant: ..`, `System: ..`,
    /// other roles by their names), and ends with `Assistant:`. The length of the recorded answer is the
    /// length of the output. Answers are the turns of `gpt`, `chatgpt`, `bing`, `bard`, `assistant` and
    /// `model`.
    Sharegpt,
    /// RULER's JSON lines (`index`, `input`, `outputs`, `answer_prefix`), or its tasks generated.
    ///
    /// The task is named by a field `task`, or by the file or its directory. Question answering (`qa_..`)
    /// needs one of the answers; other tasks need all of them.
    Ruler,
    /// LongBench v1 (JSON lines).
    ///
    /// A prompt is the context, the input, and `Summary:` or `Answer:` (not the paper's wording). Code is
    /// given as it is. An answer is right if it contains one of `answers`; summaries and code have no
    /// score.
    Longbench,
    /// LongBench v2 (a JSON array, or JSON lines), in its authors' zero-shot prompt.
    LongbenchV2,
    /// Spec-Bench's questions (JSON lines), the first turn of each. With [`Turns::PerUserTurn`] further
    /// turns are requests too. Their prompts hold the user turns before them, without answers, because the
    /// file has none.
    SpecBench,
    /// Lengths drawn from ranges.
    Random,
}

/// Which turns of a conversation are requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turns {
    /// One request per conversation. Everything before the last answer is its prompt.
    #[default]
    Full,
    /// One request per answer. Everything before the answer is its prompt. It is named by its conversation
    /// and its number, such as `id#2`.
    PerUserTurn,
}

/// The options of samples that are not read from a file: their lengths, and the share of each prompt that
/// all have in common.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RandomOptions {
    /// How many samples there are.
    pub num_requests: u64,
    /// The length of a prompt in tokens.
    pub input_len: u32,
    /// The length of an output in tokens.
    pub output_len: u32,
    /// The range r: lengths are drawn evenly from `len * (1 - r) ..= len * (1 + r)`.
    pub range_ratio: f64,
    /// The share of each prompt that is a common prefix, 0 to 1.
    pub prefix_share: f64,
}

/// What is read, and which part of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DatasetOptions {
    /// The kind of dataset.
    pub workload: Workload,
    /// The file; `None` if samples are generated.
    #[serde(serialize_with = "crate::path_text::serialize")]
    pub path: Option<PathBuf>,
    /// Which turns of conversations are requests.
    pub turns: Turns,
    /// The start of the window, in seconds since the file's first record. Earlier records are left out, and
    /// times count from here.
    pub from_s: Option<f64>,
    /// The end of the window, in seconds since the file's first record. Records at or after it are left
    /// out.
    pub to_s: Option<f64>,
    /// At most this many samples of the window are taken, from the first on. Skipped ones count.
    pub limit: Option<u64>,
    /// Whether requests that the trace marks as failed (no output) are run, with an output of one token.
    pub keep_failed: bool,
    /// For [`Workload::Random`].
    pub random: Option<RandomOptions>,
    /// For [`Workload::Ruler`] without a file.
    pub ruler: Option<crate::tasks::RulerOptions>,
    /// The seed of everything that is drawn.
    pub seed: u64,
}
