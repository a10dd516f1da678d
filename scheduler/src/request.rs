use std::fmt;

use pagedraft_block_manager::{Handle, Salt, SequenceId};
use serde::Serialize;

use crate::FinishReason;

/// Names a request of a [`Scheduler`](crate::Scheduler): a place and how often that place was given out, so that the key of
/// an ended request never names another. The default key names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RequestKey(pub(crate) Handle);

impl RequestKey {
    /// Its place, reused by later requests: an index for arrays beside the scheduler.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0.index() as usize
    }

    /// How often the place was given out, this request included.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.0.generation()
    }
}

impl From<RequestKey> for Handle {
    #[inline]
    fn from(key: RequestKey) -> Self {
        key.0
    }
}

impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is asked of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestSpec {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; at least 1.
    pub max_tokens: u32,
    /// Tokens that end the output (they are kept as its last): the end-of-sequence token, unless it is ignored,
    /// and any others.
    pub stop_token_ids: Vec<u32>,
    /// Lower is served first under [`Policy::Priority`](crate::Policy::Priority).
    pub priority: i32,
    /// What besides the tokens changes the KV (model, tenant, ...): prefixes are shared under equal salts only.
    pub salt: Salt,
    /// Whether prefix hits may be taken; without, every prompt token is computed.
    pub reads_cache: bool,
    /// A request with the same prompt whose KV this one continues from: further samples of one prompt. Where both drop the same prompt
    /// tokens, this one waits until it finds them in the prefix cache. With a canvas nothing is shared.
    pub fork_of: Option<RequestKey>,
    /// How many of the prompt's tokens go on behind each cut between two segments of the model. Which tokens they are
    /// is the executor's decision ([`StepOutcome::kept`](crate::StepOutcome::kept)). Empty: all tokens go on.
    pub kept: Vec<u32>,
    /// How a request that drops prompt tokens shares what it keeps with others of the same prompt. Without, it shares nothing.
    pub shares_kept: Option<SharesKept>,
    /// The canvas of a diffusion model, in place of output that is appended. `max_tokens` is then its length.
    pub canvas: Option<Canvas>,
    /// The most drafts that a row of it may have, if the scheduler would give it more.
    pub most_drafts: u16,
}

/// What two requests that drop prompt tokens must have in common to share their KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharesKept {
    /// Stands for all that the choice of tokens and their KV depend on, the whole prompt included.
    pub name: Salt,
    /// At least so many of the prompt's last tokens are kept behind every cut.
    pub tail: u32,
}

/// The output of a diffusion model: so many positions behind the prompt, denoised block by block in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Canvas {
    /// Positions of it.
    pub len: u32,
    /// Positions a block; divides `len`.
    pub block: u32,
    /// Whether passes that are not full compute what is behind their block as well.
    pub suffix: bool,
}

impl RequestSpec {
    /// `max_tokens` tokens after `prompt`; no stop tokens, priority 0, cache reads, any number of drafts.
    #[must_use]
    pub fn new(prompt: Vec<u32>, max_tokens: u32) -> Self {
        Self {
            prompt,
            max_tokens,
            stop_token_ids: Vec::new(),
            priority: 0,
            salt: Salt::NONE,
            reads_cache: true,
            fork_of: None,
            kept: Vec::new(),
            shares_kept: None,
            canvas: None,
            most_drafts: u16::MAX,
        }
    }
}

/// Where a request is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Not admitted yet, or preempted.
    Waiting,
    /// Admitted.
    Running,
    /// Over; still readable until the next step is planned.
    Ended(FinishReason),
}

/// A look at a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RequestInfo {
    /// Where it is.
    pub phase: Phase,
    /// Tokens of its prompt.
    pub num_prompt_tokens: u32,
    /// Tokens generated and kept.
    pub num_generated_tokens: u32,
    /// Known tokens whose KV is in the pool.
    pub num_computed_tokens: u32,
    /// Tokens it did not have to compute when it was first admitted: prefix hit or fork.
    pub num_cached_tokens: u32,
    /// How often it lost its blocks.
    pub num_preemptions: u32,
}

/// How a request's tokens come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Tokens are appended, and all of them keep their KV in every segment.
    Append,
    /// Tokens are appended, and of the prompt's not all go on behind each cut.
    Thin,
    /// A canvas is rewritten in place.
    Canvas,
}

impl Work {
    pub(crate) fn of(spec: &RequestSpec) -> Self {
        match spec {
            RequestSpec { canvas: Some(_), .. } => Self::Canvas,
            RequestSpec { kept, .. } if kept.is_empty() => Self::Append,
            _ => Self::Thin,
        }
    }
}

/// A request's state.
///
/// The fields lie in this order in memory: those that every step looks at come first, so that they share a cache line.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Request {
    /// Prompt, then output. The slab tells by values that a vector never has whether there is a request: another reason
    /// for it to be in front.
    pub(crate) tokens: Vec<u32>,
    pub(crate) sequence: SequenceId,
    pub(crate) prompt_len: u32,
    /// Known tokens whose KV is in the pool.
    pub(crate) computed: u32,
    /// Length at which it ends: the least of `max_tokens`, `max_model_len` and what the pool can hold.
    pub(crate) max_len: u32,
    /// The most drafts that a row of it may have.
    pub(crate) most_drafts: u16,
    pub(crate) work: Work,
    pub(crate) phase: Phase,
    /// Whether it had no row in the step before for want of budget: it then comes first in the next one.
    pub(crate) starved: bool,
    /// Whether the next pass over the canvas is a full one.
    pub(crate) refresh: bool,
    pub(crate) stop_token_ids: Vec<u32>,
    /// Prompt tokens that go on behind each cut; empty: all.
    pub(crate) kept: Vec<u32>,
    pub(crate) canvas: Option<Canvas>,
    /// The step it was last admitted in.
    pub(crate) admitted: Option<u64>,
    pub(crate) priority: i32,
    /// How many of the tokens that reach `segment` have run through it.
    pub(crate) passed: u32,
    /// The segment in which a request that drops tokens is prefilled just now.
    pub(crate) segment: u16,
    pub(crate) reads_cache: bool,
    /// Whether it drops prompt tokens, and shares what it keeps through the prefix cache.
    pub(crate) shares_kept: bool,
    pub(crate) num_cached: u32,
    pub(crate) num_preemptions: u32,
    /// Number of submission.
    pub(crate) arrival: u64,
    pub(crate) salt: Salt,
    pub(crate) fork_of: Option<RequestKey>,
}

/// A slab's entry puts 8 bytes in front of it.
const _: () = assert!(
    std::mem::offset_of!(Request, refresh) < 64 - 8,
    "what every step looks at lies in one cache line"
);

impl Request {
    /// Known tokens.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    #[inline]
    pub(crate) fn generated(&self) -> u32 {
        self.len() - self.prompt_len
    }

    /// Whether only the KV of its last token is missing, and that one is an output token.
    #[inline]
    pub(crate) fn is_decoding(&self) -> bool {
        self.computed + 1 == self.len() && self.generated() > 0 && self.work != Work::Canvas
    }

    /// The most tokens that may come out of its next decode row: one more than it may have drafts, up to its length limit.
    #[inline]
    pub(crate) fn most_emitted(&self) -> u32 {
        (self.max_len - self.len()).min(u32::from(self.most_drafts) + 1)
    }

    /// Whether all its tokens keep their KV in every segment, and none is rewritten.
    #[inline]
    pub(crate) fn keeps_all(&self) -> bool {
        self.work == Work::Append
    }

    /// Whether its prompt is being computed with tokens dropped on the way.
    #[inline]
    pub(crate) fn is_thinning(&self) -> bool {
        self.work == Work::Thin && self.computed == 0
    }

    /// Known tokens that reach `segment`: of the prompt those that the cuts before it keep, and every output token.
    #[inline]
    pub(crate) fn reach(&self, segment: u16) -> u32 {
        match usize::from(segment).checked_sub(1).and_then(|cut| self.kept.get(cut)) {
            Some(&kept) => kept + self.generated(),
            None => self.len(),
        }
    }

    /// Positions of its canvas; 0 without one.
    pub(crate) fn canvas_len(&self) -> u32 {
        self.canvas.map_or(0, |canvas| canvas.len)
    }

    /// Forgets all that was computed.
    pub(crate) fn restart(&mut self) {
        self.computed = 0;
        self.segment = 0;
        self.passed = 0;
        self.refresh = true;
        self.starved = false;
    }

    /// Smaller is better: served first, preempted last.
    pub(crate) fn rank(&self) -> (i32, u64) {
        (self.priority, self.arrival)
    }

    pub(crate) fn info(&self) -> RequestInfo {
        RequestInfo {
            phase: self.phase,
            num_prompt_tokens: self.prompt_len,
            num_generated_tokens: self.generated(),
            num_computed_tokens: self.computed,
            num_cached_tokens: self.num_cached,
            num_preemptions: self.num_preemptions,
        }
    }
}
