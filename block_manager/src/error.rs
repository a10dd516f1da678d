use crate::{BlockSize, GroupId, SequenceId};

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
    /// Groups whose blocks are of different sizes.
    #[error(
        "KV groups `{first}` ({first_bytes} bytes a token) and `{other}` ({other_bytes} bytes a token) have blocks of \
         different sizes; one arena holds blocks of one size only, so give them arenas (managers) of their own"
    )]
    UnequalGroups {
        /// The first group's name.
        first: String,
        /// Its bytes a token.
        first_bytes: usize,
        /// The other group's name.
        other: String,
        /// Its bytes a token.
        other_bytes: usize,
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
}
