//! The state that a session keeps for one sample.

use std::sync::Arc;

use pagedraft_block_manager::{BlockId, SideTable, Slab};
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_scheduler::{Applied, FinishReason, RequestInfo, RequestKey};
use pagedraft_spec_decode::sampling::RowLogprobs;
use pagedraft_spec_decode::{CanvasPass, PromptLogprobs};

use super::diffusion::CanvasOutput;
use super::pruning::Reach;
use super::request::{Request, RequestId, RequestOutput};
use super::text::StopScan;
use super::{IndexerTopk, PruneOutput};
use crate::error::Result;

/// One sample of a request: its output so far, and its text.
pub(super) struct Sequence {
    key: RequestKey,
    scan: StopScan,
    stop_token_ids: Vec<u32>,
    output: RequestOutput,
    logits: Vec<Vec<f32>>,
    hidden: Vec<Vec<f32>>,
    /// Whether a step has run it.
    ran: bool,
    /// The number of tokens that the sample will have after the present step. Log probabilities and states
    /// of tokens behind a stop, which were computed but cut off, are not kept.
    length: usize,
    /// Its canvas, of a model that fills masks.
    canvas: Option<CanvasOutput>,
    /// Whether its text is at its end, and its canvas goes on.
    text_ended: bool,
}

impl Sequence {
    /// A sample that the scheduler does not have yet.
    pub fn new(
        request: &Request,
        sample: u32,
        stop_token_ids: &[u32],
        tokenizer: Option<&Arc<Tokenizer>>,
    ) -> Result<Self> {
        Ok(Self {
            key: RequestKey::default(),
            scan: StopScan::new(tokenizer, request)?,
            stop_token_ids: stop_token_ids.to_vec(),
            output: RequestOutput {
                request_id: request.request_id.clone(),
                sample,
                prompt_token_ids: request.prompt.clone(),
                token_ids: Vec::new(),
                text: String::new(),
                finish_reason: None,
                error: None,
                logprobs: request.sampling.logprobs.map(|_| Vec::new()),
                token_logprobs: request.sampling.logprobs.map(|_| Vec::new()),
                prompt_logprobs: request.sampling.prompt_logprobs.map(|_| vec![None; request.prompt.len()]),
                prompt_token_logprobs: request
                    .sampling
                    .prompt_logprobs
                    .map(|_| vec![None; request.prompt.len()]),
                num_cached_tokens: 0,
                num_preemptions: 0,
                num_drafts: 0,
                num_accepted: 0,
                drafted_by_position: Vec::new(),
                accepted_by_position: Vec::new(),
                indexer_topk: None,
                prune: None,
                diffusion: None,
                num_blocks: 0,
                prefix_blocks: Vec::new(),
            },
            ran: false,
            logits: Vec::new(),
            hidden: Vec::new(),
            length: 0,
            canvas: None,
            text_ended: false,
        })
    }

    /// The sample with the scheduler's key for it.
    pub fn with_key(mut self, key: RequestKey) -> Self {
        self.key = key;
        self
    }

    pub fn key(&self) -> RequestKey {
        self.key
    }

    pub fn output(&self) -> &RequestOutput {
        &self.output
    }

    /// Its output, once it has ended.
    pub fn into_output(self) -> RequestOutput {
        self.output
    }

    /// Takes note of the blocks that it holds in a step. Of its prompt, the first `cached` tokens were found in the prefix cache, in
    /// blocks of `block_size` tokens.
    pub fn hold(&mut self, table: &[BlockId], cached: u32, block_size: u32) {
        self.output.num_blocks = table.len() as u32;
        self.output.num_cached_tokens = cached;
        if !self.ran {
            let blocks = cached / block_size.max(1);
            self.output.prefix_blocks.extend(table.iter().take(blocks as usize));
        }
        self.ran = true;
    }

    /// Takes note of what the scheduler knows about it when it ends.
    pub fn note(&mut self, info: Option<RequestInfo>) {
        if let Some(info) = info {
            self.output.num_cached_tokens = info.num_cached_tokens;
            self.output.num_preemptions = info.num_preemptions;
        }
    }

    /// Takes in a step: how many tokens were kept, and how its drafts did.
    pub fn begin(&mut self, applied: &Applied) {
        self.length = self.output.token_ids.len() + applied.tokens.len();
        let (drafts, accepted) = (usize::from(applied.num_drafts), usize::from(applied.num_accepted));
        let output = &mut self.output;
        output.num_drafts += drafts as u32;
        output.num_accepted += accepted as u32;
        if output.drafted_by_position.len() < drafts {
            output.drafted_by_position.resize(drafts, 0);
            output.accepted_by_position.resize(drafts, 0);
        }
        output.drafted_by_position[..drafts].iter_mut().for_each(|n| *n += 1);
        output.accepted_by_position[..accepted].iter_mut().for_each(|n| *n += 1);
    }

    /// Keeps what the indexers choose from now on, in `empty`.
    pub fn keep_indexer_topk(&mut self, empty: IndexerTopk) {
        self.output.indexer_topk = Some(empty);
    }

    /// Takes note of what becomes of the prompt, if it is pruned.
    pub fn prune(&mut self, output: Option<PruneOutput>) {
        self.output.prune = Some(output);
    }

    /// Takes note of the positions of the tokens that were kept behind a layer, if the prompt is pruned there. The last ones may be
    /// generated tokens, if the request is computed again.
    pub fn keep(&mut self, layer: u16, positions: &[u32]) {
        let prompt_len = self.output.prompt_token_ids.len();
        if !self.prunes_behind(layer) {
            return;
        }
        if let Some(Some(output)) = &mut self.output.prune {
            let prompt = positions.iter().copied().filter(|&position| (position as usize) < prompt_len);
            output.kept.insert(layer, prompt.collect());
        }
    }

    /// Whether tokens of its prompt are dropped behind a layer, and which are kept was not noted yet.
    pub fn lacks_kept(&self, layer: u16) -> bool {
        let kept = |output: &PruneOutput| output.kept.contains_key(&layer);
        self.prunes_behind(layer) && !matches!(&self.output.prune, Some(Some(output)) if kept(output))
    }

    /// The tokens that reach a layer, if some of its prompt's do not.
    pub fn reach(&self, layer: u16) -> Option<Reach<'_>> {
        self.output.prune.as_ref()?.as_ref()?.reach(layer, self.output.prompt_token_ids.len() as u32)
    }

    /// Whether tokens of its prompt are dropped behind a layer.
    pub fn prunes_behind(&self, layer: u16) -> bool {
        matches!(&self.output.prune, Some(Some(output)) if output.keep_k.contains_key(&layer))
    }

    /// Begins its canvas.
    pub fn denoise(&mut self, empty: CanvasOutput) {
        self.output.diffusion = Some(empty.output());
        self.canvas = Some(empty);
    }

    /// Takes in a pass over its canvas.
    pub fn take_pass(&mut self, pass: &CanvasPass) {
        if let Some(canvas) = &mut self.canvas {
            canvas.take(pass);
        }
    }

    /// What the indexers chose, if it is kept.
    pub fn indexer_topk(&mut self) -> Option<&mut IndexerTopk> {
        self.output.indexer_topk.as_mut()
    }

    pub fn logits(&mut self, logits: Vec<f32>) {
        if self.logits.len() < self.length {
            self.logits.push(logits);
        }
    }

    pub fn hidden(&mut self, hidden: Vec<f32>) {
        if self.hidden.len() < self.length {
            self.hidden.push(hidden);
        }
    }

    pub fn take_hidden(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.hidden)
    }

    pub fn take_logits(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.logits)
    }

    /// Looks for a stop string in the tokens of a step. If one is found, returns how many of the tokens are
    /// kept.
    pub fn scan(&mut self, tokens: &[u32]) -> Result<Option<usize>> {
        if self.canvas.is_some() {
            return self.scan_canvas(tokens).map(|()| None);
        }
        for (i, &token) in tokens.iter().enumerate() {
            // A stop token ends the text without being part of it, and the scheduler ends the sequence
            // there. A stop token that has no text may still complete a stop string, which is then cut off.
            if self.stop_token_ids.contains(&token) && !self.scan.looks_at_special(token) {
                return Ok(None);
            }
            if self.scan.push(token)? {
                return Ok(Some(i + 1));
            }
            if self.stop_token_ids.contains(&token) {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Adds the tokens of a block to the text, up to the end of the sequence.
    fn scan_canvas(&mut self, tokens: &[u32]) -> Result<()> {
        for &token in tokens {
            self.text_ended |= self.stop_token_ids.contains(&token);
            if self.text_ended {
                break;
            }
            self.scan.push(token)?;
        }
        Ok(())
    }

    /// Adds the tokens that a step kept. Returns the text that can be shown.
    pub fn extend(&mut self, tokens: &[u32], finish: Option<FinishReason>) -> Result<String> {
        self.output.token_ids.extend_from_slice(tokens);
        let text = self.scan.take(finish.is_some())?;
        if finish.is_some() {
            // The last token is never computed. Tokens behind an end were computed in vain.
            let tokens = self.output.prompt_token_ids.len() + self.output.token_ids.len();
            if let Some(topk) = &mut self.output.indexer_topk {
                topk.truncate(tokens.saturating_sub(1));
            }
            if let Some(canvas) = &self.canvas {
                // A mask that was left in a block may have been filled with a later one.
                self.output.token_ids = canvas.ids();
                self.output.diffusion = Some(canvas.output());
            }
            self.output.finish_reason = finish;
            self.output.text = self.scan.text().to_owned();
        }
        Ok(text)
    }

    pub fn logprobs(&mut self, logprobs: &RowLogprobs) {
        if let (Some(best), Some(own)) = (&mut self.output.logprobs, &mut self.output.token_logprobs)
            && best.len() < self.length
        {
            best.push(logprobs.best.clone());
            own.push(logprobs.chosen);
        }
    }

    pub fn prompt_logprobs(&mut self, logprobs: &PromptLogprobs) {
        let at = logprobs.position as usize;
        let (best, own) = (&mut self.output.prompt_logprobs, &mut self.output.prompt_token_logprobs);
        if let Some(slot) = best.as_mut().and_then(|p| p.get_mut(at)) {
            *slot = Some(logprobs.logprobs.best.clone());
        }
        if let Some(slot) = own.as_mut().and_then(|p| p.get_mut(at)) {
            *slot = Some(logprobs.logprobs.chosen);
        }
    }

    /// Takes note of why the sample fails in this step.
    pub fn fail(&mut self, why: &str) {
        self.output.error = Some(format!("request {:?}: {why}", self.output.request_id));
    }

    /// Ends the sample with its output so far.
    pub fn abort(&mut self) -> Result<String> {
        self.extend(&[], Some(FinishReason::Abort))
    }
}

/// The sequence that the scheduler knows by `key`, unless it was collected.
pub(super) fn sequence_of<'a>(
    sequences: &'a mut Slab<Sequence>,
    by_key: &SideTable<RequestId>,
    key: RequestKey,
) -> Option<&'a mut Sequence> {
    sequences.get_mut(by_key.get(key)?.0)
}
