//! What an analysis says.

use serde::Serialize;

/// What an analysis is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DsaAnalysisOptions {
    /// The share of a request's keys that the cache of `token_lru` holds, from 0 to 1.
    pub cache_share: f64,
    /// How many first tokens count as sinks.
    pub sink_tokens: u32,
    /// How many last tokens, the query token among them, count as recent.
    pub recent_tokens: u32,
    /// The records that are read, at most: the first ones. Null for all.
    pub most_records: Option<u64>,
}

impl Default for DsaAnalysisOptions {
    fn default() -> Self {
        Self { cache_share: 0.2, sink_tokens: 4, recent_tokens: 64, most_records: None }
    }
}

/// What the records of a trace say about which keys sparse attention chooses. See the [module](super) for the definitions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DsaAnalysis {
    /// What was asked for.
    pub options: DsaAnalysisOptions,
    /// The keys that a layer chooses at most.
    pub index_topk: u32,
    /// Tokens a block.
    pub block_size: u32,
    /// Requests with records.
    pub requests: u64,
    /// Whether the file ended within a record, which was left out.
    pub cut: bool,
    /// All layers together.
    pub all: DsaFigures,
    /// Each layer with an indexer.
    pub layers: Vec<DsaFigures>,
}

/// The figures of one layer, or of all together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DsaFigures {
    /// The layer; null of all together.
    pub layer: Option<u16>,
    /// Records of tokens that belong to their sequence.
    pub records: u64,
    /// Keys chosen, a record.
    pub selected_keys: f64,
    /// Keys that a token sees, a record.
    pub keys: f64,
    /// Of one token and the one before it.
    pub steps: StepOverlap,
    /// Of one layer and the layer with an indexer before it.
    pub adjacent_layers: LayerOverlap,
    /// `unique_blocks` as a share of the blocks that hold keys: the mean.
    pub coverage: f64,
    /// The expectation of that for random choices of as many keys: the mean.
    pub coverage_random: f64,
    /// The same by the number of keys.
    pub coverage_by_context: Vec<ContextCoverage>,
    /// The share of chosen keys that are among the first tokens.
    pub sink_share: f64,
    /// The share of chosen keys that are among the last tokens.
    pub recent_share: f64,
    /// How choices meet the prefix cache.
    pub prefix: PrefixFigures,
    /// Verify steps.
    pub verify_union: VerifyUnion,
    /// A cache of tokens.
    pub token_lru: TokenLru,
    /// How many other blocks were read since a block was last read.
    pub reuse_distances: ReuseDistances,
    /// Misses of caches of blocks.
    pub misses_by_size: Vec<SizeMisses>,
}

/// How much of a choice was in the choice for the token before. Means over pairs; null if there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepOverlap {
    /// Pairs of tokens at positions t-1 and t of a request.
    pub pairs: u64,
    /// |K(t-1) n K(t)| / k, k the keys that a layer may choose.
    pub raw: Option<f64>,
    /// |K(t-1) n K(t)| / |K(t)|.
    pub of_current: Option<f64>,
    /// |(K(t-1) + 1) n K(t)| / |K(t)|: keys at the same distance.
    pub shifted: Option<f64>,
    /// |K(t-1) n K(t)| / |K(t-1) u K(t)|.
    pub jaccard: Option<f64>,
}

/// How much of a choice was in that of the layer before. Means over pairs; null if there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LayerOverlap {
    /// Pairs of layers.
    pub pairs: u64,
    /// |K(l-1) n K(l)| / |K(l)|.
    pub of_current: Option<f64>,
    /// |K(l-1) n K(l)| / |K(l-1) u K(l)|.
    pub jaccard: Option<f64>,
}

/// Coverage where tokens see so many keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ContextCoverage {
    /// The least number of keys, a power of two.
    pub from_keys: u64,
    /// Twice as many, left out.
    pub below_keys: u64,
    /// Records.
    pub records: u64,
    /// Mean coverage.
    pub coverage: f64,
    /// Mean coverage of random choices.
    pub coverage_random: f64,
}

/// How choices meet the prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PrefixFigures {
    /// Records of requests that found blocks in the cache.
    pub hit_records: u64,
    /// Of these, the share of chosen blocks that are cached ones: the mean; null if there are none.
    pub intersection_ratio: Option<f64>,
}

/// What the rows of a verify step choose together, rejected drafts too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct VerifyUnion {
    /// Verify steps of a request.
    pub steps: u64,
    /// Rows a step.
    pub rows: Option<f64>,
    /// Keys a row.
    pub keys_per_row: Option<f64>,
    /// Different keys a step.
    pub union_keys: Option<f64>,
    /// Different keys a step by keys a row: 1 if all rows choose the same, the number of rows if none share any.
    pub ratio: Option<f64>,
}

/// A cache of tokens, one for each request and layer, which starts empty and drops the least recently used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TokenLru {
    /// Keys read.
    pub accesses: u64,
    /// Those that were not in the cache.
    pub misses: u64,
    /// Of the misses, first reads of a key.
    pub cold: u64,
    /// Misses by accesses; null if there are none.
    pub miss_ratio: Option<f64>,
}

/// How many other blocks were read between two reads of a block, for each request and layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReuseDistances {
    /// Blocks read.
    pub accesses: u64,
    /// First reads of a block.
    pub cold: u64,
    /// `[distance, reads]`: reads whose distance is below this power of two, and not below the one before it.
    pub below: Vec<(u64, u64)>,
}

/// Misses of caches of blocks, one for each request and layer, which start empty, as shares of the blocks read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SizeMisses {
    /// Blocks that a cache holds.
    pub blocks: u64,
    /// If the least recently used is dropped.
    pub lru: f64,
    /// If what is used again last is dropped, which is the best that can be.
    pub belady: f64,
}
