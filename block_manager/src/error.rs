use crate::{BlockSize, GroupId, MAX_GROUPS, SequenceId};

/// What can be wrong with a request to the block manager. "No room" is not among them: that is `None`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A block size without kernels.
    #[error("block size {given} is not allowed; choose one of {:?}", BlockSize::ALLOWED)]
    BlockSize {
        /// What was asked for.
        given: u32,
    },
    /// A pool without blocks.
    #[error("a KV pool of 0 blocks holds nothing; give it at least one block")]
    NoBlocks,
    /// A manager without KV groups.
    #[error("the list of KV groups is empty; a dense model has one group (KvGroup::dense)")]
    NoGroups,
    /// Group ids that do not count up from 0.
    #[error("KV group `{name}` has id {} but is number {index} of the list; ids count up from 0", id.0)]
    GroupOrder {
        /// The group's name.
        name: String,
        /// Its id.
        id: GroupId,
        /// Its place in the list.
        index: usize,
    },
    /// More KV groups than an arena can hold.
    #[error("{given} KV groups are too many; an arena holds at most {MAX_GROUPS}")]
    TooManyGroups {
        /// How many there are.
        given: usize,
    },
    /// A group whose blocks take no memory.
    #[error("KV group `{name}` has 0 bytes a token; give it a part with layers and bytes, or leave it out")]
    EmptyGroup {
        /// The group's name.
        name: String,
    },
    /// A window in which nothing is seen.
    #[error(
        "KV group `{name}` has a window of 0 tokens, in which a token does not even see itself; give at least 1"
    )]
    EmptyWindow {
        /// The group's name.
        name: String,
    },
    /// An arena whose blocks cannot be counted in 32 bits.
    #[error(
        "an arena for {num_blocks} blocks of every KV group has too many blocks to be counted; ask for fewer"
    )]
    TooManyBlocks {
        /// Blocks that every group was to have.
        num_blocks: u32,
    },
    /// A handle whose sequence was freed.
    #[error("sequence {sequence} does not exist (any more); its handle must not be used after free")]
    StaleSequence {
        /// The handle.
        sequence: SequenceId,
    },
    /// A group that the manager was not made with.
    #[error("KV group {} does not exist; there are {num_groups}", group.0)]
    UnknownGroup {
        /// The group asked for.
        group: GroupId,
        /// How many there are.
        num_groups: usize,
    },
    /// A commit of slots without blocks.
    #[error(
        "sequence {sequence} commits {upto} slots of KV group {} but has blocks for {reserved}; reserve them first", group.0
    )]
    CommitBeyondReserved {
        /// Whose.
        sequence: SequenceId,
        /// In which group.
        group: GroupId,
        /// Slots to be committed.
        upto: u32,
        /// Slots there are blocks for.
        reserved: u32,
    },
    /// A commit that would shorten the sequence.
    #[error(
        "sequence {sequence} commits {upto} slots of KV group {} but has {committed} committed; to go back use truncate", group.0
    )]
    CommitBackwards {
        /// Whose.
        sequence: SequenceId,
        /// In which group.
        group: GroupId,
        /// Slots to be committed.
        upto: u32,
        /// Slots committed before.
        committed: u32,
    },
    /// Fewer tokens were handed over than are to be committed.
    #[error("sequence {sequence} commits {upto} tokens but only {given} were given")]
    MissingTokens {
        /// Whose.
        sequence: SequenceId,
        /// Tokens to be committed.
        upto: u32,
        /// Tokens given.
        given: usize,
    },
    /// A fork past what the parent has.
    #[error(
        "sequence {parent} is forked at {len} tokens but has {committed} committed in KV group {}", group.0
    )]
    ForkBeyondCommitted {
        /// The parent.
        parent: SequenceId,
        /// In which group.
        group: GroupId,
        /// Where it was to be forked.
        len: u32,
        /// What it has.
        committed: u32,
    },
    /// A sequence as its own parent.
    #[error("sequence {sequence} cannot be forked into itself; open another for the fork")]
    ForkOfItself {
        /// Which.
        sequence: SequenceId,
    },
    /// A fork under another salt.
    #[error(
        "sequences {parent} and {child} were opened under different salts; a fork shares KV, and KV its salt"
    )]
    SaltDiffers {
        /// The parent.
        parent: SequenceId,
        /// The fork.
        child: SequenceId,
    },
    /// A fork, or a prefix, into a sequence that holds blocks.
    #[error("sequence {sequence} holds {blocks} blocks already; only an empty one can take a prefix")]
    NotEmpty {
        /// Whose.
        sequence: SequenceId,
        /// Blocks it holds.
        blocks: usize,
    },
    /// An operation by positions on a group whose slots are not positions.
    #[error(
        "KV group {} of sequence {sequence} is pruned ({physical} slots for {logical} positions); it cannot be cut by position", group.0
    )]
    Pruned {
        /// Whose.
        sequence: SequenceId,
        /// In which group.
        group: GroupId,
        /// Slots.
        physical: u32,
        /// Positions.
        logical: u32,
    },
    /// A prefix hit that is no longer in the cache.
    #[error(
        "the prefix hit of sequence {sequence} lost block {block}; take a hit before anything else is allocated"
    )]
    HitLost {
        /// Whose.
        sequence: SequenceId,
        /// Which block of the hit.
        block: u32,
    },
    /// A sequence that goes back to a place whose keys were given back behind the window.
    #[error(
        "sequence {sequence} cannot go on from slot {slots} of KV group {}: its window begins in block {needed}, but \
         the blocks before {first} were given back; compute the sequence anew", group.0
    )]
    BehindWindow {
        /// Whose.
        sequence: SequenceId,
        /// In which group.
        group: GroupId,
        /// Where it was to go on.
        slots: u32,
        /// The first block that is seen from there.
        needed: u32,
        /// The first block that is still held.
        first: u32,
    },
    /// A list of kept positions out of order.
    #[error(
        "the list of positions kept in KV group {} of sequence {sequence} is wrong at entry {index}; positions must \
         ascend and be below {positions}", group.0
    )]
    KeptOrder {
        /// Whose.
        sequence: SequenceId,
        /// In which group.
        group: GroupId,
        /// Which entry.
        index: usize,
        /// Positions there are.
        positions: u32,
    },
    /// A list of kept positions that would change a full block.
    #[error(
        "the list of positions kept in KV group {} of sequence {sequence} differs at slot {slot} from what a full block \
         holds; full blocks do not change any more", group.0
    )]
    KeptDiffers {
        /// Whose.
        sequence: SequenceId,
        /// In which group.
        group: GroupId,
        /// The first slot that differs.
        slot: usize,
    },
    /// Blocks that were counted but are not there: a fault of the block manager.
    #[error(
        "KV group {} has no block for sequence {sequence} although its room was counted before; this is a fault of \
         the block manager", group.0
    )]
    Room {
        /// Whose.
        sequence: SequenceId,
        /// In which group.
        group: GroupId,
    },
}
