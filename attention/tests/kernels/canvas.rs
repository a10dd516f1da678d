//! Rows of a canvas (block diffusion): keys behind the queries, queries that are not contiguous, tokens
//! that are stored already.

use pagedraft_attention::cuda::{AttentionPlan, AttentionShape, Element, PlanOptions};
use pagedraft_attention::{
    AttentionError, AttentionMetadata, KvDtype, MaskKind, MetadataBuilder, MetadataRow,
};
use pagedraft_block_manager::BlockId;

use crate::world::*;

/// Queries of a canvas that is stored whole: which, and how many of its tokens were stored before.
struct Canvas {
    sequence: Sequence,
    table: Vec<BlockId>,
    context: usize,
    /// The query tokens: those from `context` on where `scattered` is not set.
    index: Vec<u32>,
    scattered: bool,
    stored: u32,
}

impl Canvas {
    fn random(heads: Heads, cache: &mut Cache, rng: &mut Rng) -> Canvas {
        let sequence = Sequence::random(rng.between(1, 300), heads, rng);
        let table = cache.table(sequence.len);
        let context = rng.below(sequence.len);
        let room = sequence.len - context;
        let scattered = rng.below(2) == 0;
        let mut index: Vec<u32> = (context as u32..sequence.len as u32).collect();
        let queries = rng.between(1, room.min(40));
        match scattered {
            false => index.truncate(queries),
            true => {
                rng.shuffle(&mut index);
                index.truncate(queries);
                index.sort_unstable();
            }
        }
        let stored = if rng.below(2) == 0 { 0 } else { rng.below(sequence.len + 1) as u32 };
        Canvas { sequence, table, context, index, scattered, stored }
    }

    fn row(&self) -> MetadataRow<'_> {
        let queries = self.index.len() as u32;
        MetadataRow {
            behind: (self.sequence.len - self.context) as u32 - queries,
            mask: MaskKind::Bidirectional,
            index: self.scattered.then_some(&self.index[..]),
            stored: self.stored,
            ..MetadataRow::causal(self.context as u32, queries, &self.table)
        }
    }
}

/// Some canvases with ordinary rows and pads between them, in the order that the builder wants.
fn step(canvases: &[Canvas], block_size: u32, pads: bool) -> AttentionMetadata {
    let mut builder = MetadataBuilder::new(block_size).unwrap();
    for canvas in canvases {
        builder.push(canvas.row()).unwrap();
        if pads {
            builder.push_pad_row(1.max(canvas.index.len().min(2) as u32)).unwrap();
        }
    }
    if pads {
        builder.pad_slots(3);
    }
    builder.finish().clone()
}

fn canvases(heads: Heads, cache: &mut Cache, rng: &mut Rng) -> Vec<Canvas> {
    let mut canvases: Vec<_> = (0..rng.between(1, 4)).map(|_| Canvas::random(heads, cache, rng)).collect();
    canvases.sort_by_key(|canvas| canvas.index.len() == 1);
    canvases
}

#[test]
fn every_query_of_a_canvas_sees_all_its_keys_to_the_bit() {
    for seed in 0..24 {
        let mut rng = Rng(seed);
        let heads = Heads {
            kv: rng.between(1, 2),
            group: rng.pick(&[1, 2, 3, 5, 8]),
            dim: rng.pick(&[16, 20, 64, 128]),
        };
        let dtype = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16][seed as usize % 3];
        let block_size = rng.pick(&[16, 32, 64]);
        let mut cache = Cache::roomy(dtype, block_size, heads, 1500, &mut rng);
        let canvases = canvases(heads, &mut cache, &mut rng);
        let metadata = step(&canvases, block_size, false);
        let width = heads.q_width();
        for isa in sets() {
            let (mut q, mut slow) = (Vec::new(), Vec::new());
            for canvas in &canvases {
                let Canvas { sequence, table, .. } = canvas;
                cache.store(isa, sequence, 0, sequence.len, table);
                for &i in &canvas.index {
                    let i = i as usize;
                    q.extend_from_slice(&sequence.q[i * width..][..width]);
                    slow.extend(query_slowly(isa, &cache, table, sequence, i, 0..sequence.len, heads));
                }
            }
            let fast = run(isa, &cache, &metadata, &q, heads, 2);
            assert_same_bits(&fast, &slow, &format!("seed {seed} {isa} {heads:?} {dtype:?}"));
        }
    }
}

#[test]
fn slots_lengths_and_indices_of_canvas_rows_follow_from_what_was_pushed() {
    let mut scattered = 0;
    for seed in 100..400 {
        let mut rng = Rng(seed);
        let heads = Heads { kv: 1, group: 1, dim: 2 };
        let block_size = rng.pick(&[16, 32, 64]);
        let mut cache = Cache::roomy(KvDtype::F32, block_size, heads, 1500, &mut rng);
        let canvases = canvases(heads, &mut cache, &mut rng);
        println!("seed {seed}: {} canvases", canvases.len());
        // Pads have the length of decodes, so that they may stand anywhere only among those.
        let pads = canvases.iter().all(|canvas| canvas.index.len() == 1) && rng.below(2) == 0;
        let m = step(&canvases, block_size, pads);
        let (mut slots, mut indices) = (Vec::new(), Vec::new());
        for canvas in &canvases {
            for &i in &canvas.index {
                let slot = cache.slot(&canvas.table, i as usize);
                slots.push(if i < canvas.stored { -1 } else { slot });
                indices.push(i64::from(i));
            }
            let pad = usize::from(pads);
            slots.resize(slots.len() + pad, -1);
            indices.resize(indices.len() + pad, -1);
        }
        let tail = if pads { 3 } else { 0 };
        slots.resize(slots.len() + tail, -1);
        indices.resize(indices.len() + tail, -1);
        assert_eq!(m.slot_mapping, slots);
        let follows = |canvas: &Canvas| (canvas.context as u32..).zip(&canvas.index).all(|(a, &b)| a == b);
        match canvases.iter().all(follows) {
            true => assert_eq!(m.kv_index, [0i64; 0]),
            false => {
                scattered += 1;
                assert_eq!(m.kv_index, indices);
            }
        }
        let rows: Vec<_> = (0..m.num_rows()).filter(|&row| m.seq_lens[row] > 0).collect();
        for (&row, canvas) in rows.iter().zip(&canvases) {
            assert_eq!(m.seq_lens[row] as usize, canvas.sequence.len);
            assert_eq!(m.context_lens[row] as usize, canvas.context);
        }
        m.check(block_size).unwrap();
        let json = serde_json::to_string(&m).unwrap();
        assert_eq!(json.contains("kv_index"), !m.kv_index.is_empty());
        assert!(!json.contains("window"));
        assert_eq!(serde_json::from_str::<AttentionMetadata>(&json).unwrap(), m);
        let mut copy = AttentionMetadata::default();
        copy.clone_from(&m);
        assert_eq!(copy, m);
    }
    assert!(scattered > 50, "the seeds hardly try what they are for");
}

#[test]
fn tokens_that_a_group_does_not_keep_have_no_slot_and_no_index() {
    let table = [BlockId(2), BlockId(7)];
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.push_row(3, 2, &table, MaskKind::Causal).unwrap();
    builder.push_pad_row(2).unwrap();
    let nowhere = MetadataRow::NOWHERE;
    let index = [nowhere, 4, 16, nowhere];
    let row = MetadataRow {
        behind: 10,
        mask: MaskKind::Bidirectional,
        index: Some(&index),
        stored: 5,
        ..MetadataRow::causal(4, 4, &table)
    };
    builder.push(row).unwrap();
    builder.push_row(0, 1, &table, MaskKind::Causal).unwrap();
    let m = builder.finish();
    assert_eq!(m.slot_mapping, [35, 36, -1, -1, -1, -1, 112, -1, 32]);
    assert_eq!(m.kv_index, [3, 4, -1, -1, -1, 4, 16, -1, 0]);
    assert_eq!(m.seq_lens, [5, 0, 18, 1]);
    m.check(16).unwrap();

    // What the check says about a trace that has something else.
    let spoilt = |change: &dyn Fn(&mut AttentionMetadata)| {
        let mut m = m.clone();
        change(&mut m);
        m.check(16).unwrap_err().to_string()
    };
    assert!(spoilt(&|m| m.kv_index[0] += 1).contains("explicit indices"));
    assert!(spoilt(&|m| m.kv_index[5] = 17).contains("index 16"));
    assert!(spoilt(&|m| m.kv_index[6] = 18).contains("index 18"));
    assert!(spoilt(&|m| m.kv_index[6] = -2).contains("kv_index[6]"));
    assert!(spoilt(&|m| m.kv_index[6] = 15).contains("slot_mapping[6]"));
    assert!(spoilt(&|m| m.kv_index.truncate(3)).contains("kv_index.len"));
    assert!(spoilt(&|m| m.seq_lens[2] += 1).contains("seq_lens[2]"));
    assert!(spoilt(&|m| m.seq_lens[0] += 1).contains("seq_lens[0]"));
    assert!(spoilt(&|m| m.window = Some(0)).contains("window"));
}

#[test]
fn rows_that_no_canvas_has_are_refused_and_leave_the_metadata_as_it_was() {
    let table = [BlockId(0), BlockId(9)];
    let freed = [BlockId::FREED, BlockId(9)];
    let row = MetadataRow { mask: MaskKind::Bidirectional, ..MetadataRow::causal(4, 3, &table) };
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.push_row(1, 2, &table, MaskKind::Causal).unwrap();
    let before = builder.finish().clone();
    let mut refused = |row: MetadataRow<'_>| {
        let error = builder.push(row).unwrap_err();
        assert_eq!(builder.finish(), &before);
        error
    };
    let causal = MetadataRow { mask: MaskKind::Causal, ..row };
    let what = |what| AttentionError::NotBidirectional { row: 1, what };
    assert_eq!(refused(MetadataRow { behind: 1, ..causal }), what("keys behind its queries"));
    assert_eq!(refused(MetadataRow { index: Some(&[4, 6, 5]), ..causal }), what("explicit indices"));
    let wrong = |token, index| AttentionError::WrongIndex { row: 1, token, index, seq_len: 9 };
    let indexed = |index| MetadataRow { behind: 2, index: Some(index), ..row };
    assert_eq!(refused(indexed(&[4, 4, 5])), wrong(1, 4));
    assert_eq!(refused(indexed(&[4, 7, 6])), wrong(2, 6));
    assert_eq!(refused(indexed(&[4, 7, 9])), wrong(2, 9));
    let few = AttentionError::IndexLen { row: 1, query_len: 3, found: 2 };
    assert_eq!(refused(indexed(&[4, 5])), few);
    let short = AttentionError::ShortTable { row: 1, blocks: 2, needed: 3 };
    assert_eq!(refused(MetadataRow { behind: 26, ..row }), short);
    let long = AttentionError::TooLong { row: 1, context_len: 4, query_len: u32::MAX };
    assert_eq!(refused(MetadataRow { behind: u32::MAX - 3, ..row }), long);
    // The second of these tokens lies where there is a block, the first does not.
    let gone = AttentionError::FreedBlock { row: 1, entry: 0 };
    assert_eq!(refused(MetadataRow { table: &freed, ..MetadataRow::causal(15, 2, &freed) }), gone.clone());
    let canvas = MetadataRow { behind: 20, index: Some(&[15, 16, 20]), table: &freed, ..row };
    assert_eq!(refused(canvas), gone);
    let later = MetadataRow { stored: 8, ..MetadataRow::causal(7, 2, &freed) };
    assert_eq!(refused(later), AttentionError::FreedBlock { row: 1, entry: 0 });
}

#[test]
fn freed_blocks_are_minus_one_in_json_and_nothing_else_below_zero_is_read() {
    let table = [BlockId::FREED, BlockId(9)];
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.push_row(30, 1, &table, MaskKind::Causal).unwrap();
    builder.set_window(Some(15));
    builder.finish().check(16).unwrap();
    let json = serde_json::to_value(builder.finish()).unwrap();
    assert_eq!(json["block_tables"], serde_json::json!([[-1, 9]]));
    assert_eq!(json["window"], 15);
    let read: AttentionMetadata = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(&read, builder.finish());
    let mut wrong = json;
    wrong["block_tables"][0][0] = serde_json::json!(-2);
    let error = serde_json::from_value::<AttentionMetadata>(wrong).unwrap_err().to_string();
    assert!(error.contains("-2") && error.contains("-1 for freed"), "{error}");
    builder.begin();
    assert_eq!(builder.finish().window, None);
}

#[test]
fn cuda_plans_give_every_canvas_query_all_keys_and_refuse_windows_that_hide_one() {
    let shape = AttentionShape::new(4, 2, 64, 16, Element::Bf16, Element::Bf16).unwrap();
    let options = PlanOptions { rows: 16, at_once: 49, max_slots: 4096, num_blocks: 1000 };
    let table: Vec<_> = (0..40).map(BlockId).collect();
    let index = [5, 80, 300];
    let row = MetadataRow { mask: MaskKind::Bidirectional, ..MetadataRow::causal(5, 3, &table) };
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.push(MetadataRow { behind: 300, index: Some(&index), ..row }).unwrap();
    builder.push(MetadataRow { behind: 92, ..row }).unwrap();
    let mut metadata = builder.finish().clone();
    let mut plan = AttentionPlan::new();
    let mut planned = |metadata: &AttentionMetadata| {
        plan.plan(&shape, options, metadata, 0..2, &[0, 40]).map(|()| plan.items().to_vec())
    };
    let items = planned(&metadata).unwrap();
    let queries = |token, len, visible| {
        items.iter().filter(|i| i[..4] == [token, len, visible, 0]).map(|i| i[6] - i[5]).sum::<u32>()
    };
    // First token, queries, keys of the first, keys more of each other; spans of 256 keys.
    assert_eq!((queries(0, 3, 308), queries(3, 3, 100)), (2, 1), "{items:?}");
    metadata.window = Some(308);
    assert_eq!(planned(&metadata).unwrap(), items);
    metadata.window = Some(307);
    let refused = planned(&metadata).unwrap_err();
    assert_eq!(refused, AttentionError::WindowedIndex { row: 0, seq_len: 308, window: 307 });
    builder.begin();
    builder.push_row(99, 2, &table, MaskKind::Causal).unwrap();
    builder.push_row(99, 1, &table, MaskKind::Causal).unwrap();
    builder.set_window(Some(100));
    let refused = planned(builder.finish()).unwrap_err();
    assert_eq!(refused, AttentionError::NoCudaWindow { row: 0, seq_len: 101, window: 100 });
    builder.set_window(Some(101));
    assert_eq!(planned(builder.finish()).unwrap().len(), 2);
    assert!(refused.to_string().contains("--device cpu"));

    // A causal row has no keys behind its queries, whatever the metadata says.
    let mut wrong = builder.finish().clone();
    wrong.seq_lens[0] += 1;
    assert!(matches!(planned(&wrong), Err(AttentionError::Inconsistent { field: "seq_lens", .. })));
}
