//! The draft model's own KV: blocks, and a sequence for each request that was ever given drafts.

use std::ops::Range;

use pagedraft_block_manager::{
    BlockId, BlockManager, BlockSize, Error, GroupId, KvGroup, Salt, SequenceId, SideTable,
};
use pagedraft_scheduler::RequestKey;

/// The one group of the draft's blocks.
const GROUP: GroupId = GroupId(0);

/// Sequences by the place of their request. One is committed no further than its accepted tokens, and may lag behind them
/// as far as it likes.
pub(super) struct DraftKv {
    blocks: BlockManager,
    places: SideTable<Place>,
}

/// What the requests of a place leave behind for the next: buffers.
#[derive(Default)]
struct Place {
    sequence: Option<SequenceId>,
    /// Tokens by slot: the committed ones, then those of the step in flight.
    tokens: Vec<u32>,
    /// Known tokens of the request when it was opened last: what is committed behind them was a draft then.
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

    /// Makes ready for a step that writes up to `slots` slots of the request, whose known tokens are `tokens`: how many of
    /// them have their KV, always fewer than all; `None` without room. Who finds none gives back what it holds: two that wait for
    /// each other's blocks would wait for ever, and what was published may still be there when it comes back.
    pub fn open(&mut self, request: RequestKey, tokens: &[u32], slots: u32) -> Result<Option<u32>, Error> {
        let Self { blocks, places } = self;
        let claimed = places.claim(request);
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

    /// The tokens whose KV is written, or is about to be.
    pub fn tokens(&self, request: RequestKey) -> &[u32] {
        self.place(request).map_or(&[], |place| &place.tokens)
    }

    /// Appends tokens whose KV the step writes, or one whose KV it might have.
    pub fn push(&mut self, request: RequestKey, tokens: &[u32]) {
        if let Some(place) = self.places.get_mut(request) {
            place.tokens.extend_from_slice(tokens);
        }
    }

    pub fn table(&self, request: RequestKey) -> &[BlockId] {
        let sequence = self.place(request).and_then(|place| place.sequence);
        sequence.map_or(&[], |sequence| self.blocks.block_table(sequence, GROUP))
    }

    /// Says that the first `upto` tokens were accepted; the others never were. The blocks sealed by it, as indices in the
    /// table.
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

    /// Gives back every block of a request.
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

    /// Drops what a step that failed left behind, and whole blocks from the first committed token on that is not the
    /// request's (a step may fail after it was verified). At least the last of `tokens` stays to be run. What is left.
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
        // At the edge of a block nothing is cut, so that nothing is to be copied.
        blocks.truncate(sequence, GROUP, keep, &mut Vec::new())?;
        self.tokens.truncate(keep as usize);
        Ok(keep)
    }
}
