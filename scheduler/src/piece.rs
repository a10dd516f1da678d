use std::ops::Range;

use pagedraft_block_manager::{Error as BlockError, MAX_GROUPS};

use crate::request::Request;
use crate::role::Role;
use crate::segments::Budget;
use crate::{Kind, PlanRow, Scheduler, SchedulerConfig};

/// The known tokens that a request's next row computes, and the segments that they run through; see [`PlanRow`].
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) tokens: Range<u32>,
    pub(crate) segments: Range<u16>,
}

impl Piece {
    pub(crate) fn of(row: &PlanRow) -> Self {
        Self { tokens: row.tokens.clone(), segments: row.segments.clone() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Known tokens that run through `segment`.
    pub(crate) fn rows(&self, request: &Request, segment: u16) -> u32 {
        if segment == self.segments.start || request.kept.is_empty() || !request.is_thinning() {
            self.tokens.end - self.tokens.start
        } else {
            request.reach(segment)
        }
    }

    /// Takes its token rows, and `drafts` more in each segment, out of the budget.
    pub(crate) fn take_from(&self, request: &Request, drafts: u32, budget: &mut Budget) {
        for segment in self.segments.clone() {
            budget.take(segment, self.rows(request, segment) + drafts);
        }
    }

    /// Gives them back.
    pub(crate) fn give_back_to(&self, request: &Request, drafts: u32, budget: &mut Budget) {
        for segment in self.segments.clone() {
            budget.give_back(segment, self.rows(request, segment) + drafts);
        }
    }
}

impl Scheduler {
    /// What the next row of a request computes when it leaves `reserved` rows of the budget to others; empty where the
    /// budget has no row for it.
    pub(crate) fn piece(&self, request: &Request, budget: &Budget, reserved: u32) -> Piece {
        let all = self.segments.count();
        let chunk = self.config.prefill_chunk.unwrap_or(u32::MAX);
        if let Some(canvas) = request.canvas {
            let start = if request.refresh { 0 } else { request.len() };
            let whole = request.refresh || canvas.suffix;
            let end = if whole { request.prompt_len + canvas.len } else { start + canvas.block };
            let fits = end - start <= budget.least().saturating_sub(reserved);
            return Piece { tokens: start..if fits { end } else { start }, segments: 0..all };
        }
        if !request.is_thinning() {
            let left = budget.least().saturating_sub(reserved);
            let start = request.computed;
            let new = (request.len() - start).min(left).min(chunk);
            return Piece { tokens: start..start + new, segments: 0..all };
        }
        let first = request.segment;
        let (start, whole) = (request.passed, request.reach(first));
        let left = budget.of(first).saturating_sub(reserved);
        let end = start + (whole - start).min(left).min(chunk);
        let mut last = first + 1;
        // It goes on into further segments as long as all of its tokens that reach them fit the step.
        while end == whole && last < all {
            let rows = request.reach(last);
            if rows > budget.of(last).saturating_sub(reserved) || rows > chunk {
                break;
            }
            last += 1;
        }
        Piece { tokens: start..end, segments: first..last }
    }

    /// What kind of row a piece makes.
    pub(crate) fn kind(request: &Request) -> Kind {
        match request.canvas {
            Some(canvas) => {
                let start = request.len();
                Kind::Denoise { block: start..start + canvas.block, full: request.refresh }
            }
            None if request.is_decoding() => Kind::Decode,
            None => Kind::Prefill,
        }
    }

    /// Whether a piece ends at the end of the known sequence, behind the last segment.
    pub(crate) fn samples(&self, request: &Request, piece: &Piece) -> bool {
        let reach = if request.is_thinning() { request.reach(piece.segments.start) } else { request.len() };
        request.canvas.is_some() || (piece.segments.end == self.segments.count() && piece.tokens.end == reach)
    }

    /// Slots by group that a request may have once `piece` and `drafts` drafts behind it have run; 0 where the group is
    /// left as it is. Groups that lag are not counted.
    pub(crate) fn need(
        &self,
        request: &Request,
        piece: &Piece,
        drafts: u32,
        need: &mut [u32],
    ) -> Result<(), BlockError> {
        let Range { start: first, end: last } = piece.segments;
        for (group, (role, need)) in self.segments.roles().iter().zip(need.iter_mut()).enumerate() {
            *need = match *role {
                Role::Lagging => 0,
                Role::Kv(_) if request.canvas.is_some() => request.prompt_len + request.canvas_len(),
                Role::Kv(segment) if request.is_thinning() => match segment {
                    _ if segment == first => piece.tokens.end,
                    _ if (first..last).contains(&segment) => request.reach(segment),
                    _ => 0,
                },
                Role::Kv(_) if request.kept.is_empty() => piece.tokens.end + drafts,
                Role::Kv(_) => {
                    let group = pagedraft_block_manager::GroupId(group as u8);
                    self.blocks.slots(request.sequence, group, piece.tokens.end + drafts)?
                }
                // The rows of a request that stops behind this segment wait here.
                Role::Hold(segment)
                    if request.is_thinning() && segment + 1 == last && last < self.segments.count() =>
                {
                    if segment == first {
                        piece.tokens.end
                    } else {
                        request.reach(segment)
                    }
                }
                Role::Hold(_) => 0,
            };
        }
        Ok(())
    }

    /// The same for all of a waiting request's known tokens, of which the first `hit` have their KV already: what has to
    /// be free for it to be admitted. Of a group with a window that is no more than the window and one piece behind it.
    pub(crate) fn need_of_all(&self, request: &Request, hit: u32, need: &mut [u32]) {
        let piece = self.greatest_piece();
        for ((role, need), group) in
            self.segments.roles().iter().zip(need.iter_mut()).zip(&self.config.groups)
        {
            *need = match *role {
                Role::Lagging => 0,
                Role::Kv(_) if request.canvas.is_some() => request.prompt_len + request.canvas_len(),
                Role::Kv(segment) => {
                    let reach = request.reach(segment);
                    if group.window.is_some() { reach.min(hit.saturating_add(piece)) } else { reach }
                }
                // Behind a hit no row waits.
                Role::Hold(segment)
                    if !request.kept.is_empty() && hit == 0 && request.reach(segment) > piece =>
                {
                    request.reach(segment)
                }
                Role::Hold(_) => 0,
            };
        }
    }

    /// The greatest number of known tokens that a row computes.
    pub(crate) fn greatest_piece(&self) -> u32 {
        greatest_piece(&self.config)
    }

    /// Whether an empty arena has so many slots by group for one sequence.
    pub(crate) fn arena_holds(&self, need: &[u32]) -> bool {
        self.pages(need) <= u64::from(self.blocks.arena().primary_pages())
    }

    /// The pages of the arena that so many slots by group of one sequence take.
    pub(crate) fn pages(&self, need: &[u32]) -> u64 {
        let (arena, size) = (self.blocks.arena(), self.blocks.block_size());
        let pages = need.iter().zip(arena.groups());
        pages.map(|(&slots, group)| u64::from(size.blocks_for(slots).div_ceil(group.per_page))).sum()
    }
}

/// The greatest number of known tokens that a row computes.
pub(crate) fn greatest_piece(config: &SchedulerConfig) -> u32 {
    config.max_num_batched_tokens.min(config.prefill_chunk.unwrap_or(u32::MAX))
}

/// Slots or blocks by group, on the stack.
pub(crate) type ByGroup = [u32; MAX_GROUPS];
