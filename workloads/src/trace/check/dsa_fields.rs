//! What the fields of a record must be, written out slowly from their definitions.
//!
//! Nothing here is shared with what writes records, so that a mistake of the one is found by the other. Where the writer counts runs of
//! neighbours and takes ranks, this counts every key by its block and searches for the value that a definition describes.

use std::collections::{BTreeMap, BTreeSet};

use crate::trace::{DsaFetch, DsaRow, DsaScores, DsaSource, DsaTopkRecord, DsaTraceConfig};

/// What the steps say about a record.
pub(super) struct Stated<'a> {
    pub(super) request_id: &'a str,
    pub(super) layer: u16,
    pub(super) selection_layer: u16,
    pub(super) step: u64,
    pub(super) position: u32,
    pub(super) row: DsaRow,
    pub(super) accepted: Option<bool>,
    pub(super) table: &'a [i64],
    pub(super) block_size: u32,
    pub(super) cached_blocks: u32,
    pub(super) prefix_key: &'a str,
}

/// Fails with the name of the first field that is not what it should be.
fn same<T: PartialEq + std::fmt::Debug>(name: &str, is: &T, should: &T) -> Result<(), String> {
    match is == should {
        true => Ok(()),
        false => Err(format!("{name} is {is:?}, the step gives {should:?}")),
    }
}

/// A figure that is rounded to 6 decimals.
fn near(name: &str, is: f64, should: f64) -> Result<(), String> {
    match (is - should).abs() <= 0.5e-6 + 1e-9 {
        true => Ok(()),
        false => Err(format!("{name} is {is}, the step gives {should:.6}")),
    }
}

/// The least of `values` that at least `percent` of 100 of them do not exceed.
fn percentile(values: &[u32], percent: usize) -> u32 {
    let enough = |&&value: &&u32| {
        let upto = values.iter().filter(|&&other| other <= value).count();
        upto * 100 >= percent * values.len()
    };
    values.iter().filter(enough).min().copied().unwrap_or(0)
}

/// The share of blocks that a random choice of `chosen` of `keys` keys touches: the mean over all blocks of one minus the
/// probability that every key is drawn from outside the block.
fn coverage_random(keys: u32, chosen: u32, block_size: u32) -> f64 {
    let missed = |size: u32| {
        (0..chosen).fold(1.0, |left, drawn| {
            let outside = f64::from((keys - size).saturating_sub(drawn));
            left * outside / f64::from(keys - drawn)
        })
    };
    let blocks = keys.div_ceil(block_size);
    let last = keys - (blocks - 1) * block_size;
    let whole = if blocks > 1 { f64::from(blocks - 1) * (1.0 - missed(block_size)) } else { 0.0 };
    (whole + 1.0 - missed(last)) / f64::from(blocks)
}

/// Checks every field of a record but `selected_token_pos` and the scores, which steps do not tell: those must be possible.
///
/// # Errors
///
/// The first field that is wrong: what it is, and what it should be.
pub(super) fn check(
    record: &DsaTopkRecord,
    config: &DsaTraceConfig,
    stated: &Stated<'_>,
) -> Result<(), String> {
    let selected = &record.selected_token_pos;
    let keys = stated.position + 1;
    let distinct: BTreeSet<u32> = selected.iter().copied().collect();
    if !distinct.iter().eq(selected) {
        return Err("selected_token_pos does not ascend".to_owned());
    }
    if let Some(beyond) = distinct.range(keys..).next() {
        return Err(format!(
            "selected_token_pos has {beyond}, which is behind the query token {}",
            stated.position
        ));
    }
    same("the number of keys in selected_token_pos", &(distinct.len() as u32), &config.index_topk.min(keys))?;
    same("request_id", &record.request_id.as_str(), &stated.request_id)?;
    same("layer_id", &record.layer_id, &stated.layer)?;
    same("selection_layer", &record.selection_layer, &stated.selection_layer)?;
    same("step", &record.step, &stated.step)?;
    same("step_idx", &record.step_idx, &stated.position)?;
    same("seq_len_current", &record.seq_len_current, &keys)?;
    same("row", &record.row, &stated.row)?;
    same("accepted", &record.accepted, &stated.accepted)?;
    same("unique_token_pos_count", &record.unique_token_pos_count, &(distinct.len() as u32))?;
    let offsets: Vec<u32> = selected.iter().map(|key| stated.position - key).collect();
    same("offset_min", &record.offset_min, &percentile(&offsets, 0))?;
    same("offset_p50", &record.offset_p50, &percentile(&offsets, 50))?;
    same("offset_max", &record.offset_max, &percentile(&offsets, 100))?;

    let mut places: BTreeMap<u32, u32> = BTreeMap::new();
    for key in selected {
        *places.entry(key / stated.block_size).or_default() += 1;
    }
    let mut physical = BTreeMap::new();
    for &place in places.keys() {
        let block = stated.table.get(place as usize).and_then(|&block| u32::try_from(block).ok());
        let block = block.ok_or_else(|| format!("the table of the step has no block {place}"))?;
        physical.insert(block, place);
    }
    let (blocks, logical): (Vec<u32>, Vec<u32>) =
        (physical.keys().copied().collect(), places.keys().copied().collect());
    same("block_size_tokens", &record.block_size_tokens, &stated.block_size)?;
    same("selected_block_ids", &record.selected_block_ids, &blocks)?;
    same("selected_logical_blocks", &record.selected_logical_blocks, &logical)?;
    let unique = places.len() as u32;
    same("unique_blocks", &record.unique_blocks, &unique)?;
    near("coverage", record.coverage, f64::from(unique) / f64::from(keys.div_ceil(stated.block_size)))?;
    let random = coverage_random(keys, distinct.len() as u32, stated.block_size);
    near("coverage_random", record.coverage_random, random)?;
    let counts: Vec<u32> = places.values().copied().collect();
    let touched = record.tokens_per_touched_block;
    near("tokens_per_touched_block.mean", touched.mean, selected.len() as f64 / f64::from(unique))?;
    same("tokens_per_touched_block.p50", &touched.p50, &percentile(&counts, 50))?;
    same("tokens_per_touched_block.p95", &touched.p95, &percentile(&counts, 95))?;

    let read = selected.len() as u64;
    let hbm = DsaSource {
        hit_blocks: blocks,
        bytes_read: read * config.latent_bytes,
        read_ops: read,
        latency_us: None,
        batch_size: unique,
    };
    let whole = DsaFetch { hbm, ..DsaFetch::default() };
    record.kv_fetch.check(&whole, config.latent_bytes.saturating_mul(u64::from(stated.block_size)))?;

    let prefix = &record.prefix;
    let shared: Vec<u32> =
        physical.iter().filter(|at| *at.1 < stated.cached_blocks).map(|at| *at.0).collect();
    same("prefix.prefix_cache_hit", &prefix.prefix_cache_hit, &(stated.cached_blocks > 0))?;
    same("prefix.prefix_cached_blocks", &prefix.prefix_cached_blocks, &stated.cached_blocks)?;
    same("prefix.prefix_key", &prefix.prefix_key.as_str(), &stated.prefix_key)?;
    near("prefix.intersection_ratio", prefix.intersection_ratio, shared.len() as f64 / f64::from(unique))?;
    same("prefix.intersection_blocks", &prefix.intersection_blocks, &shared)?;
    check_scores(record, config)
}

/// Checks what can be known about scores: that each is there where it should be, and that their figures fit. They may be missing only
/// because one was not finite.
fn check_scores(record: &DsaTopkRecord, config: &DsaTraceConfig) -> Result<(), String> {
    let (stats, each) = (record.scores_stats, record.scores_topk.as_deref());
    if each.is_some() != (config.store_scores && stats.is_some()) {
        return Err("scores_topk is there where it should not be, or missing".to_owned());
    }
    let Some(DsaScores { min, mean, max }) = stats else { return Ok(()) };
    if !(min <= mean && mean <= max) {
        return Err(format!("scores_stats has least {min}, mean {mean} and greatest {max}"));
    }
    let Some(each) = each else { return Ok(()) };
    same("the number of scores in scores_topk", &each.len(), &record.selected_token_pos.len())?;
    let mut sorted = each.to_vec();
    sorted.sort_by(f32::total_cmp);
    let sum: f64 = each.iter().copied().map(f64::from).sum();
    same("scores_stats.min", &Some(&min), &sorted.first())?;
    same("scores_stats.max", &Some(&max), &sorted.last())?;
    same("scores_stats.mean", &mean, &((sum / each.len() as f64) as f32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::trace::{DsaFetched, DsaRows, DsaSelection, DsaTiers, DsaToken};

    #[test]
    fn what_the_writer_derives_is_what_the_checker_derives_and_no_other_field_passes() {
        let config = DsaTraceConfig {
            rows: DsaRows::All,
            sample_rate: 1.0,
            prefix_key_tokens: 8,
            store_scores: true,
            index_topk: 9,
            layers: 2,
            indexer_layers: vec![0],
            latent_bytes: 36,
        };
        let mut state = 20_261_130u64;
        println!("seed {state}");
        let mut random = |below: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32 % below
        };
        for _ in 0..2000 {
            let position = random(200);
            let mut positions = BTreeSet::new();
            while positions.len() < config.index_topk.min(position + 1) as usize {
                positions.insert(random(position + 1));
            }
            let each_score: Vec<f32> = positions.iter().map(|_| random(1000) as f32 / 7.0 - 50.0).collect();
            // A score that is not finite leaves no figures.
            let scored = random(8) > 0;
            let selection = DsaSelection {
                positions: positions.into_iter().collect(),
                scores: DsaScores::of(&each_score).filter(|_| scored),
                each_score: if scored { each_score } else { Vec::new() },
            };
            let mut table: Vec<u32> = (0..200).collect();
            table.iter_mut().for_each(|block| *block = *block * 7 % 211);
            // In half of the cases some blocks come from other tiers.
            let chosen: BTreeSet<u32> =
                selection.positions.iter().map(|position| table[*position as usize / 4]).collect();
            let fetched = |rest: usize| DsaFetched {
                blocks: chosen.iter().copied().skip(rest).step_by(3).collect(),
                us: 1.5,
            };
            let tiers = DsaTiers { found_us: 0.5, local: fetched(0), remote: fetched(1) };
            let tiers = if random(2) == 0 { Vec::new() } else { vec![tiers; 2] };
            let token = DsaToken {
                request_id: "a".to_owned(),
                step: 5,
                step_idx: position,
                row: DsaRow::Verify,
                accepted: Some(false),
                cached_blocks: random(4),
                prefix_key: "k".to_owned(),
                table: table.clone(),
                selections: vec![selection],
                tiers,
            };
            let record = token.record(&config, 4, 1).unwrap().unwrap();
            let table: Vec<i64> = table.iter().map(|&block| i64::from(block)).collect();
            let stated = Stated {
                request_id: "a",
                layer: 1,
                selection_layer: 0,
                step: 5,
                position,
                row: DsaRow::Verify,
                accepted: Some(false),
                table: &table,
                block_size: 4,
                cached_blocks: token.cached_blocks,
                prefix_key: "k",
            };
            assert_eq!(check(&record, &config, &stated), Ok(()));
            let changes: [fn(&mut DsaTopkRecord); 9] = [
                |r| r.offset_p50 += 1,
                |r| r.coverage += 1e-6,
                |r| r.coverage_random -= 1e-6,
                |r| r.tokens_per_touched_block.p95 += 1,
                |r| r.tokens_per_touched_block.mean += 1e-6,
                |r| r.kv_fetch.hbm.bytes_read += 1,
                |r| r.prefix.intersection_ratio += 1e-6,
                |r| r.selected_block_ids[0] += 1,
                |r| r.selected_token_pos.reverse(),
            ];
            for (number, change) in changes.iter().enumerate() {
                let mut changed = record.clone();
                change(&mut changed);
                let found = check(&changed, &config, &stated);
                assert!(found.is_err() || changed == record, "change {number} of {record:?}");
            }
        }
    }
}
