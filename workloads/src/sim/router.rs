use pagedraft_block_manager::{BlockHash, GroupId, Salt};
use pagedraft_scheduler::{Scheduler, SchedulerConfig};
use serde::{Deserialize, Serialize};

use super::engine::Engine;

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

/// Chooses engines as requests come.
#[derive(Debug)]
pub(super) struct Routing {
    router: Router,
    budget: u64,
    block_size: usize,
    caching: bool,
    next: usize,
    hashes: Vec<BlockHash>,
}

impl Routing {
    pub(super) fn new(router: Router, config: &SchedulerConfig) -> Self {
        Self {
            router,
            budget: u64::from(config.max_num_batched_tokens),
            block_size: config.block_size.max(1) as usize,
            caching: config.enable_prefix_caching,
            next: 0,
            hashes: Vec::new(),
        }
    }

    /// Whether the choice depends on loads.
    pub(super) fn weighs(&self) -> bool {
        self.router != Router::RoundRobin
    }

    /// The engine that a request is sent to.
    pub(super) fn choose(&mut self, prompt: &[u32], engines: &[Engine]) -> usize {
        if engines.len() < 2 {
            return 0;
        }
        let light = |at: &usize| (engines[*at].load(), engines[*at].taken(), *at);
        let all = 0..engines.len();
        match self.router {
            Router::RoundRobin => {
                let at = self.next % engines.len();
                self.next = at + 1;
                at
            }
            Router::LeastLoaded => all.min_by_key(light).unwrap_or(0),
            Router::PrefixAware => {
                self.hash(prompt);
                let least = all.clone().map(|at| engines[at].load()).min().unwrap_or(0);
                let most = least.saturating_mul(2).saturating_add(self.budget);
                let hit = |at: &usize| self.hit(engines[*at].scheduler());
                let fit = all.filter(|&at| engines[at].load() <= most);
                fit.min_by_key(|at| (std::cmp::Reverse(hit(at)), light(at))).unwrap_or(0)
            }
        }
    }

    /// Hashes the blocks of a prompt that could be hit.
    fn hash(&mut self, prompt: &[u32]) {
        self.hashes.clear();
        if !self.caching {
            return;
        }
        let mut parent = BlockHash::ROOT;
        // The last token is always computed, so its block can't be hit whole.
        for block in prompt[..prompt.len().saturating_sub(1)].chunks_exact(self.block_size) {
            parent = BlockHash::of(&parent, block, &Salt::NONE);
            self.hashes.push(parent);
        }
    }

    /// Blocks of the prompt that an engine need not compute: the greatest number of which every KV group has what the next query
    /// sees. That are all before it, and in a group with a window the last ones.
    fn hit(&self, scheduler: &Scheduler) -> usize {
        let blocks = scheduler.blocks();
        let has = |block: usize, group: GroupId| {
            self.hashes.get(block).is_some_and(|hash| blocks.pool().lookup(hash, group).is_some())
        };
        let mut hit = self.hashes.len();
        if blocks.groups().iter().all(|group| group.window == Some(1)) {
            return 0;
        }
        for group in blocks.groups().iter().filter(|group| group.window.is_none()) {
            hit = (0..hit).take_while(|&block| has(block, group.id)).count();
        }
        let sees = |hit: usize, window: u32| {
            (hit * self.block_size + 1).saturating_sub(window as usize) / self.block_size
        };
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
}
