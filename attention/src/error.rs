//! The errors of this crate.

/// Every error of the crate. The fields say where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttentionError {
    /// A block size that the kernels have no layout for.
    #[error("block size {block_size} is not supported; it is one of 16, 32, 64")]
    BlockSize {
        /// How many tokens a block should hold.
        block_size: u32,
    },
    /// Numbers of heads, or a head dimension, that no attention can have.
    #[error(
        "{heads} query heads over {kv_heads} key heads of {head_dim} values: each must be at least 1, and query heads a multiple of key heads"
    )]
    Shape {
        /// How many query heads there are.
        heads: usize,
        /// How many key heads there are; there are as many value heads.
        kv_heads: usize,
        /// How many values a head has.
        head_dim: usize,
    },
    /// A shape of attention that there is no CUDA kernel for.
    #[error(
        "no CUDA kernel has {group} query heads a key head, {head_dim} values a head, {act} queries and {kv} keys: there are up to 16 query heads a key head, head dimensions in multiples of 16 up to 128, bf16 and f16, and keys of the same type or fp8; run with --device cpu"
    )]
    NoCudaKernel {
        /// How many values a head has.
        head_dim: usize,
        /// How many query heads read one key head.
        group: usize,
        /// The number type of the queries.
        act: &'static str,
        /// The number type of keys and values in the cache.
        kv: &'static str,
    },
    /// Latents that are stored in fp8.
    #[error("there is no attention over latents in fp8; store them in the dtype of the model")]
    Fp8Latents,
    /// A metadata row without query tokens.
    #[error("metadata row {row} has no query token")]
    EmptyRow {
        /// The index of the row in the step.
        row: usize,
    },
    /// A row of several query tokens comes after a row of one.
    #[error(
        "metadata row {row} has {query_len} query tokens but follows a row of one: rows of several tokens come first"
    )]
    RowOrder {
        /// The index of the row in the step.
        row: usize,
        /// How many query tokens the row has.
        query_len: u32,
    },
    /// A row's lengths don't fit in 32 bits.
    #[error("metadata row {row}: {context_len} + {query_len} tokens are more than 32 bits count")]
    TooLong {
        /// The index of the row in the step.
        row: usize,
        /// How many tokens lie before the row's own.
        context_len: u32,
        /// How many query tokens and keys behind them the row has together.
        query_len: u32,
    },
    /// A block table that doesn't cover the length of its row.
    #[error("the block table of metadata row {row} has {blocks} blocks; its length needs {needed}")]
    ShortTable {
        /// The index of the row in the step.
        row: usize,
        /// How many blocks the table has.
        blocks: usize,
        /// How many blocks the row's length needs.
        needed: usize,
    },
    /// A row with a causal mask has something that only a bidirectional mask allows.
    #[error(
        "metadata row {row} has {what} but a causal mask: only a row with a bidirectional mask can have them"
    )]
    NotBidirectional {
        /// The index of the row in the step.
        row: usize,
        /// What it has: keys behind its queries, or explicit indices.
        what: &'static str,
    },
    /// The number of explicit indices differs from the number of query tokens.
    #[error("metadata row {row} has {query_len} query tokens but {found} indices: each token needs one")]
    IndexLen {
        /// The index of the row in the step.
        row: usize,
        /// How many query tokens the row has.
        query_len: u32,
        /// How many indices were given.
        found: usize,
    },
    /// An explicit index that no token of the row can have.
    #[error(
        "metadata row {row}: query token {token} has index {index} in its group; indices ascend and are below the row's length, {seq_len}"
    )]
    WrongIndex {
        /// The index of the row in the step.
        row: usize,
        /// The number of the query token within the row.
        token: usize,
        /// The index given.
        index: u32,
        /// How many keys the row has.
        seq_len: u32,
    },
    /// A block that the row needs was freed because it lay behind the sliding window.
    #[error(
        "metadata row {row} needs entry {entry} of its block table, but that block was freed because it lay behind the window: either the window of this step is larger than the block manager's, or the row starts before what is kept"
    )]
    FreedBlock {
        /// The metadata row.
        row: usize,
        /// The entry of its block table.
        entry: usize,
    },
    /// The sliding window is 0 tokens long, so a query would not even see itself.
    #[error("the window of a step is 0 tokens; the least is 1 (a query sees itself), and no window is None")]
    EmptyWindow,
    /// A row has both a sliding window and queries that are not contiguous.
    #[error(
        "metadata row {row} has {seq_len} keys, a window of {window} and explicit indices: rows with explicit indices are computed only where the window covers all keys"
    )]
    WindowedIndex {
        /// The metadata row.
        row: usize,
        /// How many keys the row has.
        seq_len: u32,
        /// The window, in tokens.
        window: u32,
    },
    /// A row has a sliding window, which the CUDA kernels don't have.
    #[error(
        "metadata row {row} has {seq_len} keys and a window of {window}: the CUDA kernels have no sliding window; run with --device cpu"
    )]
    NoCudaWindow {
        /// The metadata row.
        row: usize,
        /// How many keys the row has.
        seq_len: u32,
        /// The window, in tokens.
        window: u32,
    },
    /// A block table is longer than the width it is to be padded to.
    #[error(
        "the block table of metadata row {row} has {blocks} blocks, more than the width {width} to pad to"
    )]
    WideTable {
        /// The index of the row in the step.
        row: usize,
        /// How many blocks the table has.
        blocks: usize,
        /// The width that was asked for, in blocks.
        width: usize,
    },
    /// A block id lies outside the cache.
    #[error("metadata row {row} names block {block}; the cache has {num_blocks}")]
    NoSuchBlock {
        /// The metadata row.
        row: usize,
        /// The block.
        block: u32,
        /// How many blocks the cache has.
        num_blocks: u32,
    },
    /// A slot lies outside the cache.
    #[error("token {token} is to be written to slot {slot}; the cache has {num_slots} (and -1 for none)")]
    NoSuchSlot {
        /// The index of the token in the step.
        token: usize,
        /// The slot.
        slot: i64,
        /// How many slots the cache has.
        num_slots: u64,
    },
    /// A field of the metadata contradicts the others.
    #[error("metadata: {field}[{index}] is {found}, but the other fields say {expected}")]
    Inconsistent {
        /// The name of the field.
        field: &'static str,
        /// The index within the field; 0 if the field is a single number.
        index: usize,
        /// What the field says.
        found: i64,
        /// What the field should say according to the others.
        expected: i64,
    },
    /// A buffer is too small for what it is to hold.
    #[error("{buffer} has {found} elements; {needed} are needed")]
    SmallBuffer {
        /// The name of the buffer.
        buffer: &'static str,
        /// How many elements it has.
        found: usize,
        /// How many elements are needed.
        needed: usize,
    },
    /// This machine lacks the instruction set.
    #[error(transparent)]
    Isa(#[from] crate::isa::IsaError),
    /// The work list was planned for another cache or another number of heads.
    #[error("the work list was planned for another {what}")]
    ForeignPlan {
        /// What differs.
        what: &'static str,
    },
}
