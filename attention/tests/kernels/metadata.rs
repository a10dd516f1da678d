//! Properties of metadata rows, and what the builder and the check refuse.

use pagedraft_attention::{AttentionError, AttentionMetadata, BlockTables, MaskKind, MetadataBuilder};
use pagedraft_block_manager::BlockId;

use crate::world::Rng;

/// Random rows in their order: (context, query, table, mask).
fn rows(rng: &mut Rng, block_size: u32) -> Vec<(u32, u32, Vec<BlockId>, MaskKind)> {
    let count = rng.below(12);
    let mut rows: Vec<_> = (0..count)
        .map(|_| {
            let context = rng.below(200) as u32;
            let query = if rng.below(2) == 0 { 1 } else { rng.between(1, 80) as u32 };
            let spare = rng.below(3) as u32;
            let blocks = (context + query).div_ceil(block_size) + spare;
            let table = (0..blocks).map(|_| BlockId(rng.below(1 << 20) as u32)).collect();
            let mask = rng.pick(&[MaskKind::Causal, MaskKind::Causal, MaskKind::Bidirectional]);
            (context, query, table, mask)
        })
        .collect();
    rows.sort_by_key(|row| row.1 == 1);
    rows
}

fn built(rows: &[(u32, u32, Vec<BlockId>, MaskKind)], block_size: u32) -> AttentionMetadata {
    let mut builder = MetadataBuilder::new(block_size).unwrap();
    for (context, query, table, mask) in rows {
        builder.push_row(*context, *query, table, *mask).unwrap();
    }
    builder.finish().clone()
}

#[test]
fn every_field_follows_from_the_rows() {
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let block_size = rng.pick(&[16, 32, 64]);
        let rows = rows(&mut rng, block_size);
        println!("seed {seed}: {} rows", rows.len());
        let m = built(&rows, block_size);

        let slots: Vec<i64> = rows
            .iter()
            .flat_map(|(context, query, table, _)| {
                (*context..context + query).map(|i| {
                    let block = table[(i / block_size) as usize].0;
                    i64::from(block) * i64::from(block_size) + i64::from(i % block_size)
                })
            })
            .collect();
        assert_eq!(m.slot_mapping, slots);
        let lens: Vec<u32> = rows.iter().map(|r| r.0 + r.1).collect();
        assert_eq!(m.seq_lens, lens);
        assert_eq!(m.context_lens, rows.iter().map(|r| r.0).collect::<Vec<_>>());
        let sums = |of: &dyn Fn(usize) -> u32| -> Vec<u32> {
            (0..=rows.len()).map(|n| (0..n).map(of).sum()).collect()
        };
        assert_eq!(m.query_start_loc, sums(&|r| rows[r].1));
        assert_eq!(m.seq_start_loc, sums(&|r| lens[r]));
        let (many, one): (Vec<_>, Vec<_>) = rows.iter().partition(|r| r.1 > 1);
        let longest =
            |rows: &[&(u32, u32, Vec<BlockId>, MaskKind)]| rows.iter().map(|r| r.0 + r.1).max().unwrap_or(0);
        assert_eq!(m.num_prefills as usize, many.len());
        assert_eq!(m.num_prefill_tokens, many.iter().map(|r| r.1).sum::<u32>());
        assert_eq!(m.num_decode_tokens as usize, one.len());
        assert_eq!(m.max_query_len, rows.iter().map(|r| r.1).max().unwrap_or(0));
        assert_eq!(m.max_prefill_seq_len, longest(&many));
        assert_eq!(m.max_decode_seq_len, longest(&one));
        for (row, (found, right)) in m.block_tables.iter().zip(&rows).enumerate() {
            assert_eq!(found, &right.2[..lens[row].div_ceil(block_size) as usize]);
            assert_eq!(m.mask_kind(row), right.3);
        }

        m.check(block_size).unwrap();
        let json = serde_json::to_string(&m).unwrap();
        assert_eq!(serde_json::from_str::<AttentionMetadata>(&json).unwrap(), m);
    }
}

#[test]
fn a_builder_forgets_the_step_before() {
    let mut rng = Rng(7);
    let mut builder = MetadataBuilder::new(16).unwrap();
    for _ in 0..20 {
        let rows = rows(&mut rng, 16);
        builder.begin();
        for (context, query, table, mask) in &rows {
            builder.push_row(*context, *query, table, *mask).unwrap();
        }
        assert_eq!(builder.finish(), &built(&rows, 16));
        let kept = builder.take(AttentionMetadata::default());
        assert_eq!(kept, built(&rows, 16));
    }
}

#[test]
fn masks_are_written_only_where_a_row_is_not_causal() {
    let table = [BlockId(3)];
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.push_row(0, 1, &table, MaskKind::Causal).unwrap();
    assert!(!serde_json::to_string(builder.finish()).unwrap().contains("mask_kinds"));
    builder.push_row(1, 1, &table, MaskKind::Bidirectional).unwrap();
    builder.push_row(2, 1, &table, MaskKind::Causal).unwrap();
    let json = serde_json::to_value(builder.finish()).unwrap();
    assert_eq!(json["mask_kinds"], serde_json::json!(["causal", "bidirectional", "causal"]));
}

#[test]
fn pad_rows_have_length_zero_and_no_slots() {
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.push_row(5, 3, &[BlockId(2)], MaskKind::Causal).unwrap();
    builder.push_pad_row(3).unwrap();
    builder.push_row(0, 1, &[BlockId(4)], MaskKind::Causal).unwrap();
    builder.push_pad_row(1).unwrap();
    builder.pad_slots(2);
    let m = builder.finish();
    assert_eq!(m.slot_mapping, [37, 38, 39, -1, -1, -1, 64, -1, -1, -1]);
    assert_eq!(m.seq_lens, [8, 0, 1, 0]);
    assert_eq!((m.num_prefills, m.num_prefill_tokens, m.num_decode_tokens), (2, 6, 2));
    m.check(16).unwrap();
}

#[test]
fn rows_that_cannot_be_are_refused_and_leave_the_metadata_as_it_was() {
    assert_eq!(MetadataBuilder::new(24).unwrap_err(), AttentionError::BlockSize { block_size: 24 });
    let mut builder = MetadataBuilder::new(16).unwrap();
    let table = [BlockId(0), BlockId(9)];
    builder.push_row(15, 1, &table, MaskKind::Causal).unwrap();
    let before = builder.finish().clone();
    let mut refused = |context, query| {
        let error = builder.push_row(context, query, &table, MaskKind::Bidirectional).unwrap_err();
        assert_eq!(builder.finish(), &before);
        error
    };
    assert_eq!(refused(4, 0), AttentionError::EmptyRow { row: 1 });
    assert_eq!(refused(4, 2), AttentionError::RowOrder { row: 1, query_len: 2 });
    assert_eq!(refused(32, 1), AttentionError::ShortTable { row: 1, blocks: 2, needed: 3 });
    let too_long = AttentionError::TooLong { row: 1, context_len: u32::MAX, query_len: 1 };
    assert_eq!(refused(u32::MAX, 1), too_long);
    assert!(matches!(builder.push_pad_row(2), Err(AttentionError::RowOrder { .. })));
}

#[test]
fn the_check_names_the_first_field_that_contradicts_the_others() {
    let mut rng = Rng(11);
    let right = built(&rows(&mut rng, 16), 16);
    assert!(right.num_rows() > 1);
    let spoilt = |change: &dyn Fn(&mut AttentionMetadata)| {
        let mut m = right.clone();
        change(&mut m);
        m.check(16).unwrap_err().to_string()
    };
    assert!(spoilt(&|m| m.slot_mapping[1] += 1).contains("slot_mapping[1]"));
    assert!(spoilt(&|m| m.seq_lens[1] += 1).contains("seq_lens[1]"));
    assert!(spoilt(&|m| m.seq_start_loc[1] += 1).contains("seq_start_loc[1]"));
    assert!(spoilt(&|m| m.num_decode_tokens += 1).contains("num_decode_tokens"));
    assert!(spoilt(&|m| m.max_query_len += 1).contains("max_query_len"));
    assert!(spoilt(&|m| m.query_start_loc[1] = u32::MAX).contains("query_start_loc[1]"));
    assert!(spoilt(&|m| m.query_start_loc.truncate(1)).contains("query_start_loc.len"));
    assert!(
        spoilt(&|m| {
            m.context_lens.pop();
        })
        .contains("context_lens.len")
    );
    assert!(spoilt(&|m| m.block_tables = BlockTables::new()).contains("block_tables.len"));
    assert!(spoilt(&|m| m.query_start_loc.clear()).contains("query_start_loc.len"));
}

#[test]
fn tables_are_padded_with_zero_up_to_the_width_and_not_beyond() {
    let mut tables = BlockTables::new();
    tables.push(&[BlockId(5), BlockId(6)]);
    tables.push(&[]);
    tables.push(&[BlockId(7)]);
    let mut padded = BlockTables::new();
    tables.pad_into(3, &mut padded).unwrap();
    assert_eq!(serde_json::to_string(&padded).unwrap(), "[[5,6,0],[0,0,0],[7,0,0]]");
    let wide = AttentionError::WideTable { row: 0, blocks: 2, width: 1 };
    assert_eq!(tables.pad_into(1, &mut padded), Err(wide));
}
