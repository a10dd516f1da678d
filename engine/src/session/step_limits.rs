//! How great a step may be, and which shapes of steps are captured as graphs.

use pagedraft_model::{CaptureSizes, StepLimits};

use super::options::EngineOptions;

/// The most rows whose logits are computed at a time. The head's weights are then read only once for a
/// batch of verify rows. No graph has more rows. The logits take 2 KiB per token of the vocabulary, which
/// is 297 MiB for 151,936 tokens.
pub const MOST_LOGIT_ROWS: u32 = 512;

/// The greatest step that a model is built for.
pub(super) fn step_limits(options: &EngineOptions, max_model_len: u32) -> StepLimits {
    let token_rows = options.max_num_batched_tokens as usize;
    let logit_rows = token_rows.min(MOST_LOGIT_ROWS as usize);
    StepLimits { token_rows, logit_rows, max_model_len: max_model_len as usize }
}

/// The shapes that the target's graphs are captured for, with query lengths up to `longest`. If its outputs are `canvases`, they are
/// those of steps over blocks of one length.
pub(super) fn capture_sizes(
    options: &EngineOptions,
    limits: StepLimits,
    longest: u32,
    canvases: bool,
) -> CaptureSizes {
    let captured = limits.logit_rows as u32;
    if canvases {
        let block = options.diffusion.all.block_length.max(1);
        let most = options.max_num_seqs.min(captured / block);
        let blocks = CaptureSizes::default_token_rows(most);
        return CaptureSizes::new(blocks.into_iter().map(|blocks| blocks * block).collect(), vec![block]);
    }
    let most = captured.min(options.max_num_seqs.saturating_mul(longest));
    let mut rows = options.graph_sizes.clone().unwrap_or_else(|| CaptureSizes::default_token_rows(most));
    rows.retain(|&rows| rows <= captured);
    CaptureSizes::new(rows, (1..=longest).collect())
}

#[cfg(test)]
mod tests {
    use super::super::options::ModelRef;
    use super::*;

    #[test]
    fn graphs_are_captured_up_to_the_size_that_the_help_names() {
        let mut options = EngineOptions::new(ModelRef::Builtin("target".to_owned()));
        let greatest = |options: &EngineOptions, longest| {
            let limits = step_limits(options, 1024);
            capture_sizes(options, limits, longest, false).token_rows().last().copied()
        };
        assert_eq!(greatest(&options, 5), Some(512));
        assert_eq!(greatest(&options, 1), Some(256));
        options.graph_sizes = Some(vec![4, 512, 513]);
        assert_eq!(greatest(&options, 5), Some(512));
        options.max_num_batched_tokens = 100;
        options.graph_sizes = None;
        assert_eq!(greatest(&options, 5), Some(100));
    }
}
