//! The hashes of a request's blocks, as far as the trace tells them. If the trace names the salt, they are
//! recomputed.

use pagedraft_block_manager::BlockHash;

use super::life::Life;
use super::link::Link;
use crate::trace::KvEventRecord;

impl Life {
    /// Block `index`, which holds `tokens`, is stored in the prefix cache. Its hash must follow from the
    /// block before it. `tokens` is `None` if the trace does not show them. `unseen` means that the block
    /// before it was given back behind a window, and may never have been this request's.
    pub(super) fn store(
        &mut self,
        index: usize,
        event: &KvEventRecord,
        tokens: Option<&[u32]>,
        (block_size, unseen): (u32, bool),
    ) -> Result<Link, String> {
        let Some(hash) = event.hash else { return Err(" without a hash".to_owned()) };
        if event.num_tokens != block_size {
            return Err(format!(" of {} tokens, and blocks have {block_size}", event.num_tokens));
        }
        let before = index.checked_sub(1).map(|before| self.chain.get(before).copied().flatten());
        let (parent, parent_full) = match before {
            None => (None, Some(BlockHash::ROOT)),
            Some(None) if unseen && event.parent.is_some() => (event.parent, None),
            Some(None) => return Err(" before the block that it follows".to_owned()),
            Some(Some(link)) => (Some(link.hash), link.full),
        };
        if event.parent != parent {
            let hash = |hash: Option<u64>| hash.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
            return Err(format!(
                " behind hash {}, and the block before it has {}",
                hash(event.parent),
                hash(parent)
            ));
        }
        let parts = parent_full.zip(self.salt).zip(tokens);
        let full = parts.map(|((parent, salt), tokens)| BlockHash::of(&parent, tokens, &salt));
        let known = full.map(|full| full.as_u64()).or(self.link(index).map(|link| link.hash));
        if let Some(known) = known.filter(|&known| known != hash) {
            return Err(format!(" under hash {hash}, and that of its tokens is {known}"));
        }
        let link = Link { hash, full, salt: self.salt };
        self.set_link(index, link);
        Ok(link)
    }

    /// Block `index` was found, in the cache or shared with another request, and has the hash `link`.
    pub(super) fn find(&mut self, index: usize, link: Link) -> Result<(), String> {
        if let (Some(own), Some(other)) = (self.salt, link.salt)
            && own != other
        {
            return Err(format!("which was stored under another salt ({other}) than its own ({own})"));
        }
        match self.link(index) {
            Some(known) if known.hash != link.hash => {
                Err(format!("of hash {}, where its own tokens have {}", link.hash, known.hash))
            }
            Some(_) => Ok(()),
            None => {
                self.set_link(index, link);
                Ok(())
            }
        }
    }

    fn link(&self, index: usize) -> Option<Link> {
        self.chain.get(index).copied().flatten()
    }

    fn set_link(&mut self, index: usize, link: Link) {
        if self.chain.len() <= index {
            self.chain.resize(index + 1, None);
        }
        self.chain[index] = Some(link);
    }
}
