//! Makes a record of what is known about a choice.

use sha2::{Digest, Sha256};

use super::record::{DsaFetch, DsaPrefix, DsaRow, DsaScores, DsaSource, DsaTopkRecord, DsaTouched};

/// What a record is made of.
#[derive(Clone, Copy, Debug)]
pub struct DsaFacts<'a> {
    /// The request.
    pub request_id: &'a str,
    /// The layer.
    pub layer_id: u16,
    /// The layer whose indexer chose.
    pub selection_layer: u16,
    /// The step.
    pub step: u64,
    /// The position of the query token.
    pub step_idx: u32,
    /// The kind of row.
    pub row: DsaRow,
    /// Whether the token of a verify row belongs to the sequence.
    pub accepted: Option<bool>,
    /// The positions chosen.
    pub selected: &'a [u32],
    /// Figures of their scores, if they were scored.
    pub scores: Option<DsaScores>,
    /// Each score, if that is kept; empty otherwise.
    pub each_score: &'a [f32],
    /// Tokens a block.
    pub block_size: u32,
    /// The bytes of a token's latent in the layer.
    pub latent_bytes: u64,
    /// How many of the request's first blocks came from the prefix cache.
    pub cached_blocks: u32,
    /// See [`prefix_key`].
    pub prefix_key: &'a str,
}

/// Six decimals, so that a number that is read back is the one that was written.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// The least value that at least `percent` of 100 do not exceed.
fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// The share of the blocks of `keys` keys that a random choice of `chosen` of them touches, in expectation. A block of b keys is
/// missed with probability C(keys - b, chosen) / C(keys, chosen).
fn coverage_random(keys: u32, chosen: u32, block_size: u32) -> f64 {
    let missed = |size: u32| {
        let factor = |i: u32| f64::from((keys - i).saturating_sub(chosen)) / f64::from(keys - i);
        (0..size).map(factor).product::<f64>()
    };
    let (whole, rest) = (keys / block_size, keys % block_size);
    let mut touched = f64::from(whole) * (1.0 - missed(block_size.min(keys)));
    let mut blocks = whole;
    if rest > 0 {
        touched += 1.0 - missed(rest);
        blocks += 1;
    }
    touched / f64::from(blocks)
}

/// The key of a prompt's first `most` tokens: the first 16 hexadecimal digits of the SHA-256 of the tokens, each as 4 bytes,
/// little-endian.
#[must_use]
pub fn prefix_key(prompt: &[u32], most: u32) -> String {
    let mut hash = Sha256::new();
    for token in prompt.iter().take(most as usize) {
        hash.update(token.to_le_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl DsaTopkRecord {
    /// The record of these facts. `block` is the physical block at a place of the request's table.
    ///
    /// # Errors
    ///
    /// What is wrong with the choice: it is empty, does not ascend, lies behind the query token, or has no block.
    pub fn of(facts: DsaFacts<'_>, block: impl Fn(u32) -> Option<u32>) -> Result<Self, String> {
        let DsaFacts { selected, block_size, step_idx, .. } = facts;
        let (Some(&first), Some(&last)) = (selected.first(), selected.last()) else {
            return Err("no key is chosen".to_owned());
        };
        if let Some(pair) = selected.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(format!("selected_token_pos has {} before {}", pair[0], pair[1]));
        }
        if last > step_idx {
            return Err(format!("selected_token_pos has {last}, which is behind the query token {step_idx}"));
        }
        if block_size == 0 {
            return Err("blocks have no tokens".to_owned());
        }
        let mut logical: Vec<u32> = Vec::new();
        let mut counts: Vec<u32> = Vec::new();
        for position in selected {
            let place = position / block_size;
            match counts.last_mut() {
                Some(count) if logical.last() == Some(&place) => *count += 1,
                _ => {
                    logical.push(place);
                    counts.push(1);
                }
            }
        }
        let found = |&place: &u32| block(place).ok_or_else(|| format!("the table has no block {place}"));
        let mut physical = logical.iter().map(found).collect::<Result<Vec<_>, _>>()?;
        let cached = logical.iter().take_while(|&&place| place < facts.cached_blocks).count();
        let mut shared = physical[..cached].to_vec();
        shared.sort_unstable();
        physical.sort_unstable();
        counts.sort_unstable();
        let (chosen, unique) = (selected.len() as u32, logical.len() as u32);
        let keys = step_idx.saturating_add(1);
        Ok(Self {
            request_id: facts.request_id.to_owned(),
            layer_id: facts.layer_id,
            step: facts.step,
            step_idx,
            seq_len_current: keys,
            row: facts.row,
            accepted: facts.accepted,
            selected_token_pos: selected.to_vec(),
            unique_token_pos_count: chosen,
            offset_min: step_idx - last,
            // Distances ascend where positions descend.
            offset_p50: step_idx - selected[selected.len() / 2],
            offset_max: step_idx - first,
            scores_stats: facts.scores,
            scores_topk: (!facts.each_score.is_empty()).then(|| facts.each_score.to_vec()),
            block_size_tokens: block_size,
            unique_blocks: unique,
            coverage: rounded(f64::from(unique) / f64::from(keys.div_ceil(block_size))),
            coverage_random: rounded(coverage_random(keys, chosen, block_size)),
            tokens_per_touched_block: DsaTouched {
                mean: rounded(f64::from(chosen) / f64::from(unique)),
                p50: percentile(&counts, 50),
                p95: percentile(&counts, 95),
            },
            kv_fetch: DsaFetch {
                hbm: DsaSource {
                    hit_blocks: physical.clone(),
                    bytes_read: facts.latent_bytes.saturating_mul(u64::from(chosen)),
                    read_ops: u64::from(chosen),
                    latency_us: None,
                    batch_size: unique,
                },
                ..DsaFetch::default()
            },
            prefix: DsaPrefix {
                prefix_cache_hit: facts.cached_blocks > 0,
                prefix_cached_blocks: facts.cached_blocks,
                prefix_key: facts.prefix_key.to_owned(),
                intersection_ratio: rounded(cached as f64 / f64::from(unique)),
                intersection_blocks: shared,
            },
            selected_block_ids: physical,
            selected_logical_blocks: logical,
            selection_layer: facts.selection_layer,
        })
    }
}
