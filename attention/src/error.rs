//! What can go wrong in this crate.

/// Every error of the crate; fields say where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttentionError {
    /// A block size the kernels have no layout for.
    #[error("block size {block_size} is not supported; it is one of 16, 32, 64")]
    BlockSize {
        /// Tokens a block.
        block_size: u32,
    },
    /// A number of heads, or a head dimension, that no attention has.
    #[error(
        "{heads} query heads over {kv_heads} key heads of {head_dim} values: each must be at least 1, and query heads a multiple of key heads"
    )]
    Shape {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
        /// Values a head.
        head_dim: usize,
    },
    /// A shape of attention that no CUDA kernel is written for.
    #[error(
        "no CUDA kernel has {group} query heads a key head, {head_dim} values a head, {act} queries and {kv} keys: there are up to 16 query heads a key head, head dimensions in multiples of 16 up to 128, bf16 and f16, and keys of the same type or fp8; run with --device cpu"
    )]
    NoCudaKernel {
        /// Values a head.
        head_dim: usize,
        /// Query heads a key head.
        group: usize,
        /// Type of queries.
        act: &'static str,
        /// Type of keys and values.
        kv: &'static str,
    },
    /// A metadata row without query tokens.
    #[error("metadata row {row} has no query token")]
    EmptyRow {
        /// Its index.
        row: usize,
    },
    /// A row of several query tokens after one of a single token.
    #[error(
        "metadata row {row} has {query_len} query tokens but follows a row of one: rows of several tokens come first"
    )]
    RowOrder {
        /// Its index.
        row: usize,
        /// Its query tokens.
        query_len: u32,
    },
    /// Lengths that don't fit in 32 bits.
    #[error("metadata row {row}: {context_len} + {query_len} tokens are more than 32 bits count")]
    TooLong {
        /// Its index.
        row: usize,
        /// Tokens before the row's own.
        context_len: u32,
        /// Its query tokens and the keys behind them.
        query_len: u32,
    },
    /// A block table that doesn't reach the end of its sequence.
    #[error("the block table of metadata row {row} has {blocks} blocks; its length needs {needed}")]
    ShortTable {
        /// Its index.
        row: usize,
        /// Blocks it has.
        blocks: usize,
        /// Blocks its length needs.
        needed: usize,
    },
    /// A row that has what only a bidirectional mask gives a meaning to.
    #[error(
        "metadata row {row} has {what} but a causal mask: only a row with a bidirectional mask can have them"
    )]
    NotBidirectional {
        /// Its index.
        row: usize,
        /// What it has: keys behind its queries, or explicit indices.
        what: &'static str,
    },
    /// Explicit indices that are not as many as the row's query tokens.
    #[error("metadata row {row} has {query_len} query tokens but {found} indices: each token needs one")]
    IndexLen {
        /// Its index.
        row: usize,
        /// Its query tokens.
        query_len: u32,
        /// Indices given.
        found: usize,
    },
    /// An explicit index that no token of the row can have.
    #[error(
        "metadata row {row}: query token {token} has index {index} in its group; indices ascend and are below the row's length, {seq_len}"
    )]
    WrongIndex {
        /// Its index.
        row: usize,
        /// The query token, counted in the row.
        token: usize,
        /// The index given.
        index: u32,
        /// Keys of the row.
        seq_len: u32,
    },
    /// A block that is needed although it was given back behind the window.
    #[error(
        "metadata row {row} needs entry {entry} of its block table, but that block was freed because it lay behind the window: either the window of this step is larger than the block manager's, or the row starts before what is kept"
    )]
    FreedBlock {
        /// The metadata row.
        row: usize,
        /// Index in its block table.
        entry: usize,
    },
    /// A window in which a query would not even see itself.
    #[error("the window of a step is 0 tokens; the least is 1 (a query sees itself), and no window is None")]
    EmptyWindow,
    /// A window over a row whose queries are not contiguous.
    #[error(
        "metadata row {row} has {seq_len} keys, a window of {window} and explicit indices: rows with explicit indices are computed only where the window covers all keys"
    )]
    WindowedIndex {
        /// The metadata row.
        row: usize,
        /// Keys of the row.
        seq_len: u32,
        /// The window, in tokens.
        window: u32,
    },
    /// A window for CUDA kernels, which have none.
    #[error(
        "metadata row {row} has {seq_len} keys and a window of {window}: the CUDA kernels have no sliding window; run with --device cpu"
    )]
    NoCudaWindow {
        /// The metadata row.
        row: usize,
        /// Keys of the row.
        seq_len: u32,
        /// The window, in tokens.
        window: u32,
    },
    /// A table wider than the width it is to be padded to.
    #[error(
        "the block table of metadata row {row} has {blocks} blocks, more than the width {width} to pad to"
    )]
    WideTable {
        /// Its index.
        row: usize,
        /// Blocks it has.
        blocks: usize,
        /// The width asked for.
        width: usize,
    },
    /// A block id outside the cache.
    #[error("metadata row {row} names block {block}; the cache has {num_blocks}")]
    NoSuchBlock {
        /// The metadata row.
        row: usize,
        /// The block.
        block: u32,
        /// Blocks in the cache.
        num_blocks: u32,
    },
    /// A slot outside the cache.
    #[error("token {token} is to be written to slot {slot}; the cache has {num_slots} (and -1 for none)")]
    NoSuchSlot {
        /// Index of the token in the step.
        token: usize,
        /// The slot.
        slot: i64,
        /// Slots in the cache.
        num_slots: u64,
    },
    /// A field of a metadata object that contradicts the others.
    #[error("metadata: {field}[{index}] is {found}, but the other fields say {expected}")]
    Inconsistent {
        /// The field's name.
        field: &'static str,
        /// Index in it (0 for a plain number).
        index: usize,
        /// What it says.
        found: i64,
        /// What it should say.
        expected: i64,
    },
    /// A buffer that is too small for what it is to hold.
    #[error("{buffer} has {found} elements; {needed} are needed")]
    SmallBuffer {
        /// Which one.
        buffer: &'static str,
        /// Elements it has.
        found: usize,
        /// Elements needed.
        needed: usize,
    },
    /// An instruction set that this machine lacks.
    #[error(transparent)]
    Isa(#[from] crate::isa::IsaError),
    /// A work list that was planned for another cache or other heads.
    #[error("the work list was planned for another {what}")]
    ForeignPlan {
        /// What differs.
        what: &'static str,
    },
}
