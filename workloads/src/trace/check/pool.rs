//! Compares the pool's counts, in blocks and in bytes, with the tables of the running requests.

use std::collections::BTreeMap;

use super::fault::Fault;
use super::life::Life;
use super::lives::Lives;
use super::row_group::RowGroup;
use super::rule::Rule;
use super::thinned::Thinned;
use crate::trace::{GroupCounts, PoolRecord, StepRecord};

impl Lives {
    /// Checks the arithmetic of the pool's counts.
    pub(super) fn check_pool(&mut self, step: &StepRecord) -> Result<(), Fault> {
        let pool = &step.pool;
        if pool.used.checked_add(pool.free) != Some(pool.num_blocks) {
            let what =
                format!("used {} + free {} is not num_blocks {}", pool.used, pool.free, pool.num_blocks);
            return Err(Fault::new(Rule::Pool, what));
        }
        if pool.cached > pool.free {
            return Err(Fault::new(Rule::Pool, format!("cached {} of free {}", pool.cached, pool.free)));
        }
        // If groups share the pool, the configuration counts in blocks of all layers of the target.
        let several = pool.bytes_total.is_some() || self.kv_groups.len() > 1;
        let size = match several {
            true => *self.num_smallest.get_or_insert(pool.num_blocks),
            false => *self.num_blocks.get_or_insert(pool.num_blocks),
        };
        if size != pool.num_blocks {
            return Err(Fault::new(Rule::Pool, format!("num_blocks was {size}, is {}", pool.num_blocks)));
        }
        if several { self.check_bytes(pool) } else { Ok(()) }
    }

    /// Checks the bytes, if several groups share the pool.
    fn check_bytes(&mut self, pool: &PoolRecord) -> Result<(), Fault> {
        let bad = |what: String| Err(Fault::new(Rule::Pool, what));
        let (Some(total), Some(used), Some(free), Some(cached), Some(by_group)) =
            (pool.bytes_total, pool.bytes_used, pool.bytes_free, pool.bytes_cached, &pool.by_group)
        else {
            return bad("several KV groups share the pool, and bytes_* or by_group is missing".to_owned());
        };
        if used.checked_add(free) != Some(total) {
            return bad(format!("bytes_used {used} + bytes_free {free} is not bytes_total {total}"));
        }
        if cached > free {
            return bad(format!("bytes_cached {cached} of bytes_free {free}"));
        }
        if let Some(fragmented) = pool.bytes_fragmented.filter(|&bytes| bytes > free) {
            return bad(format!("bytes_fragmented {fragmented} of bytes_free {free}"));
        }
        let known = *self.bytes_total.get_or_insert(total);
        if known != total {
            return bad(format!("bytes_total was {known}, is {total}"));
        }
        let sum = |count: fn(&GroupCounts) -> u64| {
            by_group
                .values()
                .try_fold(0u64, |sum, group| count(group).checked_mul(group.block_bytes)?.checked_add(sum))
        };
        for (name, is, should) in
            [("bytes_used", used, sum(|g| g.used)), ("bytes_cached", cached, sum(|g| g.cached))]
        {
            if should != Some(is) {
                let should = should.map_or("too much".to_owned(), |bytes| bytes.to_string());
                return bad(format!("{name} is {is}, the groups' blocks take {should}"));
            }
        }
        let Some(smallest) =
            by_group.values().map(|group| group.block_bytes).min().filter(|&bytes| bytes > 0)
        else {
            return bad("a block of a group takes 0 bytes".to_owned());
        };
        let blocks = (total / smallest, used.div_ceil(smallest), cached / smallest);
        if blocks != (pool.num_blocks, pool.used, pool.cached) {
            return bad(format!(
                "num_blocks {}, used {} and cached {}, and the bytes are {}, {} and {} blocks of {smallest}",
                pool.num_blocks, pool.used, pool.cached, blocks.0, blocks.1, blocks.2
            ));
        }
        let missing = self.kv_groups.iter().find(|group| !by_group.contains_key(&group.name));
        missing.map_or(Ok(()), |group| bad(format!("by_group does not have {:?}", group.name)))
    }

    /// Compares the pool with the tables of the requests that still run.
    pub(super) fn check_used(&self, step: &StepRecord) -> Result<(), Fault> {
        let pool = &step.pool;
        if self.live.is_empty() && pool.used > 0 {
            let what = format!("nobody runs, and {} blocks are used", pool.used);
            return Err(Fault::new(Rule::Pool, what));
        }
        let Some(by_group) = &pool.by_group else {
            // Further groups use blocks of the same pool, but nothing says how many.
            return match &self.row_groups[..] {
                [only] => {
                    within("used", pool.used, only.bounds(), !self.own_groups.is_empty())?;
                    is_cached("cached", pool.cached, only)
                }
                _ => Ok(()),
            };
        };
        for group in self.row_groups.iter().filter(|group| !group.pruned) {
            let Some(counts) = by_group.get(&group.name) else { continue };
            within(&format!("group {:?}: used", group.name), counts.used, group.bounds(), false)?;
            is_cached(&format!("group {:?}: cached", group.name), counts.cached, group)?;
        }
        // Of a prefix hit the rows do not show everything before they have reached its end.
        let hit_beyond = |group: &RowGroup| group.held.values().any(|held| held.hit_beyond);
        let on_its_way = |life: &Life| life.thinned.as_ref().is_some_and(Thinned::is_on_its_way);
        let open = self.caching
            && (self.row_groups.first().is_some_and(hit_beyond) || self.live.values().any(on_its_way));
        // A request has no more drafts in a draft model's KV than in the target's.
        let most = self
            .row_groups
            .first()
            .map_or(0, |group| group.held.values().map(|held| held.reserved).fold(0, u64::saturating_add));
        let others =
            by_group.iter().filter(|(name, _)| self.row_groups.iter().all(|group| group.name != **name));
        for (name, counts) in others {
            let record = step.groups.as_ref().and_then(|groups| groups.get(name));
            let rows = record.and_then(|record| record.plan_rows.as_deref()).unwrap_or_default();
            let least = self.own_groups.get(name).map_or(0, |group| group.least_used(step, rows));
            within(&format!("group {name:?}: used"), counts.used, (least, most), open)?;
        }
        self.check_apart(by_group)
    }

    /// Checks that no two blocks that are held lie in the same bytes of the arena. A block lies at its id
    /// times the bytes of a block of its group. A draft model's KV is left out, because it may have been
    /// dropped without being said.
    fn check_apart(&self, by_group: &BTreeMap<String, GroupCounts>) -> Result<(), Fault> {
        if self.row_groups.len() < 2 {
            return Ok(());
        }
        let mut held = Vec::new();
        for group in self.row_groups.iter().filter(|group| !group.pruned) {
            let Some(bytes) = by_group.get(&group.name).map(|counts| counts.block_bytes) else { continue };
            let start = |block: u32| u64::from(block).saturating_mul(bytes);
            held.extend(
                group
                    .blocks
                    .all_held()
                    .map(|id| (start(id), start(id).saturating_add(bytes), id, &group.name)),
            );
        }
        held.sort_unstable();
        let overlap = held.windows(2).find(|two| two[0].1 > two[1].0);
        overlap.map_or(Ok(()), |two| {
            let [(.., a, of_a), (.., b, of_b)] = [two[0], two[1]];
            let what = format!("block {a} of group {of_a:?} and block {b} of group {of_b:?} share bytes");
            Err(Fault::new(Rule::Pool, what))
        })
    }
}

/// Checks that as many blocks are cached as were published and are in no table. It is skipped while a
/// request has hit more than its rows have reached, because tables do not show those blocks.
fn is_cached(name: &str, cached: u64, group: &RowGroup) -> Result<(), Fault> {
    let should = group.blocks.cached();
    if cached == should || group.held.values().any(|held| held.hit_beyond) {
        return Ok(());
    }
    let what = format!("{name} is {cached}, and {should} blocks that nobody holds are published");
    Err(Fault::new(Rule::Pool, what))
}

/// Checks that the number of used blocks is within what the tables hold at least and at most. `open` means
/// that others may use more.
fn within(name: &str, used: u64, (least, most): (u64, u64), open: bool) -> Result<(), Fault> {
    if used >= least && (used <= most || open) {
        return Ok(());
    }
    let what = if least == most {
        format!("{name} is {used}, running requests' tables have {least} blocks")
    } else {
        format!("{name} is {used}, running requests have {least} blocks, and at most {most} with drafts")
    };
    Err(Fault::new(Rule::Pool, what))
}
