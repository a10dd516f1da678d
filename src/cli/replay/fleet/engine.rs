//! One of several engines, as the router and the requests see it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagedraft::engine::handle::{Delta, End, EngineHandle, Output, SubmitError};
use pagedraft::session::{CacheEvent, Request};
use pagedraft_block_manager::BlockHash;
use pagedraft_workloads::replay::{StreamEnd, StreamFailure, TokenCount, Usage};
use pagedraft_workloads::sim::Routed;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::cli::replay::numbers::name_of;
use crate::cli::replay::stream::{Teller, What};

/// An engine on a thread of its own.
pub struct Engine {
    handle: EngineHandle,
    /// The tokens that its requests still have to process.
    load: Arc<AtomicU64>,
    taken: u64,
    /// What enters and leaves its prefix cache, as far as it was not looked at.
    news: UnboundedReceiver<Vec<CacheEvent>>,
    /// The blocks in its prefix cache, by their names in the events.
    cached: HashSet<u64>,
}

impl Engine {
    pub fn new(handle: EngineHandle, news: UnboundedReceiver<Vec<CacheEvent>>) -> Self {
        Self { handle, load: Arc::default(), taken: 0, news, cached: HashSet::new() }
    }

    /// Learns what entered and left the prefix cache in the steps that have ended.
    pub fn catch_up(&mut self) {
        while let Ok(events) = self.news.try_recv() {
            for event in events {
                match event {
                    CacheEvent::Stored { hashes, .. } => self.cached.extend(hashes),
                    CacheEvent::Removed(hash) => drop(self.cached.remove(&hash)),
                    CacheEvent::Cleared => self.cached.clear(),
                }
            }
        }
    }

    /// Runs a request to its end in the background, and tells what it gets.
    pub fn run(&mut self, request: Request, teller: Teller) {
        self.taken += 1;
        let work = request.prompt.len() as u64 + u64::from(request.max_tokens);
        self.load.fetch_add(work, Ordering::Relaxed);
        let share = Share { load: Arc::clone(&self.load), left: work, prompt: request.prompt.len() as u64 };
        let handle = self.handle.clone();
        tokio::spawn(async move {
            match handle.submit(request).await {
                Ok(output) => follow(output, share, &teller).await,
                Err(error) => teller.tell(failed(&teller, refused(&error), error.to_string())),
            }
        });
    }
}

impl Routed for Engine {
    fn load(&self) -> u64 {
        self.load.load(Ordering::Relaxed)
    }

    fn taken(&self) -> u64 {
        self.taken
    }

    fn hit(&self, hashes: &[BlockHash], _: usize) -> usize {
        hashes.iter().take_while(|hash| self.cached.contains(&hash.as_u64())).count()
    }
}

/// What of an engine's load is one request's.
struct Share {
    load: Arc<AtomicU64>,
    left: u64,
    /// The prompt, until it has been computed.
    prompt: u64,
}

impl Share {
    /// Its first token means that its prompt was computed.
    fn got(&mut self, tokens: u64) {
        let done = (std::mem::take(&mut self.prompt) + tokens).min(self.left);
        self.left -= done;
        self.load.fetch_sub(done, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.load.fetch_sub(self.left, Ordering::Relaxed);
    }
}

async fn follow(mut output: Output, mut share: Share, teller: &Teller) {
    while let Some(Delta { token_ids, end, .. }) = output.next().await {
        let at_ns = teller.clock.now_ns();
        let tokens = token_ids.len() as u32;
        if tokens > 0 {
            share.got(u64::from(tokens));
            teller.tell(What::Tokens { at_ns, tokens });
        }
        if let Some(end) = end {
            drop(share);
            return teller.tell(ended(end, teller));
        }
    }
}

fn ended(end: End, teller: &Teller) -> What {
    let output = match end {
        End::Finished(output) => *output,
        End::StepFailed(why) => return failed(teller, "step_failed", why),
        End::TooSlow => return failed(teller, "too_slow", "its tokens were not read in time".to_owned()),
        End::EngineStopped => return failed(teller, "engine_stopped", "the engine has stopped".to_owned()),
    };
    if let Some(error) = output.error {
        return failed(teller, "request_failed", error);
    }
    let usage = Usage {
        prompt_tokens: output.prompt_token_ids.len() as u32,
        output_tokens: output.token_ids.len() as u32,
        cached_tokens: Some(output.num_cached_tokens),
    };
    let end = StreamEnd {
        at_ns: teller.clock.now_ns(),
        finish_reason: output.finish_reason.map(|reason| name_of(&reason)),
        text: output.text,
        token_ids: Some(output.token_ids),
        usage: Some(usage),
        counted_by: TokenCount::ContinuousUsage,
    };
    What::Ended { end: Ok(end), retries: 0 }
}

fn failed(teller: &Teller, kind: &str, error: String) -> What {
    let failure = StreamFailure { at_ns: teller.clock.now_ns(), kind: kind.to_owned(), error };
    What::Ended { end: Err(failure), retries: 0 }
}

fn refused(error: &SubmitError) -> &'static str {
    match error {
        SubmitError::Bad(_) => "bad_request",
        SubmitError::QueueFull { .. } => "queue_full",
        SubmitError::Draining | SubmitError::Stopped => "engine_stopped",
    }
}
