//! What the executor knows of a request, from its registration to its end.

use std::sync::Arc;

use pagedraft_block_manager::SideTable;
use pagedraft_scheduler::RequestKey;

use crate::canvas::Denoising;
use crate::error::ExecuteError;
use crate::sampling::SamplingParams;
use crate::thinning::Thinning;

/// What the executor must know of a request.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// How its tokens are drawn.
    pub sampling: SamplingParams,
    /// The number of tokens in its prompt.
    pub prompt_len: u32,
    /// The tokens that a run without speculation generated for it. The synthetic proposer needs them.
    pub recorded: Option<Arc<[u32]>>,
    /// Whether the tokens that are generated for it are the recorded ones, whatever its logits are, in steps without drafts.
    pub follows: bool,
    /// How its prompt is thinned. `None` means that all tokens go through the whole model.
    pub thinning: Option<Thinning>,
    /// How its canvas is denoised, if its output is one. The scheduler must have been given a canvas of the same length and blocks.
    pub denoising: Option<Denoising>,
}

/// The requests that may be in a plan.
#[derive(Debug, Default)]
pub struct Requests {
    known: SideTable<Known>,
}

#[derive(Debug, Default)]
struct Known {
    request: RequestKey,
    registered: Registered,
}

impl Requests {
    /// Registers a request. This must happen before the first plan that has a row of it.
    pub fn insert(&mut self, request: RequestKey, registered: Registered) {
        self.known.insert(request, Known { request, registered });
    }

    /// Forgets a request that ended.
    pub fn remove(&mut self, request: RequestKey) {
        self.known.remove(request);
    }

    /// The keys of all registered requests.
    pub fn keys(&self) -> impl Iterator<Item = RequestKey> {
        self.known.values().map(|known| known.request)
    }

    /// What was registered of a request.
    ///
    /// # Errors
    ///
    /// [`ExecuteError::Unregistered`] when the request was not registered, or was removed.
    pub fn get(&self, request: RequestKey) -> Result<&Registered, ExecuteError> {
        let known = self.known.get(request).ok_or(ExecuteError::Unregistered { request })?;
        Ok(&known.registered)
    }
}
