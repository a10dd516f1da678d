//! Where the KV of a record was read from, if there are tiers.

use super::record::{DsaFetch, DsaSource};

impl DsaFetch {
    /// The same reads where some blocks had to be fetched first: from the tier below, and from the last one, each with the
    /// microseconds that it took. A block has `block_bytes` bytes in the layer. To find the others took `found_us`.
    #[must_use]
    pub fn from_tiers(
        mut self,
        local: &[(u32, f64)],
        remote: &[(u32, f64)],
        block_bytes: u64,
        found_us: f64,
    ) -> Self {
        let source = |fetched: &[(u32, f64)]| {
            let mut hit_blocks: Vec<u32> = fetched.iter().map(|&(block, _)| block).collect();
            hit_blocks.sort_unstable();
            let count = hit_blocks.len() as u32;
            DsaSource {
                hit_blocks,
                bytes_read: u64::from(count).saturating_mul(block_bytes),
                read_ops: u64::from(count),
                latency_us: Some(fetched.iter().map(|(_, us)| us).sum()),
                batch_size: count,
            }
        };
        let fetched = |block: u32| local.iter().chain(remote).any(|&(other, _)| other == block);
        self.hbm.hit_blocks.retain(|&block| !fetched(block));
        self.hbm.batch_size = self.hbm.hit_blocks.len() as u32;
        self.hbm.latency_us = Some(found_us);
        (self.local_pool, self.remote_pool) = (source(local), source(remote));
        self
    }

    /// Whether these can be the reads that `whole` would be if all blocks were in the pool.
    ///
    /// # Errors
    ///
    /// How they differ.
    pub fn check(&self, whole: &Self, block_bytes: u64) -> Result<(), String> {
        let mut blocks: Vec<u32> = Vec::new();
        for source in [&self.hbm, &self.local_pool, &self.remote_pool] {
            if !source.hit_blocks.is_sorted_by(|a, b| a < b) {
                return Err("kv_fetch has blocks that do not ascend".to_owned());
            }
            blocks.extend(&source.hit_blocks);
        }
        blocks.sort_unstable();
        if blocks != whole.hbm.hit_blocks {
            let all = &whole.hbm.hit_blocks;
            return Err(format!("kv_fetch has the blocks {blocks:?}, and the choice lies in {all:?}"));
        }
        let us = |source: &DsaSource| source.latency_us.unwrap_or(0.0);
        let pairs = |source: &DsaSource| -> Vec<(u32, f64)> {
            let first = source.hit_blocks.iter().take(1).map(|&block| (block, us(source)));
            first.chain(source.hit_blocks.iter().skip(1).map(|&block| (block, 0.0))).collect()
        };
        let (local, remote) = (pairs(&self.local_pool), pairs(&self.remote_pool));
        let proved = whole.clone().from_tiers(&local, &remote, block_bytes, us(&self.hbm));
        // No time passes where nothing is fetched; how long the rest took cannot be proved.
        match proved == *self && [&self.hbm, &self.local_pool, &self.remote_pool].iter().all(|s| us(s) >= 0.0)
        {
            true => Ok(()),
            false => Err(format!("kv_fetch is {self:?}, and its blocks give {proved:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_from_tiers_are_those_of_the_pool_and_others_are_found_out() {
        let hbm = DsaSource {
            hit_blocks: vec![2, 5, 7, 9],
            bytes_read: 800,
            read_ops: 8,
            latency_us: None,
            batch_size: 4,
        };
        let whole = DsaFetch { hbm, ..DsaFetch::default() };
        let fetch = whole.clone().from_tiers(&[(7, 1.5), (2, 2.0)], &[(9, 30.0)], 640, 0.25);
        assert_eq!((&fetch.hbm.hit_blocks, fetch.hbm.batch_size), (&vec![5], 1));
        assert_eq!((&fetch.local_pool.hit_blocks, fetch.local_pool.latency_us), (&vec![2, 7], Some(3.5)));
        assert_eq!((fetch.local_pool.bytes_read, fetch.remote_pool.read_ops), (1280, 1));
        assert!(fetch.check(&whole, 640).is_ok());
        for change in [
            |fetch: &mut DsaFetch| fetch.hbm.hit_blocks.push(7),
            |fetch: &mut DsaFetch| drop(fetch.remote_pool.hit_blocks.pop()),
            |fetch: &mut DsaFetch| fetch.local_pool.bytes_read += 1,
            |fetch: &mut DsaFetch| fetch.local_pool.hit_blocks.reverse(),
            |fetch: &mut DsaFetch| fetch.hbm.bytes_read -= 1,
        ] {
            let mut wrong = fetch.clone();
            change(&mut wrong);
            assert!(wrong.check(&whole, 640).is_err(), "{wrong:?}");
        }
    }
}
