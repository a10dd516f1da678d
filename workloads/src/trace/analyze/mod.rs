//! `pagedraft trace analyze dsa`: which keys sparse attention chooses, by every definition that is in use.
//!
//! K(t) is the set of keys that a layer chose for the token at position t of a request, as positions. |K| is the number of its members. Only
//! layers with an indexer count, because the others have no choice of their own, and only tokens that belong to their sequence, except
//! in `verify_union`, which has rejected drafts too.
//!
//! | figure | definition | unit |
//! |---|---|---|
//! | `steps.raw` | \|K(t-1) n K(t)\| / k, k = `index_topk` | share, 0 to 1 |
//! | `steps.of_current` | \|K(t-1) n K(t)\| / \|K(t)\| | share |
//! | `steps.shifted` | \|(K(t-1) + 1) n K(t)\| / \|K(t)\|: what kept its distance from the query | share |
//! | `steps.jaccard` | \|K(t-1) n K(t)\| / \|K(t-1) u K(t)\| | share |
//! | `adjacent_layers` | the same two of the choices of two layers with an indexer, one after the other, for one token | share |
//! | `coverage` | blocks with a chosen key / blocks with any key of the request | share |
//! | `coverage_random` | its expectation for a random choice of as many keys | share |
//! | `sink_share`, `recent_share` | chosen keys among the first 4 or last 64 tokens / chosen keys | share |
//! | `prefix.intersection_ratio` | chosen blocks that came from the prefix cache / chosen blocks, where any did | share |
//! | `verify_union.ratio` | \|union of K over the rows of a verify step\| / mean \|K\| of its rows | 1 to the number of rows |
//! | `token_lru` | misses of a cache of `cache_share` times the keys seen, in tokens | share of keys read |
//! | `reuse_distances` | other blocks read between two reads of a block | blocks |
//! | `misses_by_size` | misses of a cache of so many blocks, LRU and Belady's | share of blocks read |
//!
//! Means over pairs, records or steps are plain means: every pair counts the same. Caches are one for each request and layer, start
//! empty, and see the keys (or blocks) of a token in ascending order, one token after the other; a first read is a miss. A read misses in an
//! LRU cache of n entries if n or more others were read since the last read of the same.
//!
//! Memory: 4 bytes for each block of each record, because Belady's rule has to know what comes.

mod belady;
mod figures;
mod lru;
mod tally;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

pub use figures::{
    ContextCoverage, DsaAnalysis, DsaAnalysisOptions, DsaFigures, LayerOverlap, PrefixFigures,
    ReuseDistances, SizeMisses, StepOverlap, TokenLru, VerifyUnion,
};

use self::lru::LruStack;
use self::tally::{Meeting, Tally};
use super::{DsaRecords, DsaRow, DsaTopkRecord, DsaTraceConfig};
use crate::Error;

/// What a layer chose for a request so far.
#[derive(Default)]
struct Stream {
    last: Option<(u32, Vec<u32>)>,
    tokens: LruStack,
    block_stack: LruStack,
    /// Every block read.
    blocks: Vec<u32>,
    verify: Option<Verify>,
}

/// The rows of a verify step.
struct Verify {
    step: u64,
    rows: u64,
    keys: u64,
    union: BTreeSet<u32>,
}

/// Takes in records one by one.
struct Analyzer<'a> {
    options: DsaAnalysisOptions,
    config: &'a DsaTraceConfig,
    all: Tally,
    layers: BTreeMap<u16, Tally>,
    requests: HashMap<String, BTreeMap<u16, Stream>>,
    /// The record before, of another layer of the same token perhaps.
    before: Option<DsaTopkRecord>,
    block_size: u32,
}

/// Analyses the records of the trace in `directory`; `None` if it has none.
///
/// # Errors
///
/// A file of the trace can't be read, or is damaged.
pub fn analyze_dsa(directory: &Path, options: DsaAnalysisOptions) -> Result<Option<DsaAnalysis>, Error> {
    let Some(mut records) = DsaRecords::open(directory)? else { return Ok(None) };
    let config = DsaTraceConfig::of_trace(directory)?;
    let mut analyzer = Analyzer::new(&config, options);
    while options.most_records.is_none_or(|most| records.number() < most)
        && let Some(record) = records.next_record()?
    {
        analyzer.add(record);
    }
    Ok(Some(analyzer.finish(records.is_cut())))
}

impl<'a> Analyzer<'a> {
    fn new(config: &'a DsaTraceConfig, options: DsaAnalysisOptions) -> Self {
        let layers = config.indexer_layers.iter().map(|&layer| (layer, Tally::of(Some(layer)))).collect();
        let (all, requests) = (Tally::of(None), HashMap::new());
        Self { options, config, all, layers, requests, before: None, block_size: 0 }
    }

    fn add(&mut self, record: DsaTopkRecord) {
        let Some(layer) = self.layers.get_mut(&record.layer_id) else { return };
        let mut both = [layer, &mut self.all];
        self.block_size = record.block_size_tokens;
        let streams = match self.requests.get_mut(&record.request_id) {
            Some(streams) => streams,
            None => self.requests.entry(record.request_id.clone()).or_default(),
        };
        let stream = streams.entry(record.layer_id).or_default();
        let selected = &record.selected_token_pos;
        if record.row == DsaRow::Verify {
            if stream.verify.as_ref().is_some_and(|verify| verify.step != record.step) {
                end_verify(&mut stream.verify, &mut both);
            }
            let begin = || Verify { step: record.step, rows: 0, keys: 0, union: BTreeSet::new() };
            let verify = stream.verify.get_or_insert_with(begin);
            verify.rows += 1;
            verify.keys += selected.len() as u64;
            verify.union.extend(selected);
        }
        if record.accepted == Some(false) {
            return;
        }
        for tally in &mut both {
            tally.record(&record, (self.options.sink_tokens, self.options.recent_tokens));
        }
        if let Some((_, last)) =
            stream.last.as_ref().filter(|(at, _)| at.checked_add(1) == Some(record.step_idx))
        {
            let (same, shifted) = (Meeting::of(last, selected, 0), Meeting::of(last, selected, 1));
            for tally in &mut both {
                tally.raw.add(same.both / f64::from(self.config.index_topk.max(1)));
                tally.of_current.add(same.both / same.second);
                tally.shifted.add(shifted.both / shifted.second);
                tally.jaccard.add(same.both / same.either);
            }
        }
        let same_token = |before: &&DsaTopkRecord| {
            (&before.request_id, before.step, before.step_idx)
                == (&record.request_id, record.step, record.step_idx)
        };
        if let Some(before) = self.before.as_ref().filter(same_token) {
            let meeting = Meeting::of(&before.selected_token_pos, selected, 0);
            for tally in &mut both {
                tally.layer_of_current.add(meeting.both / meeting.second);
                tally.layer_jaccard.add(meeting.both / meeting.either);
            }
        }
        let room = (self.options.cache_share * f64::from(record.seq_len_current)).ceil() as u64;
        for &position in selected {
            let distance = stream.tokens.touch(position);
            for tally in &mut both {
                tally.tokens.accesses += 1;
                tally.tokens.misses += u64::from(distance.is_none_or(|distance| distance >= room));
                tally.tokens.cold += u64::from(distance.is_none());
            }
        }
        for &block in &record.selected_logical_blocks {
            let distance = stream.block_stack.touch(block);
            both.iter_mut().for_each(|tally| tally.block(distance));
        }
        stream.blocks.extend_from_slice(&record.selected_logical_blocks);
        stream.last = Some((record.step_idx, selected.clone()));
        self.before = Some(record);
    }

    fn finish(mut self, cut: bool) -> DsaAnalysis {
        let streams = || self.requests.values().flat_map(BTreeMap::values);
        let most = streams().flat_map(|stream| &stream.blocks).max().map_or(0, |&block| block + 1);
        // The greatest size holds everything.
        let logs = 0..=most.max(1).next_power_of_two().ilog2();
        for (layer, stream) in self.requests.values_mut().flatten() {
            let Some(tally) = self.layers.get_mut(layer) else { continue };
            let mut both = [tally, &mut self.all];
            end_verify(&mut stream.verify, &mut both);
            for log in logs.clone() {
                let misses = belady::misses(&stream.blocks, 1 << log);
                both.iter_mut().for_each(|tally| *tally.belady.entry(log).or_default() += misses);
            }
        }
        DsaAnalysis {
            options: self.options,
            index_topk: self.config.index_topk,
            block_size: self.block_size,
            requests: self.requests.len() as u64,
            cut,
            all: self.all.figures(),
            layers: self.layers.values().map(Tally::figures).collect(),
        }
    }
}

fn end_verify(verify: &mut Option<Verify>, both: &mut [&mut Tally; 2]) {
    let Some(verify) = verify.take() else { return };
    for tally in both {
        tally.verify_rows.add(verify.rows as f64);
        tally.verify_keys.add(verify.keys as f64 / verify.rows as f64);
        tally.verify_union.add(verify.union.len() as f64);
    }
}
