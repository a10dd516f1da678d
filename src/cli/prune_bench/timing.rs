//! Times one request.

use std::time::Instant;

use anyhow::{Context, ensure};
use pagedraft::session::{PruneOutput, Request, RequestPrune, Session};

use crate::cli::interrupt;

/// What a request took.
#[derive(Clone, Debug)]
pub struct Run {
    /// Seconds from submission to the first token.
    pub prefill: f64,
    /// Seconds of the prefill in which tokens were scored and chosen.
    pub scoring: f64,
    /// Seconds from the first token to the last.
    pub decode: f64,
    /// Bytes of the KV pool that were in use when the first token was there, as the allocator counts them.
    pub kv_bytes: u64,
    pub prune: Option<PruneOutput>,
    pub num_drafts: u32,
    pub num_accepted: u32,
}

impl Run {
    pub fn total(&self) -> f64 {
        self.prefill + self.decode
    }
}

/// Runs one request alone, with an empty prefix cache; `None` if Ctrl-C ended it.
pub fn time(
    session: &mut Session,
    prompt: &[u32],
    output_len: u32,
    prune: RequestPrune,
) -> anyhow::Result<Option<Run>> {
    session.clear_prefix_cache();
    let request = Request { ignore_eos: true, prune, ..Request::new("prompt", prompt.to_vec(), output_len) };
    let start = Instant::now();
    let ids = session.submit(request)?;
    let (mut first, mut scoring) = (None, 0.0);
    while session.has_unfinished() {
        if interrupt::pressed() {
            interrupt::forget(session, &ids)?;
            return Ok(None);
        }
        let Some(step) = interrupt::step(session)? else { continue };
        scoring += step.scoring_us * 1e-6;
        if first.is_none() && step.emitted.iter().any(|news| !news.tokens.is_empty()) {
            first = Some((start.elapsed().as_secs_f64(), step.pool.bytes_used));
        }
    }
    let total = start.elapsed().as_secs_f64();
    let output = session.take_output(ids[0]).context("the request gave no output")?;
    if let Some(error) = &output.error {
        anyhow::bail!("{error}");
    }
    ensure!(
        output.token_ids.len() == output_len as usize,
        "the request gave {} tokens instead of {output_len}",
        output.token_ids.len()
    );
    let (prefill, kv_bytes) = first.context("the request gave no first token")?;
    Ok(Some(Run {
        prefill,
        scoring,
        decode: total - prefill,
        kv_bytes,
        prune: output.prune.flatten(),
        num_drafts: output.num_drafts,
        num_accepted: output.num_accepted,
    }))
}
