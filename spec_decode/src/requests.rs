//! What the executor keeps for a request from its registration to its end.

use std::collections::HashMap;
use std::sync::Arc;

use pagedraft_scheduler::RequestKey;

use crate::error::ExecuteError;
use crate::sampling::SamplingParams;
use crate::thinning::Thinning;

/// A request as the executor knows it.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// How its tokens are drawn.
    pub sampling: SamplingParams,
    /// Tokens of its prompt.
    pub prompt_len: u32,
    /// What the run without speculation generated, for the synthetic proposer.
    pub recorded: Option<Arc<[u32]>>,
    /// How its prompt is thinned; `None`: all tokens go through all of the model.
    pub thinning: Option<Thinning>,
}

/// The requests that may be in a plan.
#[derive(Debug, Default)]
pub struct Requests {
    registered: HashMap<RequestKey, Registered>,
}

impl Requests {
    /// Takes a request in, before a plan has it.
    pub fn insert(&mut self, request: RequestKey, registered: Registered) {
        self.registered.insert(request, registered);
    }

    /// Forgets a request that ended.
    pub fn remove(&mut self, request: RequestKey) {
        self.registered.remove(&request);
    }

    /// Every request there is.
    pub fn keys(&self) -> impl Iterator<Item = RequestKey> {
        self.registered.keys().copied()
    }

    /// What is known of a request.
    ///
    /// # Errors
    ///
    /// [`ExecuteError::Unregistered`].
    pub fn get(&self, request: RequestKey) -> Result<&Registered, ExecuteError> {
        self.registered.get(&request).ok_or(ExecuteError::Unregistered { request })
    }
}
