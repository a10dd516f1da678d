//! Chooses the engine that a request is sent to.

use pagedraft_block_manager::{BlockHash, GroupId, Salt};
use pagedraft_scheduler::Scheduler;
use serde::{Deserialize, Serialize};

/// How the engine for a request is chosen if there are several. The choice is made when the request is
/// sent, by what is known then: what finished steps have computed, but not what running ones will.
///
/// An engine's *load* is the number of tokens that its requests, including waiting ones, still have to
/// process: prompt tokens that are not computed (after a preemption they count again), and output tokens
/// that are not generated (up to `max_tokens`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Router {
    /// Each engine in turn.
    #[default]
    RoundRobin,
    /// The engine with the least load; if several have it, the one that was given the fewest requests so
    /// far, then the first.
    LeastLoaded,
    /// The engine that has most of the prompt in its prefix cache, unless others have much less to do.
    ///
    /// An engine is not considered while its load is more than twice the least load plus a step's budget
    /// (`max_num_batched_tokens`). Among the others, the one with the longest hit gets the request. A hit
    /// is the number of whole blocks, from the first on, that are published now, up to the last token but
    /// one. If several have equal hits, it is the one with the least load, then as under `LeastLoaded`.
    PrefixAware,
}

/// An engine as a router sees it.
pub trait Routed {
    /// The tokens that its requests still have to process.
    fn load(&self) -> u64;

    /// The number of requests that it was given.
    fn taken(&self) -> u64;

    /// How many blocks of a prompt it need not compute. `hashes` are those of the prompt's blocks of `block_size` tokens, from the
    /// first on.
    fn hit(&self, hashes: &[BlockHash], block_size: usize) -> usize;
}

/// What a router knows of the engines, which are all alike.
#[derive(Clone, Debug)]
pub struct RoutingOptions {
    /// How an engine is chosen.
    pub router: Router,
    /// The most tokens of a step.
    pub budget: u32,
    /// The tokens of a KV block.
    pub block_size: u32,
    /// Whether prompts can hit what others left.
    pub caching: bool,
    /// The salt of the hashes of blocks.
    pub salt: Salt,
}

/// Chooses engines as requests come.
#[derive(Debug)]
pub struct Routing {
    options: RoutingOptions,
    next: usize,
    hashes: Vec<BlockHash>,
}

impl Routing {
    /// A router that has not chosen yet.
    #[must_use]
    pub fn new(options: RoutingOptions) -> Self {
        Self { options, next: 0, hashes: Vec::new() }
    }

    /// Whether the choice depends on loads.
    pub(super) fn weighs(&self) -> bool {
        self.options.router != Router::RoundRobin
    }

    /// The index of the engine that a request is sent to.
    pub fn choose(&mut self, prompt: &[u32], engines: &[impl Routed]) -> usize {
        if engines.len() < 2 {
            return 0;
        }
        let light = |at: &usize| (engines[*at].load(), engines[*at].taken(), *at);
        let all = 0..engines.len();
        match self.options.router {
            Router::RoundRobin => {
                let at = self.next % engines.len();
                self.next = at + 1;
                at
            }
            Router::LeastLoaded => all.min_by_key(light).unwrap_or(0),
            Router::PrefixAware => {
                self.hash(prompt);
                let least = all.clone().map(|at| engines[at].load()).min().unwrap_or(0);
                let most = least.saturating_mul(2).saturating_add(u64::from(self.options.budget));
                let hit = |at: &usize| engines[*at].hit(&self.hashes, self.block_size());
                let fit = all.filter(|&at| engines[at].load() <= most);
                fit.min_by_key(|at| (std::cmp::Reverse(hit(at)), light(at))).unwrap_or(0)
            }
        }
    }

    /// Hashes the blocks of a prompt that could be hit.
    fn hash(&mut self, prompt: &[u32]) {
        self.hashes.clear();
        if !self.options.caching {
            return;
        }
        let mut parent = BlockHash::ROOT;
        // The last token is always computed, so its block can't be hit whole.
        for block in prompt[..prompt.len().saturating_sub(1)].chunks_exact(self.block_size()) {
            parent = BlockHash::of(&parent, block, &self.options.salt);
            self.hashes.push(parent);
        }
    }

    fn block_size(&self) -> usize {
        self.options.block_size.max(1) as usize
    }
}

/// Blocks of a prompt that an engine with this scheduler need not compute: the greatest number of which every KV group has what the next
/// query sees. That are all before it, and in a group with a window the last ones.
pub(super) fn hit(scheduler: &Scheduler, hashes: &[BlockHash], block_size: usize) -> usize {
    let blocks = scheduler.blocks();
    let has = |block: usize, group: GroupId| {
        hashes.get(block).is_some_and(|hash| blocks.pool().lookup(hash, group).is_some())
    };
    let mut hit = hashes.len();
    if blocks.groups().iter().all(|group| group.window == Some(1)) {
        return 0;
    }
    for group in blocks.groups().iter().filter(|group| group.window.is_none()) {
        hit = (0..hit).take_while(|&block| has(block, group.id)).count();
    }
    let sees = |hit: usize, window: u32| (hit * block_size + 1).saturating_sub(window as usize) / block_size;
    // The last block that a windowed group lacks before the hit decides how far back the hit must begin.
    'shorter: while hit > 0 {
        for group in blocks.groups() {
            let Some(window) = group.window else { continue };
            if let Some(lacks) = (sees(hit, window)..hit).rev().find(|&block| !has(block, group.id)) {
                hit = lacks;
                continue 'shorter;
            }
        }
        break;
    }
    hit
}
