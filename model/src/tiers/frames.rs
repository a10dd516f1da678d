//! Tier 0: the frames of each layer, and which cell is in which.

use std::time::Instant;

use pagedraft_attention::sparse::{VectorLayer, VectorLayout};

use super::below::Below;
use super::counts::{Fetch, TierCounts, Waited};
use super::options::TierOptions;
use super::policy::{Policy, Uses};
use super::pool::Key;
use crate::cpu::memory::Memory;
use crate::error::ModelError;

/// Marks a frame that no cell is in.
const EMPTY: u32 = u32::MAX;

/// What is known about a frame.
#[derive(Clone, Copy)]
struct Frame {
    /// The block whose cell is in it, or [`EMPTY`].
    block: u32,
    /// The pass that holds it last.
    held: u64,
    uses: Uses,
}

/// The frames of one layer.
struct Layer {
    frames: Vec<Frame>,
    /// Frames that are empty, the next to be used last.
    empty: Vec<u32>,
    /// Blocks that the step has touched in this layer so far.
    touched: Vec<u32>,
}

/// A block that a pass needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The block.
    pub block: u32,
    /// The first token row that needs it.
    pub token: u32,
    /// Whether it is written from its first token on, so that what it held before is of no use.
    pub fresh: bool,
}

/// The latents of a model in tiers. See the [module](super).
pub struct Tiers {
    layout: VectorLayout,
    /// How many names of blocks there are.
    num_blocks: u32,
    /// Frames of a layer, without the absent one.
    num_frames: u32,
    /// `[layer][frames + 1][cell]`. The last frame of a layer stands for every cell that is absent: it holds NaN, so that a read of it
    /// would be seen.
    memory: Memory<u8>,
    /// `[layer][block]`: the frame of each cell.
    map: Vec<u32>,
    layers: Vec<Layer>,
    policy: Policy,
    pub(super) below: Below,
    /// Counts steps.
    now: u64,
    /// Counts passes.
    pass: u64,
    /// By block: the pass that collected it last.
    pub(super) collected: Vec<u64>,
    /// Frames that may be emptied, with their scores.
    candidates: Vec<(f64, u32)>,
    ahead: Vec<Key>,
    /// Token rows of the step that selected a lost cell, ascending.
    pub(super) lost_rows: Vec<u32>,
    /// Blocks that have a lost cell, of which nobody was told yet.
    pub(super) lost_blocks: Vec<u32>,
    pub(super) counts: TierCounts,
    /// What the step fetched, if it is asked for.
    pub(super) log: Option<(Vec<Fetch>, Vec<Waited>)>,
    pub(super) indexer_keys: Option<super::prefixes::IndexerKeys>,
}

impl Tiers {
    /// Tiers for `layers` layers of latents of this layout, and for `num_blocks` names of blocks.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn new(
        layout: VectorLayout,
        layers: usize,
        num_blocks: u32,
        options: TierOptions,
    ) -> Result<Self, ModelError> {
        let num_frames = options.frames.unwrap_or(num_blocks).clamp(1, num_blocks.max(1));
        let cell = layout.block_bytes();
        let frames = num_frames as usize + 1;
        let mut memory = Memory::zeroed(layers * frames * cell)?;
        for layer in 0..layers {
            let absent = (layer + 1) * frames * cell - cell;
            // All bits set is NaN in every type that latents have.
            memory[absent..absent + cell].fill(0xff);
        }
        let whole = num_frames == num_blocks;
        let row = (0..num_blocks).map(|block| if whole { block } else { num_frames });
        let frame = Frame { block: EMPTY, held: 0, uses: Uses::default() };
        let layer = || Layer {
            frames: vec![frame; num_frames as usize],
            empty: (0..num_frames).rev().collect(),
            touched: Vec::new(),
        };
        Ok(Self {
            layout,
            num_blocks,
            num_frames,
            memory,
            map: (0..layers).flat_map(|_| row.clone()).collect(),
            layers: (0..layers).map(|_| layer()).collect(),
            policy: options.policy,
            below: Below::new(options.pools),
            now: 0,
            pass: 0,
            collected: vec![0; num_blocks as usize],
            candidates: Vec::new(),
            ahead: Vec::new(),
            lost_rows: Vec::new(),
            lost_blocks: Vec::new(),
            counts: TierCounts { frames: num_frames, ..TierCounts::default() },
            log: None,
            indexer_keys: None,
        })
    }

    /// What happened since they were made.
    #[must_use]
    pub fn counts(&self) -> TierCounts {
        TierCounts { below: self.below.counts(), ..self.counts }
    }

    /// Has the fetches of every later step kept for [`fetches`](Self::fetches), or not.
    pub fn keep_fetches(&mut self, keep: bool) {
        self.log = keep.then(Default::default);
    }

    /// What the last step fetched, and how long its token rows took to find their blocks, each in the order in which it happened.
    #[must_use]
    pub fn fetches(&self) -> (&[Fetch], &[Waited]) {
        self.log.as_ref().map_or((&[], &[]), |(fetches, waited)| (fetches, waited))
    }

    /// Token rows of the last step that selected a cell which could not be had. What was computed for them is of no use.
    #[must_use]
    pub fn lost_rows(&self) -> &[u32] {
        &self.lost_rows
    }

    /// Takes the blocks that were found to have a lost cell since the last call: nobody may read them again.
    pub fn take_lost_blocks(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.lost_blocks)
    }

    /// Whether every block has a frame, so that nothing moves.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.num_frames == self.num_blocks
    }

    /// Frames of a layer.
    pub(super) fn num_frames(&self) -> usize {
        self.num_frames as usize
    }

    /// The inside of a cell.
    pub(super) fn layout(&self) -> &VectorLayout {
        &self.layout
    }

    /// How many layers there are.
    pub(super) fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// A view of the latents of a layer by the names of blocks. What it reads of a block that is not held is NaN.
    pub(crate) fn vectors(&self, layer: usize) -> VectorLayer {
        let cell = self.layout.block_bytes();
        let base = layer * (self.num_frames() + 1) * cell;
        // SAFETY: the memory has a cell for every frame of the layer from `base` on, the absent one included, and the map has a
        // frame for every block. Both live as long as the device, whose operations alone use the view; it changes no map meanwhile.
        unsafe {
            let all = VectorLayer::new(self.memory.as_ptr().add(base), cell, self.num_blocks, self.layout);
            all.in_frames(self.map.as_ptr().add(layer * self.num_blocks as usize))
        }
    }

    /// Begins a step, and has what the last one selected and tier 0 has lost since fetched ahead.
    pub(crate) fn begin_step(&mut self) {
        self.now += 1;
        self.lost_rows.clear();
        if let Some((fetches, waited)) = &mut self.log {
            fetches.clear();
            waited.clear();
        }
        self.ahead.clear();
        for (layer, own) in self.layers.iter_mut().enumerate() {
            let absent =
                |&block: &u32| self.map[layer * self.num_blocks as usize + block as usize] == self.num_frames;
            let absent = own.touched.drain(..).filter(absent);
            self.ahead.extend(absent.map(|block| Key::Cell { layer: layer as u16, block }));
        }
        self.below.prefetch(&self.ahead);
    }

    /// Has the system back the frames with memory now.
    pub(crate) fn touch(&mut self) {
        self.memory.touch();
    }

    fn slot(&self, layer: usize, block: u32) -> usize {
        layer * self.num_blocks as usize + block as usize
    }

    /// The bytes of a frame.
    fn bytes(&mut self, layer: usize, frame: u32) -> &mut [u8] {
        let cell = self.layout.block_bytes();
        let at = (layer * (self.num_frames() + 1) + frame as usize) * cell;
        &mut self.memory[at..at + cell]
    }

    /// The bytes of a cell that is in tier 0.
    pub(super) fn resident(&mut self, layer: usize, block: u32) -> Option<&mut [u8]> {
        let frame = *self.map.get(self.slot(layer, block))?;
        (frame != self.num_frames).then(|| self.bytes(layer, frame))
    }

    /// Begins the list of the blocks of a pass.
    pub(super) fn begin_pass(&mut self) {
        self.pass += 1;
    }

    /// Whether the pass has not collected the block before. It then has.
    #[inline]
    pub(super) fn collects(&mut self, block: u32) -> bool {
        let new = self.collected.get(block as usize).is_some_and(|&pass| pass != self.pass);
        if new {
            self.collected[block as usize] = self.pass;
        }
        new
    }

    /// Takes a block off the list of the pass again.
    pub(super) fn uncollect(&mut self, block: u32) {
        self.collected[block as usize] = 0;
    }

    /// Holds the cells of these blocks in frames until the next pass begins: at most as many as there are frames, none twice. Gives
    /// the blocks whose cells are lost.
    pub(super) fn hold(&mut self, layer: usize, wanted: &[Wanted]) -> Vec<u32> {
        if self.is_whole() {
            return Vec::new();
        }
        let (now, pass, absent) = (self.now, self.pass, self.num_frames);
        let mut missing = Vec::new();
        for &want in wanted {
            let frame = self.map[self.slot(layer, want.block)];
            self.layers[layer].touched.push(want.block);
            if frame == absent {
                missing.push(want);
                continue;
            }
            let frame = &mut self.layers[layer].frames[frame as usize];
            frame.held = pass;
            frame.uses.note(now);
        }
        self.counts.hits += (wanted.len() - missing.len()) as u64;
        if missing.is_empty() {
            return Vec::new();
        }
        self.make_empty(layer, missing.len());
        let mut lost = Vec::new();
        for want in missing {
            let key = Key::Cell { layer: layer as u16, block: want.block };
            let Some(frame) = self.layers[layer].empty.pop() else { break };
            if want.fresh {
                self.below.forget(key);
            } else if !self.fetch(layer, frame, want, key) {
                self.layers[layer].empty.push(frame);
                lost.push(want.block);
                continue;
            }
            let slot = self.slot(layer, want.block);
            self.map[slot] = frame;
            let mut uses = Uses::default();
            uses.note(now);
            self.layers[layer].frames[frame as usize] = Frame { block: want.block, held: pass, uses };
        }
        lost
    }

    /// Reads a cell from below into a frame; whether it could be had.
    fn fetch(&mut self, layer: usize, frame: u32, want: Wanted, key: Key) -> bool {
        let start = Instant::now();
        let cell = self.layout.block_bytes();
        let at = (layer * (self.num_frames() + 1) + frame as usize) * cell;
        let got = self.below.get(key, &mut self.memory[at..at + cell]);
        let us = start.elapsed().as_secs_f64() * 1e6;
        match got {
            Ok(tier) => {
                self.below.set_spare(key, true);
                let fetched = self.counts.fetched(tier);
                fetched.cells += 1;
                fetched.bytes += cell as u64;
                fetched.us += us;
                if let Some((fetches, _)) = &mut self.log {
                    let Wanted { token, block, .. } = want;
                    fetches.push(Fetch { layer: layer as u16, token, block, tier, us });
                }
                true
            }
            Err(_) => {
                self.counts.lost_cells += 1;
                self.lost_blocks.push(want.block);
                false
            }
        }
    }

    /// Sees to it that so many frames of a layer are empty, if that many are not held.
    fn make_empty(&mut self, layer: usize, frames: usize) {
        let own = &self.layers[layer];
        let more = frames.saturating_sub(own.empty.len());
        if more == 0 {
            return;
        }
        let (pass, policy, now) = (self.pass, self.policy, self.now);
        let free = own.frames.iter().zip(0..).filter(|(frame, _)| frame.block != EMPTY && frame.held != pass);
        self.candidates.clear();
        self.candidates.extend(free.map(|(frame, index)| (frame.uses.score(policy, now), index)));
        let more = more.min(self.candidates.len());
        if more == 0 {
            return;
        }
        let order = |a: &(f64, u32), b: &(f64, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        if more < self.candidates.len() {
            self.candidates.select_nth_unstable_by(more - 1, order);
        }
        for at in 0..more {
            self.demote(layer, self.candidates[at].1);
        }
    }

    /// Sends the cell of a frame down.
    fn demote(&mut self, layer: usize, frame: u32) {
        let block = std::mem::replace(&mut self.layers[layer].frames[frame as usize].block, EMPTY);
        let key = Key::Cell { layer: layer as u16, block };
        if self.below.find(key).is_some() {
            self.below.set_spare(key, false);
        } else {
            let cell = self.layout.block_bytes();
            let at = (layer * (self.num_frames() + 1) + frame as usize) * cell;
            self.below.put_cell(key, &self.memory[at..at + cell]);
        }
        let slot = self.slot(layer, block);
        self.map[slot] = self.num_frames;
        self.layers[layer].empty.push(frame);
        self.counts.demoted += 1;
    }

    /// Takes note that cells which are held are written, so that what lies below of them is old.
    pub(super) fn written(&mut self, layer: usize, blocks: &[Wanted]) {
        if !self.is_whole() {
            for want in blocks {
                self.below.forget(Key::Cell { layer: layer as u16, block: want.block });
            }
        }
    }

    /// Writes a whole cell: into a frame if one is empty, and below otherwise.
    pub(super) fn put_cell(&mut self, layer: usize, block: u32, bytes: &[u8]) {
        let key = Key::Cell { layer: layer as u16, block };
        if let Some(own) = self.resident(layer, block) {
            own.copy_from_slice(bytes);
            if !self.is_whole() {
                self.below.forget(key);
            }
            return;
        }
        let Some(frame) = self.layers[layer].empty.pop() else {
            return self.below.put_cell(key, bytes);
        };
        self.below.forget(key);
        self.bytes(layer, frame).copy_from_slice(bytes);
        let (slot, mut uses) = (self.slot(layer, block), Uses::default());
        uses.note(self.now);
        self.map[slot] = frame;
        self.layers[layer].frames[frame as usize] = Frame { block, held: 0, uses };
    }

    /// Reads a whole cell, wherever it lies; whether it could be had.
    pub(super) fn get_cell(&mut self, layer: usize, block: u32, into: &mut [u8]) -> bool {
        if let Some(own) = self.resident(layer, block) {
            into.copy_from_slice(own);
            return true;
        }
        let got = self.below.get(Key::Cell { layer: layer as u16, block }, into).is_ok();
        if !got {
            self.counts.lost_cells += 1;
            self.lost_blocks.push(block);
        }
        got
    }

    /// Whether a cell can be had.
    pub(super) fn has_cell(&self, layer: usize, block: u32) -> bool {
        let frame = self.map.get(self.slot(layer, block));
        frame.is_some_and(|&frame| frame != self.num_frames)
            || self.below.find(Key::Cell { layer: layer as u16, block }).is_some()
    }

    /// Drops a cell: it is lost from here on, unless it is written anew.
    pub(super) fn drop_cell(&mut self, layer: usize, block: u32) {
        if self.is_whole() {
            return;
        }
        let slot = self.slot(layer, block);
        let frame = std::mem::replace(&mut self.map[slot], self.num_frames);
        if frame != self.num_frames {
            self.layers[layer].frames[frame as usize].block = EMPTY;
            self.layers[layer].empty.push(frame);
        }
        self.below.forget(Key::Cell { layer: layer as u16, block });
    }

    /// Copies a block onto another one, in all layers.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32) {
        let mut cell = vec![0; self.layout.block_bytes()];
        for layer in 0..self.layers.len() {
            if self.get_cell(layer, from, &mut cell) {
                self.put_cell(layer, to, &cell);
            } else {
                self.drop_cell(layer, to);
            }
        }
    }
}
