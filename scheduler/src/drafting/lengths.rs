use pagedraft_block_manager::{BlockManager, KvGroup};

use crate::Scheduler;
use crate::request::Request;

/// At most this many waiting requests are looked at to foresee how many tokens this step will prefill.
const LOOK_AHEAD: usize = 16;

impl Scheduler {
    /// Lets the draft control choose the draft lengths of the step about to be planned.
    pub(crate) fn decide_drafts(&mut self) {
        let Self { control: Some(control), config, running, waiting, requests, blocks, segments, .. } = self
        else {
            return;
        };
        if config.num_speculative_tokens == 0 {
            control.stop();
            return;
        }
        let running = running.keys();
        if waiting.len() == 0 && control.rests(running.len()) {
            return;
        }
        let budget = config.max_num_batched_tokens;
        control.begin(running.len());
        // `left` ends as the tokens of the budget that drafts may use: a prefill is not cut shorter because of them.
        let mut left = budget;
        let chunk = config.prefill_chunk.unwrap_or(u32::MAX);
        for &key in running {
            let Some(request) = requests.get(key.0) else {
                continue;
            };
            let len = request.len();
            if request.is_decoding() {
                left = left.saturating_sub(1);
                control.add_decode(key, len, segments.shares().context(len), request.most_emitted());
            } else {
                let piece = prefill_rows(request, left, chunk);
                left -= piece;
                control.add_prefill(segments.shares().rows(|segment| worth(request, piece, segment)));
            }
        }
        let mut free = free_tokens(blocks);
        let seats = (config.max_num_seqs as usize).saturating_sub(running.len());
        for at in 0..seats.min(LOOK_AHEAD) {
            let Some(request) = waiting.get(at).and_then(|key| requests.get(key.0)) else {
                break;
            };
            if free < request.len() {
                break;
            }
            free -= request.len();
            let piece = prefill_rows(request, left, chunk);
            left -= piece;
            control.add_prefill(segments.shares().rows(|segment| worth(request, piece, segment)));
        }
        control.decide(left);
    }
}

/// Token rows of the next row of a request that does not decode.
fn prefill_rows(request: &Request, left: u32, chunk: u32) -> u32 {
    match request.canvas {
        Some(canvas) if request.refresh => (request.prompt_len + canvas.len).min(left),
        Some(canvas) if canvas.suffix => (request.prompt_len + canvas.len - request.len()).min(left),
        Some(canvas) => canvas.block.min(left),
        None if request.is_thinning() => {
            (request.reach(request.segment) - request.passed).min(left).min(chunk)
        }
        None => (request.len() - request.computed).min(left).min(chunk),
    }
}

/// How many of those run through `segment`: a prompt that drops tokens takes those that are left through the further ones
/// once all of it has run through the first.
fn worth(request: &Request, piece: u32, segment: u16) -> u32 {
    if !request.is_thinning() || segment == request.segment {
        return piece;
    }
    let whole = request.passed + piece == request.reach(request.segment);
    if segment > request.segment && whole { request.reach(segment) } else { 0 }
}

/// Tokens that groups which do not lag still have room for, all of them together.
fn free_tokens(blocks: &BlockManager) -> u32 {
    let primary = || blocks.groups().iter().filter(|group| !group.lags && !group.is_scratch());
    let bytes_per_token: usize = primary().map(KvGroup::bytes_per_token).sum();
    let arena = blocks.arena();
    let all = u64::from(arena.primary_pages()) * arena.page_bytes() as u64;
    let used: u64 = primary()
        .filter_map(|group| {
            let stats = blocks.group_stats(group.id);
            Some(u64::from(stats.used) * arena.group(group.id)?.stride as u64)
        })
        .sum();
    u32::try_from(all.saturating_sub(used) / (bytes_per_token.max(1) as u64)).unwrap_or(u32::MAX)
}
