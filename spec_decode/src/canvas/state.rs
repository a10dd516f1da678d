//! The canvases of the requests that are being denoised.

use std::collections::HashMap;
use std::ops::Range;

use pagedraft_scheduler::{Kind, PlanRow, RequestKey};

use super::candidate::Candidate;
use super::denoising::{Denoising, Guard, SkipPolicy};
use super::fills::Fills;
use super::judge::{self, States};

/// A request's canvas, and how far its present block has come.
#[derive(Debug)]
pub(crate) struct Canvas {
    pub(super) denoising: Denoising,
    prompt_len: u32,
    /// The ids of the canvas.
    tokens: Vec<u32>,
    /// Those that it had when the present block began. A request that is preempted begins the block again.
    began: Vec<u32>,
    /// The positions of the present block.
    block: Range<u32>,
    /// The pass over this block, counted from 0.
    pub(super) step: u32,
    /// The number of masks that the block had when it began.
    pub(super) masks: u32,
    /// What the states of the block's tokens were in the pass before, or ([`SkipPolicy::LeastMoved`]) when they last ran through all layers.
    states: States,
    /// What was filled around the block's tokens since they last ran through all layers.
    fills: Fills,
    /// The last choice for each position of the block.
    pub(super) kept: Vec<Option<Candidate>>,
    /// Whether the states of this pass were compared with those of the pass before.
    compared: bool,
    /// The positions of the block that run through all layers in this pass; `None` if all rows do.
    active: Option<Vec<u32>>,
    /// The masks that were judged stable in this pass.
    pub(super) masked_stable: u32,
}

impl Canvas {
    fn new(denoising: &Denoising, prompt_len: u32) -> Self {
        let mut tokens = denoising.given.to_vec();
        tokens.resize(denoising.len as usize, denoising.mask);
        Self {
            tokens,
            began: Vec::new(),
            block: prompt_len..prompt_len,
            denoising: denoising.clone(),
            prompt_len,
            step: 0,
            masks: 0,
            states: States::default(),
            fills: Fills::default(),
            kept: Vec::new(),
            compared: false,
            active: None,
            masked_stable: 0,
        }
    }

    /// The id at a position of the canvas.
    pub(crate) fn token(&self, position: u32) -> u32 {
        self.tokens[(position - self.prompt_len) as usize]
    }

    /// The ids of the canvas from `positions`, which begin behind the prompt.
    pub(super) fn ids(&self, positions: Range<u32>) -> &[u32] {
        &self.tokens[(positions.start - self.prompt_len) as usize..(positions.end - self.prompt_len) as usize]
    }

    pub(super) fn fill(&mut self, candidate: Candidate) {
        self.tokens[(candidate.position - self.prompt_len) as usize] = candidate.token;
        if self.block.contains(&candidate.position) {
            self.fills.filled((candidate.position - self.block.start) as usize);
        }
    }

    pub(super) fn is_mask(&self, position: u32) -> bool {
        self.token(position) == self.denoising.mask
    }

    pub(super) fn block(&self) -> Range<u32> {
        self.block.clone()
    }

    /// The number of the present block, counted from 0.
    pub(super) fn index(&self) -> u32 {
        (self.block.start - self.prompt_len) / self.denoising.block
    }

    /// What the present pass fills, if that was decided beforehand.
    pub(super) fn forced(&self) -> Option<&[(u32, u32)]> {
        let (block, step) = (self.index(), self.step);
        let pass = self.denoising.forced.iter().find(|pass| (pass.block, pass.step) == (block, step));
        pass.map(|pass| pass.fills.as_slice())
    }

    /// The masks of the present block.
    pub(super) fn masks_left(&self) -> u32 {
        self.block.clone().filter(|&position| self.is_mask(position)).count() as u32
    }

    /// Begins a pass over `block`.
    fn begin(&mut self, block: &Range<u32>) {
        if self.block != *block {
            self.block = block.clone();
            self.began.clone_from(&self.tokens);
            self.restart();
        }
        if self.step == 0 {
            self.masks = self.masks_left();
        }
        self.active = None;
        self.compared = false;
        self.masked_stable = 0;
    }

    /// Begins the present block again.
    fn restart(&mut self) {
        self.tokens.clone_from(&self.began);
        self.step = 0;
        self.states = States::default();
        self.fills = Fills::none(self.block.len());
        self.kept.clear();
        self.kept.resize(self.block.len(), None);
    }

    /// The positions that run through the later layers in this pass of a row; `None` if all rows of it do.
    pub(crate) fn active(&self) -> Option<&[u32]> {
        self.active.as_deref()
    }

    /// Whether the tokens of the block were judged in this pass by how their states differ from those of the pass before.
    pub(crate) fn was_compared(&self) -> bool {
        self.compared
    }

    /// The number of the present block, and of the pass over it.
    pub(crate) fn pass(&self) -> (u32, u32) {
        (self.index(), self.step)
    }

    /// The states of the block's tokens in this pass, once they were judged.
    pub(super) fn states(&self) -> &States {
        &self.states
    }

    /// Judges the tokens of the block, if they can skip layers, by their states in this pass or by what was filled. A full pass runs all of
    /// them. Returns the states that they were compared with.
    pub(super) fn judge(&mut self, full: bool, now: States) -> States {
        let Some(skip) = self.denoising.skip else { return States::default() };
        let by_states = !matches!(skip.policy, SkipPolicy::Settled { .. });
        let comparable = self.states.values.len() == now.values.len();
        self.compared = !full && comparable && (now.layers() > 0 || !by_states);
        let stable = match skip.policy {
            _ if !self.compared => vec![false; now.tokens],
            SkipPolicy::Cosine { threshold, outlier } => {
                judge::hardly_turned((threshold, outlier), &self.states, &now)
            }
            SkipPolicy::LeastMoved { share } => judge::least_moved(share, &self.states, &now),
            SkipPolicy::Settled { share } => {
                self.fills.stable(share, |token| self.is_mask(self.block.start + token as u32))
            }
        };
        let is_stable = |position: &u32| stable[(position - self.block.start) as usize];
        let masked_stable = self.block().filter(|p| is_stable(p) && self.is_mask(*p)).count() as u32;
        let runs = |p: &u32| !is_stable(p) || (skip.guard == Guard::Guard && self.is_mask(*p));
        let active: Option<Vec<u32>> = (!full).then(|| self.block().filter(runs).collect());
        let mut now = if full && !skip.compares_first { States::default() } else { now };
        for token in 0..self.block.len() {
            let position = self.block.start + token as u32;
            if active.as_ref().is_none_or(|active| active.binary_search(&position).is_ok()) {
                self.fills.ran(token);
            } else if matches!(skip.policy, SkipPolicy::LeastMoved { .. }) && self.compared {
                now.keep(token, &self.states);
            }
        }
        (self.masked_stable, self.active) = (masked_stable, active);
        std::mem::replace(&mut self.states, now)
    }
}

/// The canvases by their requests.
#[derive(Debug, Default)]
pub(crate) struct Canvases {
    canvases: HashMap<RequestKey, Canvas>,
}

impl Canvases {
    pub(crate) fn get(&self, request: RequestKey) -> Option<&Canvas> {
        self.canvases.get(&request)
    }

    pub(super) fn get_mut(&mut self, request: RequestKey) -> Option<&mut Canvas> {
        self.canvases.get_mut(&request)
    }

    /// Begins the pass of a row over a canvas. Other rows are left alone.
    pub(crate) fn begin(&mut self, row: &PlanRow, denoising: Option<&Denoising>, prompt_len: u32) -> bool {
        let (Kind::Denoise { block, .. }, Some(denoising)) = (&row.kind, denoising) else { return false };
        let canvas = self.canvases.entry(row.request).or_insert_with(|| Canvas::new(denoising, prompt_len));
        canvas.begin(block);
        true
    }

    /// A request lost its KV: its present block is denoised again from its beginning.
    pub(crate) fn restart(&mut self, request: RequestKey) {
        if let Some(canvas) = self.canvases.get_mut(&request) {
            canvas.restart();
        }
    }

    pub(crate) fn forget(&mut self, request: RequestKey) {
        self.canvases.remove(&request);
    }
}
