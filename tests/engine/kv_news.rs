//! What an engine reports of its prefix cache, against a router that follows it.

use std::collections::HashMap;

use pagedraft::block_manager::BlockHash;
use pagedraft::session::{CacheEvent, EngineOptions, ModelRef, Request, Session};

/// A router: the blocks that it believes to be cached, each with its parent and its tokens.
#[derive(Default)]
struct Router {
    blocks: HashMap<u64, (Option<u64>, Vec<u32>)>,
    removed: usize,
}

impl Router {
    fn follow(&mut self, news: Vec<CacheEvent>) {
        for event in news {
            match event {
                CacheEvent::Stored { hashes, parent, token_ids } => {
                    assert!(
                        parent.is_none_or(|parent| self.blocks.contains_key(&parent)),
                        "a child before its parent"
                    );
                    let mut parent = parent;
                    assert_eq!(token_ids.len(), 16 * hashes.len());
                    for (hash, tokens) in hashes.into_iter().zip(token_ids.chunks(16)) {
                        assert!(
                            self.blocks.insert(hash, (parent, tokens.to_vec())).is_none(),
                            "stored twice"
                        );
                        parent = Some(hash);
                    }
                }
                CacheEvent::Removed(hash) => {
                    assert!(self.blocks.remove(&hash).is_some(), "a block that was not stored is removed");
                    self.removed += 1;
                }
                CacheEvent::Cleared => self.blocks.clear(),
            }
        }
    }

    /// How many tokens of a prompt are cached.
    fn cached(&self, prompt: &[u32], salt: &pagedraft::block_manager::Salt) -> usize {
        let mut parent = BlockHash::ROOT;
        let mut blocks = 0;
        for tokens in prompt.chunks_exact(16) {
            parent = BlockHash::of(&parent, tokens, salt);
            if !self.blocks.contains_key(&parent.as_u64()) {
                break;
            }
            blocks += 1;
        }
        16 * blocks
    }
}

#[test]
fn a_router_that_follows_the_events_knows_what_the_next_prompt_hits() {
    let mut options = EngineOptions::new(ModelRef::Builtin("target".to_owned()));
    (options.num_blocks, options.enable_prefix_caching) = (Some(24), true);
    let mut session = Session::open(&options).unwrap();
    session.keep_kv_news();
    let salt = session.info().kv_salt;
    let mut router = Router::default();
    let mut hits = 0;
    for i in 0..40u32 {
        // Four families of prompts that begin alike; every fifth prompt is a tenant's, and reported to nobody.
        let len = 20 + (i * 37) % 90;
        let prompt: Vec<u32> = (0..len).map(|t| 7 + (t * 13 + (i % 4) * 101) % 800).collect();
        let mut request = Request::new(i.to_string(), prompt.clone(), 3 + i % 5);
        request.ignore_eos = true;
        request.cache_salt = (i % 5 == 4).then(|| "tenant".to_owned());
        if i == 25 {
            session.clear_prefix_cache();
            router.follow(session.kv_news());
            assert!(router.blocks.is_empty());
        }
        // The last token of a prompt is always computed.
        let expected = router.cached(&prompt[..prompt.len() - 1], &salt);
        let id = session.submit(request.clone()).unwrap()[0];
        while session.has_unfinished() {
            session.step().unwrap();
            router.follow(session.kv_news());
        }
        let output = session.take_output(id).unwrap();
        if request.cache_salt.is_none() {
            assert_eq!(output.num_cached_tokens as usize, expected, "prompt {i}");
            hits += usize::from(expected > 0);
        }
    }
    assert!(hits > 5 && router.removed > 10, "{hits} hits, {} blocks removed", router.removed);
}
