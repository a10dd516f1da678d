//! The draft model's own KV: its blocks, and a sequence for each request that was ever given drafts.

use std::ops::Range;

use pagedraft_block_manager::{
    BlockId, BlockManager, BlockSize, Error, GroupId, KvGroup, Salt, SequenceId, SideTable,
};
use pagedraft_scheduler::RequestKey;

/// The only KV group of the draft model.
const GROUP: GroupId = GroupId(0);

/// A sequence for each request. It is committed no further than the request's accepted tokens, and may lag behind them
/// by any number of tokens.
pub(super) struct DraftKv {
    blocks: BlockManager,
    places: SideTable<Place>,
}

/// What is kept for one request. The buffers are reused by later requests.
#[derive(Default)]
struct Place {
    sequence: Option<SequenceId>,
    /// The tokens by slot: first the committed ones, then those of the step in flight.
    tokens: Vec<u32>,
    /// The number of known tokens of the request when it was opened last. What is committed behind them was a draft
    /// then.
    known: usize,
}

impl DraftKv {
    pub fn new(size: BlockSize, num_blocks: u32, group: KvGroup, caching: bool) -> Result<Self, Error> {
        let group = KvGroup { id: GROUP, ..group };
        Ok(Self {
            blocks: BlockManager::new(size, num_blocks, vec![group], caching)?,
            places: SideTable::default(),
        })
    }

    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Prepares a step that writes up to `slots` slots of the request, whose known tokens are `tokens`. Returns how
    /// many of these have their KV, which is always fewer than all, or `None` if there is no room. In that case the
    /// request gives back what it holds: two requests that wait for each other's blocks would wait for ever, and its
    /// published blocks may still be there when it comes back.
    pub fn open(&mut self, request: RequestKey, tokens: &[u32], slots: u32) -> Result<Option<u32>, Error> {
        let Self { blocks, places } = self;
        let Some(claimed) = places.claim(request) else {
            return Ok(None);
        };
        let place = claimed.value;
        if claimed.is_left_over {
            // An earlier request with this index may have ended without `forget`.
            place.free(blocks)?;
        }
        let sequence = match place.sequence {
            Some(sequence) => sequence,
            None => {
                let sequence = blocks.open(Salt::NONE);
                blocks.prepare(sequence, slots.saturating_mul(2))?;
                place.known = 0;
                *place.sequence.insert(sequence)
            }
        };
        let mut valid = place.settle(blocks, sequence, tokens)?;
        if valid == 0 && blocks.block_table(sequence, GROUP).is_empty() {
            let hit = blocks.lookup(sequence, tokens, tokens.len().saturating_sub(1) as u32)?;
            blocks.take_hit(sequence, tokens, hit)?;
            valid = hit.tokens;
            place.tokens.extend_from_slice(&tokens[..valid as usize]);
        }
        if blocks.reserve(sequence, slots)?.is_none() {
            blocks.clear(sequence)?;
            place.tokens.clear();
            place.known = 0;
            return Ok(None);
        }
        place.known = tokens.len();
        Ok(Some(valid))
    }

    /// The tokens whose KV is written, or will be in this step.
    pub fn tokens(&self, request: RequestKey) -> &[u32] {
        self.place(request).map_or(&[], |place| &place.tokens)
    }

    /// Appends tokens whose KV the step writes, or a draft whose KV a next pass may write.
    pub fn push(&mut self, request: RequestKey, tokens: &[u32]) {
        if let Some(place) = self.places.get_mut(request) {
            place.tokens.extend_from_slice(tokens);
        }
    }

    pub fn table(&self, request: RequestKey) -> &[BlockId] {
        let sequence = self.place(request).and_then(|place| place.sequence);
        sequence.map_or(&[], |sequence| self.blocks.block_table(sequence, GROUP))
    }

    /// Commits the first `upto` tokens, which were accepted. The others were rejected. Returns the blocks that this
    /// seals, as indices in the block table.
    pub fn commit(&mut self, request: RequestKey, upto: u32) -> Result<Range<u32>, Error> {
        let Self { blocks, places } = self;
        let place = places.get_mut(request);
        let Some((place, sequence)) = place.and_then(|place| place.sequence.map(|s| (place, s))) else {
            return Ok(0..0);
        };
        let sealed = blocks.commit(sequence, GROUP, &place.tokens, upto)?;
        place.tokens.truncate(upto as usize);
        Ok(sealed)
    }

    /// Gives back all blocks of a request.
    pub fn forget(&mut self, request: RequestKey) -> Result<(), Error> {
        let Self { blocks, places } = self;
        match places.get_mut(request) {
            Some(place) => place.free(blocks),
            None => Ok(()),
        }
    }

    fn place(&self, request: RequestKey) -> Option<&Place> {
        self.places.get(request)
    }
}

impl Place {
    fn free(&mut self, blocks: &mut BlockManager) -> Result<(), Error> {
        self.tokens.clear();
        match self.sequence.take() {
            Some(sequence) => blocks.free(sequence),
            None => Ok(()),
        }
    }

    /// Drops what a failed step left behind, and all blocks from the first committed token on that differs from the
    /// request's tokens (a step may fail after its drafts were committed). At least the last of `tokens` remains to be
    /// run. Returns the number of tokens whose KV is kept.
    fn settle(
        &mut self,
        blocks: &mut BlockManager,
        sequence: SequenceId,
        tokens: &[u32],
    ) -> Result<u32, Error> {
        let committed = blocks.lengths(sequence, GROUP)?.physical;
        self.tokens.truncate(committed as usize);
        let sure = self.known.min(self.tokens.len()).min(tokens.len());
        let guessed = self.tokens[sure..].iter().zip(&tokens[sure..]);
        let same = sure + guessed.take_while(|(ours, theirs)| ours == theirs).count();
        let keep = same.min(tokens.len().saturating_sub(1)) as u32;
        if keep == committed {
            return Ok(committed);
        }
        let size = blocks.block_size();
        let keep = size.full_blocks(keep) * size.get();
        // The cut is at the edge of a block, so no block need be copied.
        blocks.truncate(sequence, GROUP, keep, &mut Vec::new())?;
        self.tokens.truncate(keep as usize);
        Ok(keep)
    }
}
