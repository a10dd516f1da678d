use pagedraft_block_manager::Error as BlockError;

use crate::{RequestKey, StepId};

/// Names the request in whose book-keeping a fault of the block manager was found.
pub(crate) fn of(request: RequestKey) -> impl Fn(BlockError) -> Error {
    move |source| Error::Blocks { request, source }
}

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
    /// Segments that do not fit the KV groups.
    #[error("segment {segment} of the model {what}")]
    Segments {
        /// The segment's index.
        segment: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The block size, the pool or the KV groups.
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
    /// The prompt does not fit the KV pool even when the pool is empty, although tokens are dropped on the way.
    #[error(
        "the prompt has {prompt_len} tokens and is pruned; it takes {bytes} bytes of KV memory, and the pool of {num_blocks} blocks has {pool}. \
         {held} of them are for rows that wait behind layers which drop tokens, because a step computes {piece} tokens at most; \
         shorten the prompt, raise num_blocks, or raise max_num_batched_tokens (and prefill_chunk) above the prompt"
    )]
    PrunedLargerThanPool {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// The number of blocks in the pool.
        num_blocks: u32,
        /// The bytes that the pool has.
        pool: u64,
        /// The bytes that the request takes.
        bytes: u64,
        /// Those of them in which rows wait.
        held: u64,
        /// The most tokens of a prompt that a step computes.
        piece: u32,
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
    /// Counts of kept tokens that do not fit the prompt or the model.
    #[error(
        "the request keeps {kept:?} of {prompt_len} prompt tokens behind the cuts of a model that has {cuts}; {what}"
    )]
    Kept {
        /// Tokens kept behind each cut.
        kept: Vec<u32>,
        /// Tokens of the prompt.
        prompt_len: usize,
        /// Cuts of the model.
        cuts: usize,
        /// The rule that is broken.
        what: &'static str,
    },
    /// A canvas that cannot be denoised.
    #[error("the canvas of {len} tokens in blocks of {block}, behind {prompt_len} prompt tokens, {what}")]
    Canvas {
        /// Tokens of the canvas.
        len: u32,
        /// Tokens a block.
        block: u32,
        /// Tokens of the prompt.
        prompt_len: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A fork of a request with another prompt or salt.
    #[error("the request forks {parent} but its prompt or salt is another; forks share both")]
    ForkDiffers {
        /// The parent.
        parent: RequestKey,
    },
}

/// Why a step cannot be planned, or its outcome not be applied.
///
/// When an outcome does not answer its plan ([`Error::WrongStep`], [`Error::RowCount`], [`Error::Row`]), nothing has
/// changed and the step is still in flight. The others are faults of the book-keeping of one request, which they name;
/// the scheduler goes on, and that request is best aborted.
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
    /// A fault of the book-keeping of a request's blocks.
    #[error("request {request}: the KV blocks are not as the scheduler knows them: {source}")]
    Blocks {
        /// Whose blocks.
        request: RequestKey,
        /// The fault.
        source: BlockError,
    },
    /// Room for a request's row was counted, and then was not there.
    #[error("request {request}: the KV blocks that were counted for its row cannot be had")]
    NoRoom {
        /// Whose row.
        request: RequestKey,
    },
    /// A queue names a request that does not exist.
    #[error("request {request} is queued but does not exist")]
    NoSuchRequest {
        /// The request.
        request: RequestKey,
    },
}
