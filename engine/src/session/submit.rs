//! How a request enters the engine: what the scheduler and the executor are told of it.

use std::sync::Arc;

use pagedraft_scheduler::RequestSpec;
use pagedraft_spec_decode::Registered;

use super::indexer_topk::IndexerTopk;
use super::request::{Request, RequestId};
use super::sequence::Sequence;
use super::{Session, kv_salt, log, pruning};
use crate::error::Result;
use crate::prune::Pruner;

impl Session {
    /// Submits a request. Returns one id per sample, in order.
    ///
    /// # Errors
    ///
    /// A parameter is out of range, the model does not have a token id, or the prompt is empty or can never
    /// fit. Nothing is queued then.
    pub fn submit(&mut self, mut request: Request) -> Result<Vec<RequestId>> {
        self.denoise_as_all(&mut request);
        self.check(&request)?;
        let pruner = self.pruner(&request)?;
        let mut ids = Vec::with_capacity(request.n as usize);
        let mut first = None;
        for sample in 0..request.n {
            let mut spec = self.spec(&request, pruner.as_deref());
            // If log probabilities or selections of the prompt are asked for, all of it must be computed.
            spec.fork_of = first.filter(|_| spec.reads_cache);
            let mut sequence =
                Sequence::new(&request, sample, &self.text_ends(&request, &spec), self.tokenizer.as_ref())?;
            if let Some((layers, k)) = self.indexer_topk_shape.filter(|_| request.return_indexer_topk) {
                sequence.keep_indexer_topk(IndexerTopk::new(layers, k));
            }
            if let Some(pruning) = &self.pruning {
                let empty = |pruner: &Arc<_>| pruning.empty_output(pruner, request.prompt.len() as u32);
                sequence.prune(pruner.as_ref().map(empty));
            }
            let (salt, shares_kept, stops) = (spec.salt, spec.shares_kept, spec.stop_token_ids.clone());
            let key = self.scheduler.submit(spec)?;
            first = first.or(Some(key));
            let mut sampling = request.sampling.clone();
            sampling.sample += sample;
            if let Some(changes) = &mut sampling.changes {
                changes.ends.clone_from(&stops);
            }
            let recorded = request.recorded.get(sample as usize).cloned();
            let follows = request.follows_recorded;
            let prompt_len = request.prompt.len() as u32;
            let thinning = pruner.as_ref().filter(|pruner| pruner.scores()).map(pruning::thinning);
            let denoising =
                request.diffusion.as_ref().zip(self.info.mask_token_id).map(|(diffusion, mask)| {
                    sequence.denoise(diffusion.empty_output(prompt_len, request.max_tokens, mask));
                    diffusion.denoising(request.max_tokens, mask, self.info.skip_layers)
                });
            let known = Registered { sampling, prompt_len, recorded, follows, thinning, denoising };
            self.executor.register(key, known);
            if let Some(trace) = &mut self.trace {
                let name = &request.request_id;
                let name = if request.n > 1 { format!("{name}/{sample}") } else { name.clone() };
                let counts = |pruner| pruning::kept_counts(pruner, prompt_len, shares_kept);
                let kept = pruner.as_ref().filter(|pruner| pruner.scores()).map(counts);
                trace.name(key, name, Some(salt).filter(|&salt| salt != self.info.kv_salt), kept);
            }
            log::submitted(&request, sample);
            let id = RequestId(self.sequences.insert(sequence.with_key(key)));
            self.by_key.insert(key, id);
            ids.push(id);
        }
        Ok(ids)
    }

    /// Has a request denoised as the engine's options say, if the model fills masks and the request says nothing.
    pub(super) fn denoise_as_all(&self, request: &mut Request) {
        if self.info.mask_token_id.is_some() {
            request.diffusion.get_or_insert_with(|| self.diffusion.clone());
        }
    }

    /// The tokens that end the text of a request. A canvas goes on behind its end of sequence, and its text does not.
    fn text_ends(&self, request: &Request, spec: &RequestSpec) -> Vec<u32> {
        if spec.canvas.is_some() && !request.ignore_eos {
            return self.info.eos_token_ids.clone();
        }
        spec.stop_token_ids.clone()
    }

    /// What the scheduler is told of a request, of which `pruner` chooses what is kept.
    pub(super) fn spec(&self, request: &Request, pruner: Option<&Pruner>) -> RequestSpec {
        let mut spec = RequestSpec::new(request.prompt.clone(), request.max_tokens);
        if let Some(pruner) = pruner.filter(|pruner| pruner.scores()) {
            spec.kept = pruner.counts().to_vec();
        }
        spec.stop_token_ids.clone_from(&request.stop_token_ids);
        if !request.ignore_eos {
            spec.stop_token_ids.extend(&self.info.eos_token_ids);
        }
        if let Some(diffusion) = &request.diffusion {
            // A canvas is filled to its end, and what its tokens see is never a prefix that another request has.
            spec.canvas = Some(diffusion.canvas(request.max_tokens));
            spec.stop_token_ids.clear();
            spec.reads_cache = false;
        }
        spec.priority = request.priority;
        let most_drafts = request.num_speculative_tokens.and_then(|most| u16::try_from(most).ok());
        spec.most_drafts = most_drafts.unwrap_or(u16::MAX);
        spec.reads_cache &= request.sampling.prompt_logprobs.is_none() && !request.return_indexer_topk;
        spec.salt = match &request.cache_salt {
            Some(tenant) => kv_salt::of_tenant(self.info.kv_salt, tenant),
            None => self.info.kv_salt,
        };
        let pruner = pruner.filter(|pruner| pruner.scores());
        spec.shares_kept = pruner.map(|pruner| pruner.shares_kept(&request.prompt, spec.salt));
        spec
    }
}
