//! The block tables of what runs, for those who look on.

use pagedraft_scheduler::KvView;
use serde::Serialize;

use super::Session;

/// Where one sample is, and which blocks it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LiveTable {
    /// The caller's name for the request.
    pub request_id: String,
    /// The index of the sample, from 0.
    pub sample: u32,
    /// The number of prompt tokens.
    pub prompt_tokens: usize,
    /// The number of tokens that were generated.
    pub generated_tokens: usize,
    /// The number of prompt tokens whose KV was found in the prefix cache.
    pub cached_tokens: u32,
    /// For each KV group the ids of its blocks in order, -1 where one was given back. All are empty while the sample waits.
    pub blocks: Vec<Vec<i32>>,
}

impl Session {
    /// The block tables of all samples that have not ended, in the order in which they came.
    #[must_use]
    pub fn live_tables(&self) -> Vec<LiveTable> {
        let groups = self.scheduler.blocks().groups();
        let mut live: Vec<_> = self.by_key.values().copied().collect();
        live.sort_unstable();
        let table = |id: super::RequestId| {
            let sequence = self.sequences.get(id.0)?;
            let (key, output) = (sequence.key(), sequence.output());
            let info = self.scheduler.request(key)?;
            let blocks = |group: usize| {
                let group = pagedraft_block_manager::GroupId(group as u8);
                self.scheduler.block_table(key, group).iter().map(|block| block.0 as i32).collect()
            };
            Some(LiveTable {
                request_id: output.request_id.clone(),
                sample: output.sample,
                prompt_tokens: output.prompt_token_ids.len(),
                generated_tokens: output.token_ids.len(),
                cached_tokens: info.num_cached_tokens,
                blocks: (0..groups.len()).map(blocks).collect(),
            })
        };
        live.into_iter().filter_map(table).collect()
    }
}
