//! Plans of attention's work on a GPU: every query and key is somebody's, once, whatever the load.

use pagedraft_attention::cuda::{AttentionPlan, AttentionShape, Element, PlanBounds, PlanOptions};
use pagedraft_attention::{AttentionError, AttentionMetadata, MaskKind, MetadataBuilder};
use pagedraft_block_manager::BlockId;
use std::collections::HashMap;

fn shape(group: usize) -> AttentionShape {
    AttentionShape::new(2 * group, 2, 64, 16, Element::Bf16, Element::Bf16).unwrap()
}

/// Rows of (context, queries), each with blocks of its own; no queries is a pad row.
fn metadata(rows: &[(u32, u32)], mask: MaskKind) -> (AttentionMetadata, Vec<u32>) {
    let mut builder = MetadataBuilder::new(16).unwrap();
    let (mut starts, mut blocks) = (Vec::new(), 0);
    for &(context, queries) in rows {
        starts.push(blocks);
        if queries == 0 {
            builder.push_pad_row(1).unwrap();
            continue;
        }
        let table: Vec<_> = (blocks..blocks + (context + queries).div_ceil(16)).map(BlockId).collect();
        builder.push_row(context, queries, &table, mask).unwrap();
        blocks += table.len() as u32;
    }
    (builder.finish().clone(), starts)
}

const OPTIONS: PlanOptions = PlanOptions { rows: 16, at_once: 49, max_slots: 4096, num_blocks: 100_000 };

#[test]
fn every_query_has_all_its_spans_once_and_every_slot_one_writer() {
    let loads: [&[(u32, u32)]; 5] = [
        &[(1023, 1)],
        &[(0, 1), (255, 1), (256, 1), (9000, 1)],
        &[(8191, 1); 64],
        &[(100, 2000), (31_999, 700), (5, 3), (0, 0), (77, 1)],
        &[(0, 0)],
    ];
    for rows in loads {
        for group in [1, 3, 16] {
            for kernel in AttentionShape::ROWS {
                for (at_once, max_slots) in [(1, 4096), (49, 4096), (49, 40), (100_000, 4096), (49, 0)] {
                    for mask in [MaskKind::Causal, MaskKind::Bidirectional] {
                        let options = PlanOptions { rows: kernel, at_once, max_slots, ..OPTIONS };
                        check(group, rows, mask, options);
                    }
                }
            }
        }
    }
}

fn check(group: usize, rows: &[(u32, u32)], mask: MaskKind, options: PlanOptions) {
    let (metadata, starts) = metadata(rows, mask);
    let shape = shape(group);
    let mut plan = AttentionPlan::new();
    plan.plan(&shape, options, &metadata, 0..rows.len(), &starts).unwrap();
    let what = format!("{rows:?} {options:?} group {group}");

    // Of each first token: the queries, and which spans were seen.
    let mut groups: HashMap<u32, (u32, Vec<u32>)> = HashMap::new();
    let mut slots = vec![0u32; plan.used().slots as usize];
    for &[token, queries, first, step, table, begin, end, partial, counter, parts, prefix, spans] in
        plan.items()
    {
        assert!(queries >= 1 && queries * group as u32 <= options.rows, "{what}");
        let row = metadata.query_start_loc.iter().rposition(|&start| start <= token).unwrap();
        let row = (0..=row).rev().find(|&r| metadata.seq_lens[r] > 0).unwrap();
        let at = metadata.context_lens[row] + token - metadata.query_start_loc[row];
        assert_eq!(table, starts[row]);
        let (visible, each) = match mask {
            MaskKind::Causal => (at + 1, 1),
            MaskKind::Bidirectional => (metadata.seq_lens[row], 0),
        };
        assert_eq!((first, step), (visible, each), "{what}");
        assert_eq!(spans, (first + (queries - 1) * step).div_ceil(AttentionShape::SPAN));
        let seen = groups.entry(token).or_insert((queries, Vec::new()));
        assert_eq!(seen.0, queries);
        seen.1.extend(begin..end);
        if partial == u32::MAX {
            assert_eq!((begin, end), (0, spans), "{what}");
            continue;
        }
        assert!(counter < plan.used().groups && parts == 1 + spans - prefix && prefix >= 1, "{what}");
        if begin == 0 {
            assert_eq!(end, prefix);
            slots[partial as usize] += 1;
        } else {
            assert!(begin >= prefix);
            (begin..end).for_each(|span| slots[(partial + 1 + span - prefix) as usize] += 1);
        }
    }
    assert!(slots.iter().all(|&writers| writers == 1), "{what}");
    let tokens: u32 = rows.iter().map(|row| row.1).sum();
    let mut covered = 0;
    for (queries, mut spans) in groups.into_values() {
        covered += queries;
        spans.sort_unstable();
        assert!(spans.iter().enumerate().all(|(i, &span)| i as u32 == span), "{what}");
    }
    assert_eq!(covered, tokens, "{what}");
    let longest = metadata.seq_lens.iter().copied().max().unwrap();
    let bounds = AttentionPlan::bounds(&shape, options, tokens, rows.len() as u32, longest);
    let PlanBounds { items, slots, groups } = plan.used();
    assert!(items <= bounds.items && slots <= bounds.slots && groups <= bounds.groups, "{what}: {bounds:?}");
}

#[test]
fn one_long_sequence_is_shared_and_many_are_nearly_balanced() {
    let longest = |rows: &[(u32, u32)]| {
        let (metadata, starts) = metadata(rows, MaskKind::Causal);
        let mut plan = AttentionPlan::new();
        plan.plan(&shape(4), OPTIONS, &metadata, 0..rows.len(), &starts).unwrap();
        // Block x takes items x, x + at_once, and so on, as the kernel does.
        let mut ends = vec![0u32; OPTIONS.at_once as usize];
        for (i, item) in plan.items().iter().enumerate() {
            ends[i % OPTIONS.at_once as usize] += item[6] - item[5];
        }
        let all: u32 = ends.iter().sum();
        f64::from(*ends.iter().max().unwrap()) / (f64::from(all) / f64::from(OPTIONS.at_once)).max(1.0)
    };
    assert!(longest(&[(8191, 1)]) <= 1.0, "spans of one sequence wait for each other");
    assert!(
        longest(&[(131_071, 1)]) < 1.1,
        "1 sequence of 128K ends {} times late",
        longest(&[(131_071, 1)])
    );
    assert!(longest(&[(32_767, 1); 8]) < 1.1, "8 of 32K end {} times late", longest(&[(32_767, 1); 8]));
    assert!(longest(&[(8191, 1); 64]) < 1.1, "64 sequences end {} times late", longest(&[(8191, 1); 64]));
    let mixed: Vec<(u32, u32)> = (0..50).map(|i| (100 + 300 * i, 1)).collect();
    assert!(longest(&mixed) < 1.1, "mixed lengths end {} times late", longest(&mixed));
}

#[test]
fn tables_that_are_too_short_or_name_no_block_are_refused() {
    let (metadata, starts) = metadata(&[(100, 1), (40, 1)], MaskKind::Causal);
    let mut plan = AttentionPlan::new();
    let options = PlanOptions { num_blocks: 9, ..OPTIONS };
    let refused = plan.plan(&shape(1), options, &metadata, 0..2, &starts).unwrap_err();
    assert_eq!(refused, AttentionError::NoSuchBlock { row: 1, block: 9, num_blocks: 9 });
    assert!(plan.items().is_empty());
    let refused = plan.plan(&shape(1), OPTIONS, &metadata, 0..2, &starts[..1]).unwrap_err();
    assert!(matches!(refused, AttentionError::Inconsistent { field: "table_starts.len", .. }), "{refused}");
}
