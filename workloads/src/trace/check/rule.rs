//! The rules that a trace must obey.

use std::fmt;

/// A rule that a trace must obey. `Display` gives the name that `pagedraft trace check` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Every line but a cut last one is a JSON object, and a step has the fields of a step.
    Line,
    /// The step numbers of each engine increase, even after a stopped run is resumed.
    StepOrder,
    /// If there are several engines, each step names one of the configuration's, and each request belongs
    /// to one engine.
    Replica,
    /// A step has at most one plan row per request, and each row has at least one token.
    PlanRows,
    /// The outcome has one row for each plan row, in order, and accepts no more drafts than it scored.
    Outcome,
    /// Metadata rows belong to the plan rows that `plan_rows` names. Their contexts start where the plan's
    /// do, and their queries are as long.
    MetadataRows,
    /// `seq_lens` is context + query (or more, for a row that also sees the keys behind its queries), and
    /// the two start locations are running sums.
    Lengths,
    /// Counts and maxima agree with the rows, and rows of several query tokens come first.
    Counts,
    /// A step was replayed exactly if it has a graph's key. The key's shape must have room for the step,
    /// its exact query length, and a size that was captured.
    Graph,
    /// Positions follow the context.
    Positions,
    /// Block ids lie in the pool, none is twice in a table, and a row's table covers its tokens. Only a
    /// trace with `--trace-tables delta` may leave a table out.
    BlockTable,
    /// Table entries are -1 for exactly the blocks that lie wholly behind the window of the row's first
    /// query, and windows are those of the configuration.
    Window,
    /// Every slot is `table[i / block_size] * block_size + i % block_size`; tokens whose KV is already
    /// stored have none.
    Slot,
    /// No slot is written twice in a step.
    SlotTwice,
    /// A running request's table only grows, except where the step copies a block.
    TableChange,
    /// A block that is written is in one request's table only.
    SharedWrite,
    /// A block that several tables share has the same index in each.
    Alias,
    /// A step copies a block that somebody holds to one that nobody held, and a row has that one
    /// afterwards.
    Copy,
    /// Whatever a row reads was written before: by an earlier step of the request that had the block then,
    /// or by a copy.
    Unwritten,
    /// The context of a row consists of the request's own tokens. Blocks that it starts with, as a new
    /// request or after a preemption, were published, or belong to a running request that has computed all
    /// of them.
    Context,
    /// A published block is full of computed and accepted tokens of the request that publishes it. It is
    /// published once until it is removed, and neither written nor handed out before that. Its hash follows
    /// from its tokens, its parent's hash and the salt, and its parent was published before it.
    Published,
    /// A row starts where the request's row before ended: after what was scheduled, less rejected drafts.
    Growth,
    /// Decode and verify rows are those that begin with the last known token, if that was generated.
    Kind,
    /// Rows that sample emit their accepted drafts and one more token, or fewer if the request ends. A row
    /// feeds the request's own tokens.
    Tokens,
    /// Accepted drafts are the tokens that were emitted. Under coupled acceptance, the draft after them is
    /// not.
    Acceptance,
    /// Requests that ended do not come back.
    FinishedAgain,
    /// `preempted` names requests that ran, each once.
    Preempted,
    /// `finished` names each request that ended, once, in the step whose outcome says so (or after its
    /// abort).
    Finished,
    /// `used` + `free` is the pool's size, which is the configuration's and never changes, and `cached` is
    /// at most `free`. `used` is the number of blocks of those who run after the step: 0 if nobody does,
    /// and exactly the tables' if there are no drafts. If several KV groups share the pool, its bytes are
    /// what the groups' blocks take, each group's blocks are those of the tables, and no two blocks that
    /// are held share bytes.
    Pool,
    /// Every query token of the kinds and the share that `dsa` in the configuration names has one record for
    /// each layer. It has as many keys as the layer attends to; a layer that shares an indexer has the keys of
    /// the other. Blocks, counts, coverage, bytes and prefix follow from the keys and the step's tables.
    DsaTopk,
    /// What was kept of a prompt behind a layer ascends, is as many tokens as the request's rows say, and is part of what was kept
    /// behind the layer before. The counts and the blocks freed follow from it.
    Prune,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line => "line",
            Self::StepOrder => "step-order",
            Self::Replica => "replica",
            Self::PlanRows => "plan-rows",
            Self::Outcome => "outcome",
            Self::MetadataRows => "metadata-rows",
            Self::Lengths => "lengths",
            Self::Counts => "counts",
            Self::Graph => "graph",
            Self::Positions => "positions",
            Self::BlockTable => "block-table",
            Self::Window => "window",
            Self::Slot => "slot",
            Self::SlotTwice => "slot-twice",
            Self::TableChange => "table-change",
            Self::SharedWrite => "shared-write",
            Self::Alias => "alias",
            Self::Copy => "copy",
            Self::Unwritten => "unwritten",
            Self::Context => "context",
            Self::Published => "published",
            Self::Growth => "growth",
            Self::Kind => "kind",
            Self::Tokens => "tokens",
            Self::Acceptance => "acceptance",
            Self::FinishedAgain => "finished-again",
            Self::Preempted => "preempted",
            Self::Finished => "finished",
            Self::Pool => "pool",
            Self::DsaTopk => "dsa-topk",
            Self::Prune => "prune",
        })
    }
}
