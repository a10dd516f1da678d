use super::*;

fn facts(selected: &[u32]) -> DsaFacts<'_> {
    DsaFacts {
        request_id: "a",
        layer_id: 1,
        selection_layer: 0,
        step: 7,
        step_idx: 39,
        row: DsaRow::Decode,
        accepted: None,
        selected,
        scores: None,
        each_score: &[],
        block_size: 16,
        latent_bytes: 100,
        cached_blocks: 1,
        prefix_key: "k",
    }
}

/// Three blocks, whose ids descend.
fn block(place: u32) -> Option<u32> {
    [9, 5, 2].get(place as usize).copied()
}

#[test]
fn figures_are_those_that_a_hand_computes() {
    let record = DsaTopkRecord::of(facts(&[0, 1, 2, 33, 39]), block).unwrap();
    assert_eq!((record.seq_len_current, record.unique_token_pos_count), (40, 5));
    assert_eq!((record.offset_min, record.offset_p50, record.offset_max), (0, 37, 39));
    assert_eq!((record.selected_logical_blocks, record.selected_block_ids), (vec![0, 2], vec![2, 9]));
    assert_eq!((record.unique_blocks, record.coverage), (2, 0.666_667));
    let touched = record.tokens_per_touched_block;
    assert_eq!((touched.mean, touched.p50, touched.p95), (2.5, 2, 3));
    let hbm = record.kv_fetch.hbm;
    assert_eq!((hbm.hit_blocks, hbm.bytes_read, hbm.read_ops, hbm.batch_size), (vec![2, 9], 500, 5, 2));
    let prefix = record.prefix;
    assert_eq!((prefix.intersection_ratio, prefix.intersection_blocks), (0.5, vec![9]));
}

#[test]
fn coverage_of_a_random_choice_is_the_mean_over_all_choices() {
    // Of 5 keys in blocks of 2, every choice of 2: the blocks are {0, 1}, {2, 3}, {4}.
    let mut touched = 0;
    for a in 0..5u32 {
        for b in a + 1..5 {
            touched += if a / 2 == b / 2 { 1 } else { 2 };
        }
    }
    let mean = f64::from(touched) / 10.0 / 3.0;
    let selected = [0, 4];
    let facts = DsaFacts { step_idx: 4, block_size: 2, ..facts(&selected) };
    let record = DsaTopkRecord::of(facts, block).unwrap();
    assert!((record.coverage_random - mean).abs() < 1e-6, "{} is not {mean}", record.coverage_random);
    let all: Vec<u32> = (0..40).collect();
    assert_eq!(DsaTopkRecord::of(self::facts(&all), block).unwrap().coverage_random, 1.0);
}

#[test]
fn what_is_no_choice_is_refused() {
    for (selected, word) in
        [(&[][..], "no key"), (&[3, 3], "3 before 3"), (&[4, 3], "4 before 3"), (&[1, 40], "behind")]
    {
        let message = DsaTopkRecord::of(facts(selected), block).unwrap_err();
        assert!(message.contains(word), "{message}");
    }
    assert!(DsaTopkRecord::of(facts(&[0]), |_| None).unwrap_err().contains("no block 0"));
}

#[test]
fn a_share_of_the_tokens_is_sampled_and_always_the_same_ones() {
    let config = |sample_rate| DsaTraceConfig {
        rows: DsaRows::All,
        sample_rate,
        prefix_key_tokens: 256,
        store_scores: false,
        index_topk: 8,
        layers: 5,
        indexer_layers: vec![0, 3],
        latent_bytes: 4,
    };
    let sampled = |rate| (0..10_000).filter(|&p| config(rate).samples("a", p)).count();
    assert_eq!((sampled(0.0), sampled(1.0)), (0, 10_000));
    assert!((1900..2100).contains(&sampled(0.2)), "{}", sampled(0.2));
    assert_eq!([0, 2, 3, 4].map(|l| config(1.0).selection_layer(l)), [0, 0, 3, 3].map(Some));
}
