use pagedraft_block_manager::Error as BlockError;

use crate::{RequestKey, StepId};

/// Why no scheduler can be made from a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A setting is 0 that must be at least 1.
    #[error("{name} is 0; nothing could ever run, set it to 1 or more")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// The maximum length has no room for both a prompt token and an output token.
    #[error("max_model_len is {given}; a prompt token and an output token need 2")]
    MaxModelLen {
        /// What was given.
        given: u32,
    },
    /// The configuration limits the pieces of a prefill, but does not allow prefills to be cut.
    #[error(
        "prefill_chunk is {chunk} but chunked prefill is off; drop prefill_chunk or enable chunked prefill"
    )]
    ChunkWithoutChunking {
        /// The limit on a piece, in tokens.
        chunk: u32,
    },
    /// The block size, the pool or the KV groups can't be used.
    #[error(transparent)]
    Blocks(#[from] BlockError),
}

/// Why a request is refused: it could never be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The prompt has no token to continue.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// The request asks for no output token.
    #[error("max_tokens is 0; ask for at least one token")]
    NoTokens,
    /// The prompt leaves no room for an output token.
    #[error(
        "the prompt has {prompt_len} tokens; with one output token it exceeds max_model_len = {max_model_len}; \
         shorten the prompt or raise max_model_len"
    )]
    LongerThanModel {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// The limit.
        max_model_len: u32,
    },
    /// The prompt does not fit the KV pool even when the pool is empty.
    #[error(
        "the prompt has {prompt_len} tokens but the KV pool of {num_blocks} blocks holds {capacity} at most; \
         shorten the prompt or raise num_blocks"
    )]
    LargerThanPool {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// The number of blocks in the pool.
        num_blocks: u32,
        /// The number of tokens that the pool can hold.
        capacity: u32,
    },
    /// The prompt is longer than the token budget of a step, and prefills may not be cut.
    #[error(
        "the prompt has {prompt_len} tokens, chunked prefill is off and a step takes {max_num_batched_tokens} at most; \
         raise max_num_batched_tokens or enable chunked prefill"
    )]
    LargerThanStep {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// The token budget of a step.
        max_num_batched_tokens: u32,
    },
    /// The request is a fork, but its prompt or salt differs from its parent's.
    #[error("the request forks {parent} but its prompt or salt is another; forks share both")]
    ForkDiffers {
        /// The parent.
        parent: RequestKey,
    },
}

/// Why an outcome cannot be applied. Nothing has changed in this case, and the step is still in flight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The outcome belongs to another step.
    #[error("the outcome is of step {}, but {}", given.0, in_flight.map_or("no step is in flight".to_owned(), |id| format!("step {} is in flight", id.0)))]
    WrongStep {
        /// The step that the outcome belongs to.
        given: StepId,
        /// The step in flight.
        in_flight: Option<StepId>,
    },
    /// The outcome does not have one row for each plan row.
    #[error("step {} has {rows} plan rows but its outcome has {given}", step.0)]
    RowCount {
        /// The step.
        step: StepId,
        /// The number of plan rows.
        rows: usize,
        /// The number of rows in the outcome.
        given: usize,
    },
    /// A row of the outcome does not answer its plan row.
    #[error("row {row} of the outcome of step {} {what}", step.0)]
    Row {
        /// The step.
        step: StepId,
        /// The index of the row.
        row: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The block manager found a fault in its book-keeping.
    #[error("block manager: {0}")]
    Blocks(#[from] BlockError),
}
