//! A pool that is asked from a thread of its own, so that one which hangs holds nobody up for long.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::pool::{Key, Pool, PoolError};
use crate::error::ModelError;

/// Replies that were fetched ahead and not asked for yet, at most.
const MOST_AHEAD: usize = 4096;

enum Ask {
    Put(Key, Vec<u8>),
    Get(Key, usize),
    Forget(Key),
}

struct Reply {
    key: Key,
    /// What was read; `None` where something was put.
    read: Option<Vec<u8>>,
    result: Result<(), PoolError>,
}

/// A pool behind a thread. A request that takes longer than the time given counts as failed. The pool is then left behind with its
/// thread: whatever was in it is lost.
pub struct Watched {
    /// `None` once the pool is to end.
    ask: Option<Sender<Ask>>,
    replies: Receiver<Reply>,
    patience: Duration,
    hangs: bool,
    /// How long each key's bytes are, for [`prefetch`](Pool::prefetch).
    lens: HashMap<Key, usize>,
    /// What was asked for ahead, and has not come yet.
    coming: HashSet<Key>,
    /// What was asked for ahead, and has come.
    ahead: HashMap<Key, Reply>,
}

impl Watched {
    /// Puts a pool behind a thread.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn new(mut pool: Box<dyn Pool>, patience: Duration) -> Result<Self, ModelError> {
        let (ask, asked) = channel::<Ask>();
        let (reply, replies) = channel();
        let work = move || {
            while let Ok(ask) = asked.recv() {
                let done = match ask {
                    Ask::Put(key, bytes) => Reply { key, read: None, result: pool.put(key, &bytes) },
                    Ask::Get(key, len) => {
                        let mut bytes = vec![0; len];
                        let result = pool.get(key, &mut bytes);
                        Reply { key, read: Some(bytes), result }
                    }
                    Ask::Forget(key) => {
                        pool.forget(key);
                        continue;
                    }
                };
                if reply.send(done).is_err() {
                    break;
                }
            }
            // Before the channel of replies ends, by which the other side sees that this is done.
            drop(pool);
        };
        thread::Builder::new()
            .name("kv-tier".to_owned())
            .spawn(work)
            .map_err(|error| ModelError::NoDevice { what: format!("no thread for a KV tier: {error}") })?;
        Ok(Self {
            ask: Some(ask),
            replies,
            patience,
            hangs: false,
            lens: HashMap::new(),
            coming: HashSet::new(),
            ahead: HashMap::new(),
        })
    }

    /// The next reply that was not asked for ahead.
    fn wait(&mut self, wanted: Key) -> Result<Reply, PoolError> {
        let until = Instant::now() + self.patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.replies.recv_timeout(left) {
                Ok(reply) if reply.read.is_some() && self.coming.remove(&reply.key) => {
                    if reply.key == wanted {
                        return Ok(reply);
                    }
                    self.ahead.insert(reply.key, reply);
                }
                Ok(reply) => return Ok(reply),
                Err(RecvTimeoutError::Timeout) => {
                    self.hangs = true;
                    return Err(PoolError::Timeout);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.hangs = true;
                    return Err(PoolError::Failed("its thread has ended".to_owned()));
                }
            }
        }
    }

    fn send(&self, ask: Ask) -> Result<(), PoolError> {
        if self.hangs {
            return Err(PoolError::Timeout);
        }
        let ended = || PoolError::Failed("its thread has ended".to_owned());
        self.ask.as_ref().ok_or_else(ended)?.send(ask).map_err(|_| ended())
    }

    /// Drops what was fetched ahead under a key that changes.
    fn outdate(&mut self, key: Key) {
        if self.coming.contains(&key)
            && let Ok(reply) = self.wait(key)
        {
            drop(reply);
        }
        self.ahead.remove(&key);
    }
}

impl Pool for Watched {
    fn put(&mut self, key: Key, bytes: &[u8]) -> Result<(), PoolError> {
        self.outdate(key);
        self.send(Ask::Put(key, bytes.to_vec()))?;
        let done = self.wait(key)?.result;
        if done.is_ok() {
            self.lens.insert(key, bytes.len());
        }
        done
    }

    fn get(&mut self, key: Key, into: &mut [u8]) -> Result<(), PoolError> {
        let reply = match self.ahead.remove(&key) {
            Some(reply) => reply,
            None => {
                if !self.coming.contains(&key) {
                    self.send(Ask::Get(key, into.len()))?;
                }
                self.wait(key)?
            }
        };
        reply.result?;
        let bytes = reply.read.unwrap_or_default();
        if bytes.len() != into.len() {
            return Err(PoolError::Length { found: bytes.len(), expected: into.len() });
        }
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        self.outdate(key);
        self.lens.remove(&key);
        // One that hangs has nothing to forget.
        let _ = self.send(Ask::Forget(key));
    }

    fn prefetch(&mut self, keys: &[Key]) {
        // What the step before did not need after all is not needed any more.
        self.ahead.clear();
        for &key in keys.iter().take(MOST_AHEAD) {
            if let Some(&len) = self.lens.get(&key)
                && !self.coming.contains(&key)
                && self.send(Ask::Get(key, len)).is_ok()
            {
                self.coming.insert(key);
            }
        }
    }
}

impl Drop for Watched {
    /// Waits until the pool has tidied up, unless it hangs.
    fn drop(&mut self) {
        self.ask = None;
        if !self.hangs {
            while self.replies.recv_timeout(self.patience).is_ok() {}
        }
    }
}
