//! Where the KV of a record was read from, if there are tiers.

use super::record::{DsaFetch, DsaSource};

/// The blocks that a layer's choice had to fetch from one tier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DsaFetched {
    /// The physical blocks, ascending.
    pub blocks: Vec<u32>,
    /// The microseconds that it took.
    pub us: f64,
}

/// Where the blocks of a layer's choice were, if there are tiers. Those that were not fetched were in the pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DsaTiers {
    /// The microseconds that it took to find them.
    pub found_us: f64,
    /// What came from the tier below.
    pub local: DsaFetched,
    /// What came from the last tier.
    pub remote: DsaFetched,
}

impl DsaFetch {
    /// The same reads where some blocks had to be fetched first. A block has `block_bytes` bytes in the layer.
    #[must_use]
    pub fn from_tiers(mut self, tiers: &DsaTiers, block_bytes: u64) -> Self {
        let source = |fetched: &DsaFetched| {
            let count = fetched.blocks.len() as u32;
            DsaSource {
                hit_blocks: fetched.blocks.clone(),
                bytes_read: u64::from(count).saturating_mul(block_bytes),
                read_ops: u64::from(count),
                latency_us: Some(fetched.us),
                batch_size: count,
            }
        };
        let fetched = |block| tiers.local.blocks.contains(&block) || tiers.remote.blocks.contains(&block);
        self.hbm.hit_blocks.retain(|&block| !fetched(block));
        self.hbm.batch_size = self.hbm.hit_blocks.len() as u32;
        self.hbm.latency_us = Some(tiers.found_us);
        (self.local_pool, self.remote_pool) = (source(&tiers.local), source(&tiers.remote));
        self
    }

    /// What was fetched from which tier; `None` without tiers.
    #[must_use]
    pub fn tiers(&self) -> Option<DsaTiers> {
        let fetched = |source: &DsaSource| DsaFetched {
            blocks: source.hit_blocks.clone(),
            us: source.latency_us.unwrap_or(0.0),
        };
        let found_us = self.hbm.latency_us?;
        Some(DsaTiers { found_us, local: fetched(&self.local_pool), remote: fetched(&self.remote_pool) })
    }

    /// Whether these can be the reads that `whole` would be if all blocks were in the pool.
    ///
    /// # Errors
    ///
    /// How they differ.
    pub fn check(&self, whole: &Self, block_bytes: u64) -> Result<(), String> {
        let Some(tiers) = self.tiers() else {
            return if self == whole {
                Ok(())
            } else {
                Err(format!("kv_fetch is {self:?}, should be {whole:?}"))
            };
        };
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
        // How long it took cannot be proved.
        let forwards = [tiers.found_us, tiers.local.us, tiers.remote.us].iter().all(|&us| us >= 0.0);
        let proved = whole.clone().from_tiers(&tiers, block_bytes);
        match proved == *self && forwards {
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
        let local = DsaFetched { blocks: vec![2, 7], us: 3.5 };
        let remote = DsaFetched { blocks: vec![9], us: 30.0 };
        let tiers = DsaTiers { found_us: 0.25, local, remote };
        let fetch = whole.clone().from_tiers(&tiers, 640);
        assert_eq!(fetch.tiers(), Some(tiers));
        assert_eq!((&fetch.hbm.hit_blocks, fetch.hbm.batch_size), (&vec![5], 1));
        assert_eq!((&fetch.local_pool.hit_blocks, fetch.local_pool.latency_us), (&vec![2, 7], Some(3.5)));
        assert_eq!((fetch.local_pool.bytes_read, fetch.remote_pool.read_ops), (1280, 1));
        assert!(fetch.check(&whole, 640).is_ok());
        for change in [
            |fetch: &mut DsaFetch| fetch.hbm.hit_blocks.push(7),
            |fetch: &mut DsaFetch| fetch.remote_pool.hit_blocks.clear(),
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
