//! Which requests are refused, and why.

use super::request::Request;
use super::{Session, diffusion};
use crate::error::{Result, bail, ensure};

impl Session {
    /// Whether [`submit`](Self::submit) would accept a request.
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit).
    pub fn check(&self, request: &Request) -> Result<()> {
        let mut with_all = None;
        if self.info.mask_token_id.is_some() && request.diffusion.is_none() {
            self.denoise_as_all(with_all.insert(request.clone()));
        }
        let request = with_all.as_ref().unwrap_or(request);
        let parameters = self.check_parameters(request);
        let pruner = parameters.and_then(|()| self.pruner(request));
        let checked =
            pruner.and_then(|pruner| Ok(self.scheduler.check(&self.spec(request, pruner.as_deref()))?));
        match checked {
            Ok(_) => Ok(()),
            Err(e) => {
                Err(e.context(format_args!("request {:?} is refused", request.request_id)).into_input())
            }
        }
    }

    fn check_parameters(&self, request: &Request) -> Result<()> {
        request.sampling.validate()?;
        let vocab = self.info.vocab_size;
        let outside = |t: &&u32| **t as usize >= vocab;
        if let Some(token) = request.prompt.iter().find(outside) {
            bail!("the prompt has the token id {token}, and the model's ids are below {vocab}");
        }
        if let Some(token) = request.stop_token_ids.iter().find(outside) {
            bail!("the stop token id {token} is none of the model's: its ids are below {vocab}");
        }
        self.check_changes(request)?;
        ensure!(
            request.cache_salt.as_ref().is_none_or(|tenant| !tenant.is_empty()),
            "cache_salt is an empty text: leave it out, or name whose prefixes may be shared"
        );
        ensure!(request.n > 0, "n is 0: ask for at least one sample");
        ensure!(request.stop.iter().all(|s| !s.is_empty()), "a stop string is empty");
        ensure!(
            request.stop.is_empty() || self.tokenizer.is_some(),
            "stop strings need a tokenizer, and the model has none: use stop token ids"
        );
        self.check_selections(request)?;
        diffusion::check_request(request, self.info.mask_token_id, self.info.skip_layers, vocab)?;
        // If the whole pool could not hold a request to its end, it would end early, and how early would
        // depend on the pool.
        let most = (request.prompt.len() as u64 + u64::from(request.max_tokens))
            .min(u64::from(self.info.max_model_len));
        let (blocks, block_size) = (self.info.num_blocks, self.info.block_size);
        let holds = u64::from(self.scheduler.capacity());
        // The last token is never computed, so it needs no slot.
        ensure!(
            most <= holds + 1,
            "it may grow to {most} tokens ({} of prompt), and the pool of {blocks} KV blocks of {block_size} tokens holds {holds}: \
             ask for fewer tokens, or for more blocks with --num-blocks or --kv-cache-memory",
            request.prompt.len()
        );
        Ok(())
    }

    fn check_changes(&self, request: &Request) -> Result<()> {
        let Some(changes) = &request.sampling.changes else { return Ok(()) };
        let vocab = self.info.vocab_size;
        if let Some((token, _)) = changes.bias.iter().find(|(token, _)| *token as usize >= vocab) {
            bail!("logit_bias names the token id {token}, and the model's ids are below {vocab}");
        }
        let (min, max) = (changes.min_tokens, request.max_tokens);
        ensure!(min <= max, "min_tokens is {min}, and max_tokens is {max}: it can't be less");
        ensure!(
            self.info.mask_token_id.is_none(),
            "penalties, logit_bias and min_tokens are for models that append tokens, and this one fills masks"
        );
        Ok(())
    }
}
