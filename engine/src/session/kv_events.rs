//! What entered and left the prefix cache, as routers in front of several engines want to be told.

use std::collections::HashSet;

use pagedraft_block_manager::{BlockHash, GroupId, KvEvent, KvEventKind, KvJournal, Salt};

use super::Session;

/// A change of the prefix cache. Blocks go by the last 8 bytes of their hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// Blocks that follow each other can be hit from now on.
    Stored {
        /// Their names, in order.
        hashes: Vec<u64>,
        /// The name of the block before them; `None` if the first of them is a first block.
        parent: Option<u64>,
        /// Their tokens, one block behind the other.
        token_ids: Vec<u32>,
    },
    /// A block can be hit no more.
    Removed(u64),
    /// No block can be hit any more.
    Cleared,
}

/// Follows the journal of the prefix cache. Reported are the blocks of the first KV group, for it sees every token; those that were
/// stored under the engine's own salt, because a tenant's blocks are nobody else's; and whole blocks of a prompt, not what pruning
/// kept of one.
#[derive(Debug, Default)]
pub(super) struct KvNews {
    /// The salt of requests without a tenant.
    salt: Salt,
    /// The blocks that were reported and not removed.
    told: HashSet<BlockHash>,
    /// How many events of the present journal were reported.
    seen: usize,
    /// Whether the last step's journal was not looked at yet.
    stepped: bool,
}

impl KvNews {
    fn read(&mut self, journal: &KvJournal, news: &mut Vec<CacheEvent>) {
        let mut last: Option<BlockHash> = None;
        for event in journal.events.get(self.seen..).unwrap_or_default() {
            let hash = event.hash;
            match event.kind {
                KvEventKind::Cleared => {
                    self.told.clear();
                    news.push(CacheEvent::Cleared);
                }
                _ if event.group != GroupId(0) => continue,
                KvEventKind::Stored | KvEventKind::Restored => {
                    let range = event.tokens.start as usize..event.tokens.end as usize;
                    let tokens = journal.tokens.get(range).unwrap_or_default();
                    if !self.is_public(event, tokens) || !self.told.insert(hash) {
                        continue;
                    }
                    match news.last_mut() {
                        Some(CacheEvent::Stored { hashes, token_ids, .. })
                            if last.is_some() && event.parent == last =>
                        {
                            hashes.push(hash.as_u64());
                            token_ids.extend_from_slice(tokens);
                        }
                        _ => news.push(CacheEvent::Stored {
                            hashes: vec![hash.as_u64()],
                            parent: event.parent.map(|parent| parent.as_u64()),
                            token_ids: tokens.to_vec(),
                        }),
                    }
                    last = Some(hash);
                    continue;
                }
                KvEventKind::Removed | KvEventKind::Lost if self.told.remove(&hash) => {
                    news.push(CacheEvent::Removed(hash.as_u64()));
                }
                KvEventKind::Removed | KvEventKind::Lost | KvEventKind::Kept => continue,
            }
            last = None;
        }
        self.seen = journal.events.len();
    }

    /// Whether a block is not a tenant's: its name is that of its tokens under the engine's salt. The block before it must have been
    /// reported.
    fn is_public(&self, event: &KvEvent, tokens: &[u32]) -> bool {
        let parent_known = event.parent.is_none_or(|parent| self.told.contains(&parent));
        let parent = event.parent.unwrap_or(BlockHash::ROOT);
        parent_known && BlockHash::of(&parent, tokens, &self.salt) == event.hash
    }
}

impl Session {
    /// Takes note from now on of what enters and leaves the prefix cache, for [`kv_news`](Self::kv_news).
    pub fn keep_kv_news(&mut self) {
        self.scheduler.keep_journal(true);
        self.kv_news = Some(KvNews { salt: self.info.kv_salt, ..KvNews::default() });
    }

    /// What entered and left the prefix cache since the last call, parents before children. It is to be called after every step, and after
    /// the cache was emptied; what came before the last step is lost otherwise.
    pub fn kv_news(&mut self) -> Vec<CacheEvent> {
        let mut news = Vec::new();
        let Some(reader) = &mut self.kv_news else { return news };
        if std::mem::take(&mut reader.stepped) {
            reader.read(&self.journal, &mut news);
            reader.seen = 0;
        }
        if let Some(pending) = self.scheduler.blocks().pool().journal() {
            reader.read(pending, &mut news);
        }
        news
    }

    /// Moves the scheduler's journal here, if anybody reads it.
    pub(super) fn drain_journal(&mut self) {
        if self.trace.is_some() || self.keeps_prefixes || self.kv_news.is_some() {
            self.save_prefixes();
            self.scheduler.drain_journal(&mut self.journal);
            self.journal_seen = 0;
            if let Some(reader) = &mut self.kv_news {
                reader.stepped = true;
            }
        }
    }
}
