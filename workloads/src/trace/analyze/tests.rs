use super::*;
use crate::trace::{DsaRows, DsaSelection, DsaToken};

fn config(k: u32, layers: u16) -> DsaTraceConfig {
    DsaTraceConfig {
        rows: DsaRows::All,
        sample_rate: 1.0,
        prefix_key_tokens: 8,
        store_scores: false,
        index_topk: k,
        layers,
        indexer_layers: (0..layers).collect(),
        latent_bytes: 4,
    }
}

/// A record over blocks of 2.
fn record(config: &DsaTraceConfig, layer: u16, position: u32, selected: &[u32]) -> DsaTopkRecord {
    let selection = DsaSelection { positions: selected.to_vec(), ..DsaSelection::default() };
    let token = DsaToken {
        request_id: "a".to_owned(),
        step: u64::from(position),
        step_idx: position,
        cached_blocks: 1,
        table: (0..50).collect(),
        selections: vec![selection; usize::from(config.layers)],
        ..DsaToken::default()
    };
    token.record(config, 2, layer).unwrap().unwrap()
}

fn analyze(config: &DsaTraceConfig, records: Vec<DsaTopkRecord>) -> DsaAnalysis {
    let options =
        DsaAnalysisOptions { cache_share: 0.5, sink_tokens: 1, recent_tokens: 2, most_records: None };
    let mut analyzer = Analyzer::new(config, options);
    records.into_iter().for_each(|record| analyzer.add(record));
    analyzer.finish(false)
}

#[test]
fn figures_are_those_that_a_hand_computes() {
    let config = config(4, 2);
    let found = analyze(
        &config,
        vec![
            record(&config, 0, 7, &[0, 2, 5, 7]),
            record(&config, 1, 7, &[0, 1, 2, 3]),
            record(&config, 0, 8, &[0, 3, 5, 8]),
            record(&config, 1, 8, &[1, 3, 4, 8]),
        ],
    );
    let of = &found.layers[0];
    // K(7) and K(8) share 0 and 5; one further on, K(7) is 1, 3, 6, 8, and shares 3 and 8. Together they have 6 keys.
    assert_eq!((of.steps.pairs, of.steps.raw, of.steps.of_current), (1, Some(0.5), Some(0.5)));
    assert_eq!((of.steps.shifted, of.steps.jaccard), (Some(0.5), Some(2.0 / 6.0)));
    assert_eq!(of.adjacent_layers.pairs, 0);
    // At 7 the layers share 0 and 2 of 6, at 8 they share 3 and 8 of 6.
    let adjacent = found.layers[1].adjacent_layers;
    assert_eq!((adjacent.pairs, adjacent.of_current, adjacent.jaccard), (2, Some(0.5), Some(2.0 / 6.0)));
    // Of 8 keys, key 0 is chosen twice; 7 of 6 and 7, and 8 of 7 and 8 are recent.
    assert_eq!((of.sink_share, of.recent_share), (0.25, 0.25));
    // Blocks 0, 1, 2, 3 of 4; then 0, 1, 2, 4 of 5.
    assert_eq!(of.coverage, (1.0 + 0.8) / 2.0);
    assert_eq!(of.coverage_by_context.len(), 1);
    assert_eq!((of.coverage_by_context[0].from_keys, of.coverage_by_context[0].records), (8, 2));
    // Block 0 alone is cached.
    assert_eq!((of.prefix.hit_records, of.prefix.intersection_ratio), (2, Some(0.25)));
    // Tokens: 0 2 5 7 are new, then 0 has 3 others since, 3 is new, 5 has 7 0 3 since, 8 is new. The cache has 5 tokens (half of 9).
    let tokens = of.token_lru;
    assert_eq!((tokens.accesses, tokens.misses, tokens.cold), (8, 6, 6));
    // Blocks: 0 1 2 3 are new; 0, 1 and 2 have 3 others since; 4 is new.
    let reuse = &of.reuse_distances;
    assert_eq!((reuse.accesses, reuse.cold, reuse.below.last()), (8, 5, Some(&(4, 3))));
    // With 2 blocks LRU misses all. Belady's rule drops 3 for 0 when 3 is used no more, and so on: by hand, 0 1 2 3 0 1 2 4 with 2 blocks
    // has the misses 0 1 2 3 . 1 2 4, because 0 is kept, with 4 blocks 0 1 2 3 . . . 4.
    let sizes: Vec<(u64, f64, f64)> = of.misses_by_size.iter().map(|m| (m.blocks, m.lru, m.belady)).collect();
    assert_eq!(sizes[1], (2, 1.0, 7.0 / 8.0));
    assert_eq!(sizes[2], (4, 5.0 / 8.0, 5.0 / 8.0));
    assert_eq!(found.all.records, 4);
}

#[test]
fn the_rows_of_a_verify_step_are_united_and_rejected_drafts_count_there_alone() {
    let config = config(2, 1);
    let row = |position, selected: &[u32], accepted| {
        let mut record = record(&config, 0, position, selected);
        (record.step, record.row, record.accepted) = (9, DsaRow::Verify, Some(accepted));
        record
    };
    let found = analyze(&config, vec![row(5, &[0, 5], true), row(6, &[0, 6], true), row(7, &[0, 5], false)]);
    let union = found.all.verify_union;
    assert_eq!((union.steps, union.rows, union.keys_per_row), (1, Some(3.0), Some(2.0)));
    assert_eq!((union.union_keys, union.ratio), (Some(3.0), Some(1.5)));
    assert_eq!((found.all.records, found.all.steps.pairs), (2, 1));
}

fn random(state: &mut u64, below: u32) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*state >> 33) % u64::from(below)) as u32
}

/// Misses of a cache that is a list, the next to be dropped first.
fn list_misses(uses: &[u32], size: usize, belady: bool) -> u64 {
    let mut held: Vec<u32> = Vec::new();
    let mut misses = 0;
    for (at, id) in uses.iter().enumerate() {
        let there = held.iter().position(|own| own == id);
        if let Some(there) = there {
            held.remove(there);
        } else {
            misses += 1;
            if held.len() >= size {
                let next = |own: &u32| uses[at..].iter().position(|other| other == own).unwrap_or(usize::MAX);
                let dropped = match belady {
                    true => (0..held.len()).max_by_key(|&i| next(&held[i])).unwrap(),
                    false => 0,
                };
                held.remove(dropped);
            }
        }
        held.push(*id);
    }
    misses
}

#[test]
fn distances_and_misses_are_those_of_slow_twins_on_random_uses() {
    let mut state = 20_261_131;
    println!("seed {state}");
    for case in 0..60 {
        let ids = 1 + random(&mut state, 60);
        // Some runs are long enough for the stack to give its entries new times.
        let uses: Vec<u32> = (0..if case == 0 { 3000 } else { 1 + random(&mut state, 300) })
            .map(|_| random(&mut state, ids))
            .collect();
        let mut stack = LruStack::default();
        let distances: Vec<Option<u64>> = uses.iter().map(|&id| stack.touch(id)).collect();
        for (at, &distance) in distances.iter().enumerate() {
            let last = uses[..at].iter().rposition(|&other| other == uses[at]);
            let between = last.map(|last| uses[last + 1..at].iter().collect::<BTreeSet<_>>().len() as u64);
            assert_eq!(distance, between, "case {case}, use {at}");
        }
        for size in [1, 2, 3, 7, 20, 64] {
            let lru = distances.iter().filter(|d| d.is_none_or(|d| d >= size as u64)).count() as u64;
            assert_eq!(lru, list_misses(&uses, size, false), "case {case}, LRU of {size}");
            let best = belady::misses(&uses, size);
            assert_eq!(best, list_misses(&uses, size, true), "case {case}, Belady's of {size}");
            assert!(best <= lru);
        }
    }
}
