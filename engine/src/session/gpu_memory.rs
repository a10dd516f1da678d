//! Checks that a GPU has enough free memory for an engine, before any of it is taken.

use pagedraft_model::cuda::MemoryNeed;

use crate::error::{EngineError, Result};

/// The memory that an engine takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct EngineNeed {
    /// The memory for the model.
    pub target: MemoryNeed,
    /// The memory for its draft model, if it has one.
    pub draft: Option<MemoryNeed>,
    /// The number of KV blocks of each model.
    pub num_blocks: u32,
    /// The bytes of one block of the target and one of the draft model together.
    pub block_bytes: u64,
}

impl EngineNeed {
    fn sum(&self, part: impl Fn(&MemoryNeed) -> u64) -> u64 {
        part(&self.target) + self.draft.as_ref().map_or(0, part)
    }

    /// Refuses more than is free. The error says what each part takes, and which flag makes it smaller.
    /// `arena` returns the bytes of the KV memory for a number of blocks.
    ///
    /// # Errors
    ///
    /// The engine takes more bytes than are free.
    pub fn check(&self, free: u64, arena: impl Fn(u32) -> u64) -> Result<()> {
        let all = self.sum(MemoryNeed::total);
        if all <= free {
            return Ok(());
        }
        let blocks = self.num_blocks;
        let parts = |need: &MemoryNeed, of: &str| {
            format!(
                "{} for {of}weights, {} for {of}KV cache of {blocks} blocks, {} for the buffers of {of}steps",
                size(need.weights),
                size(need.kv_cache),
                size(need.step)
            )
        };
        let mut text = format!(
            "the GPU has {} of memory free, and {} are needed: {}",
            size(free),
            size(all),
            parts(&self.target, "the ")
        );
        if let Some(draft) = &self.draft {
            text.push_str(&format!("; {}", parts(draft, "the draft model's ")));
        }
        Err(EngineError::input_hint(text, self.hint(free, arena)))
    }

    fn hint(&self, free: u64, arena: impl Fn(u32) -> u64) -> String {
        let (cache, weights) = (self.sum(|need| need.kv_cache), self.sum(|need| need.weights));
        let rest = self.sum(MemoryNeed::total) - cache;
        let room = free.saturating_sub(rest);
        // Bisection between a number of blocks that fits and one that does not.
        let (mut fit, mut over) = (0, self.num_blocks);
        while over.saturating_sub(fit) > 1 {
            let middle = fit + (over - fit) / 2;
            if arena(middle) <= room { fit = middle } else { over = middle }
        }
        let without_draft = if self.draft.is_some() { ", or do without --draft" } else { "" };
        if fit > 0 {
            format!(
                "--num-blocks {fit} fits, or --kv-cache-memory {}; --max-num-batched-tokens and --max-model-len are what the \
                 buffers go by",
                u64::from(fit) * self.block_bytes
            )
        } else if weights + self.block_bytes <= free {
            format!("lower --max-num-batched-tokens or --max-model-len{without_draft}")
        } else {
            format!(
                "use a smaller model, or free memory of the GPU (nvidia-smi shows who has it){without_draft}"
            )
        }
    }
}

/// A number of bytes, in the greatest unit that gives at least 1.
fn size(bytes: u64) -> String {
    let unit = |shift: u32, name: &str| format!("{:.2} {name}", bytes as f64 / (1u64 << shift) as f64);
    match bytes {
        0..0x400 => format!("{bytes} bytes"),
        0x400..0x10_0000 => unit(10, "KiB"),
        0x10_0000..0x4000_0000 => unit(20, "MiB"),
        _ => unit(30, "GiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: EngineNeed = EngineNeed {
        target: MemoryNeed { weights: 6 << 30, kv_cache: 4 << 30, step: 512 << 20 },
        draft: Some(MemoryNeed { weights: 1 << 30, kv_cache: 1 << 30, step: 256 << 20 }),
        num_blocks: 1024,
        block_bytes: 5 << 20,
    };

    fn check(need: &EngineNeed, free: u64) -> Result<()> {
        need.check(free, |blocks| u64::from(blocks) * need.block_bytes)
    }

    /// What is said to whoever asked for too much, and the hint.
    fn said(need: &EngineNeed, free: u64) -> String {
        match check(need, free) {
            Err(EngineError::Input(report)) => format!("{report}; {}", report.hint().unwrap_or_default()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_does_not_fit_is_told_by_its_parts() {
        let all = (12 << 30) + (768 << 20);
        assert!(check(&NEED, all).is_ok());
        let said = said(&NEED, all - 1);
        for part in [
            "12.75 GiB of memory free, and 12.75 GiB are needed: 6.00 GiB for the weights",
            "4.00 GiB for the KV cache of 1024 blocks, 512.00 MiB for the buffers of the steps",
            "1.00 GiB for the draft model's weights, 1.00 GiB for the draft model's KV cache of 1024 blocks",
            "256.00 MiB for the buffers of the draft model's steps",
            "--num-blocks 1023 fits, or --kv-cache-memory",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn the_flag_named_is_one_that_helps() {
        let hint = |free: u64| said(&NEED, free);
        // The blocks take 5 MiB each, and 7.75 GiB are needed for everything else.
        assert!(hint(8 << 30).contains("--num-blocks 51 fits"), "{}", hint(8 << 30));
        let buffers = hint((7 << 30) + (100 << 20));
        assert!(buffers.contains("lower --max-num-batched-tokens") && !buffers.contains("--num-blocks"));
        assert!(hint(3 << 30).contains("use a smaller model") && hint(3 << 30).contains("without --draft"));
        assert!(!said(&EngineNeed { draft: None, ..NEED }, 3 << 30).contains("draft"));
    }
}
