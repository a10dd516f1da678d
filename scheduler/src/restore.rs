//! What a prefix cache with a second level asks of the scheduler: blocks come back, and blocks are lost.

use pagedraft_block_manager::{BlockHash, BlockId, GroupId, Restore};

use crate::error::of;
use crate::{Error, RequestKey, Scheduler};

impl Scheduler {
    /// Says that the contents of a block are lost: nobody can hit it from here on. Requests that hold it are found out when they
    /// read it ([`Progress::Lost`](crate::Progress::Lost)).
    pub fn lose_block(&mut self, group: GroupId, block: BlockId) {
        self.blocks.unpublish(group, block);
    }

    /// Takes blocks for what the prefix cache lacks of the tokens of the `at`-th waiting request, as far as `has` says that it is kept
    /// elsewhere: see [`BlockManager::begin_restore`](pagedraft_block_manager::BlockManager::begin_restore). `Ok(None)` if there is no such request or nothing to restore, or if the request
    /// could not be admitted now.
    ///
    /// # Errors
    ///
    /// A fault of the book-keeping, which names the request.
    pub fn begin_restore(
        &mut self,
        at: usize,
        has: &mut dyn FnMut(&BlockHash) -> bool,
    ) -> Result<Option<(RequestKey, Restore)>, Error> {
        let Some(key) = self.waiting.get(at) else { return Ok(None) };
        let Some(request) = self.requests.get(key.0) else { return Ok(None) };
        let blocks = self.blocks.block_size().blocks_for(request.len());
        let seated = self.running.len() + at < self.config.max_num_seqs as usize;
        if !seated || !request.reads_cache || request.canvas.is_some() || self.blocks.stats().free < blocks {
            return Ok(None);
        }
        // The last token is computed in any case.
        let limit = request.len() - 1;
        let restore =
            self.blocks.begin_restore(request.salt, &request.tokens, limit, has).map_err(of(key))?;
        Ok(restore.map(|restore| (key, restore)))
    }

    /// Publishes the first `filled` blocks of a restore.
    ///
    /// # Errors
    ///
    /// A fault of the book-keeping, which names the request.
    pub fn end_restore(&mut self, key: RequestKey, restore: Restore, filled: u32) -> Result<(), Error> {
        let tokens = self.requests.get(key.0).map_or(&[][..], |request| &request.tokens);
        self.blocks.end_restore(restore, tokens, filled).map_err(of(key))
    }
}
