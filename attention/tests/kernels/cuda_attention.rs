//! The attention kernels of CUDA, emulated: right, the same bits however a step is cut, and blind to what is nobody's.

use pagedraft_attention::cuda::{AttentionPlan, AttentionShape, Element, PlanOptions, SOURCES};
use pagedraft_attention::reference::Arithmetic;
use pagedraft_attention::{AttentionMetadata, MaskKind, MetadataBuilder};
use pagedraft_block_manager::BlockId;

use crate::emulator::{self, Arg, Buffer, Half, Launch, Module, Random};

/// Heads and types of a test.
#[derive(Clone, Copy, Debug)]
struct Model {
    kv_heads: usize,
    group: usize,
    dim: usize,
    act: Half,
    fp8: bool,
}

/// The models of the tests: few, since each is compiled.
const MODELS: [Model; 8] = [
    Model { kv_heads: 2, group: 4, dim: 128, act: Half::Bf16, fp8: false },
    Model { kv_heads: 2, group: 2, dim: 64, act: Half::Bf16, fp8: true },
    Model { kv_heads: 1, group: 8, dim: 32, act: Half::F16, fp8: false },
    Model { kv_heads: 1, group: 1, dim: 16, act: Half::F16, fp8: false },
    Model { kv_heads: 2, group: 5, dim: 80, act: Half::Bf16, fp8: false },
    Model { kv_heads: 1, group: 16, dim: 96, act: Half::Bf16, fp8: false },
    Model { kv_heads: 1, group: 4, dim: 128, act: Half::F16, fp8: true },
    Model { kv_heads: 2, group: 3, dim: 48, act: Half::F16, fp8: false },
];

impl Model {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn shape(&self, block_size: u32) -> AttentionShape {
        let act = if self.act == Half::Bf16 { Element::Bf16 } else { Element::F16 };
        let kv = if self.fp8 { Element::Fp8 } else { act };
        AttentionShape::new(self.heads(), self.kv_heads, self.dim, block_size, act, kv).unwrap()
    }

    fn scale(&self) -> f32 {
        (self.dim as f32).sqrt().recip()
    }
}

/// e4m3 as f32.
fn widen_fp8(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match exponent {
        15 if bits & 7 == 7 => f32::NAN,
        0 => fraction / 512.0,
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// What is stored of a sequence, and its queries.
struct Sequence {
    len: usize,
    /// [token][head][dim] as stored (fp8: the byte), and scales [token][head].
    k: Vec<u16>,
    v: Vec<u16>,
    k_scales: Vec<f32>,
    v_scales: Vec<f32>,
    q: Vec<u16>,
}

impl Sequence {
    fn random(random: &mut Random, model: Model, len: usize) -> Sequence {
        let kv = len * model.kv_heads;
        let gain = random.pick(&[0.3, 1.0, 3.0]);
        let mut stored = |values: Vec<f32>| -> Vec<u16> {
            match model.fp8 {
                // Any finite byte.
                true => values
                    .iter()
                    .map(|_| random.next() as u16 & 0xff)
                    .map(|b| b & !(b & 0x78) | b & 0x38)
                    .collect(),
                false => model.act.narrow_all(&values),
            }
        };
        let mut other = Random(len as u64);
        let k = stored(other.normals(kv * model.dim));
        let v = stored(other.normals(kv * model.dim));
        let q = other.normals(len * model.heads() * model.dim).iter().map(|x| x * gain).collect::<Vec<_>>();
        let scales = |random: &mut Random| (0..kv).map(|_| 0.2 + random.below(100) as f32 / 100.0).collect();
        let (k_scales, v_scales) = (scales(&mut other), scales(&mut other));
        Sequence { len, k, v, k_scales, v_scales, q: model.act.narrow_all(&q) }
    }

    fn value(&self, model: Model, of_v: bool, token: usize, head: usize, d: usize) -> f32 {
        let at = token * model.kv_heads + head;
        let (bits, scales) = if of_v { (&self.v, &self.v_scales) } else { (&self.k, &self.k_scales) };
        match model.fp8 {
            true => widen_fp8(bits[at * model.dim + d] as u8) * scales[at],
            false => model.act.widen(bits[at * model.dim + d]),
        }
    }
}

/// A cache all of NaNs, but for what is stored.
struct Cache {
    model: Model,
    block_size: usize,
    stride: usize,
    offset: usize,
    bytes: Vec<u8>,
    free: Vec<BlockId>,
}

impl Cache {
    fn new(random: &mut Random, model: Model, block_size: usize, blocks: u32) -> Cache {
        let part = model.shape(block_size as u32).part_bytes();
        // The layer lies between two others.
        let (stride, offset) = (3 * part, part);
        let mut free: Vec<_> = (0..blocks).map(BlockId).collect();
        random.shuffle(&mut free);
        Cache { model, block_size, stride, offset, bytes: vec![0xff; stride * blocks as usize], free }
    }

    /// Stores a sequence in blocks from anywhere.
    fn store(&mut self, sequence: &Sequence) -> Vec<BlockId> {
        let (size, model) = (self.block_size, self.model);
        let table = self.free.split_off(self.free.len() - sequence.len.div_ceil(size));
        let element = if model.fp8 { 1 } else { 2 };
        let row = model.dim * element;
        let head_bytes = model.shape(size as u32).part_bytes() / model.kv_heads;
        for token in 0..sequence.len {
            let block = table[token / size].0 as usize * self.stride + self.offset;
            for head in 0..model.kv_heads {
                let start = block + head * head_bytes;
                for (half, bits) in [&sequence.k, &sequence.v].into_iter().enumerate() {
                    let at = start + half * size * row + token % size * row;
                    let from = (token * model.kv_heads + head) * model.dim;
                    for d in 0..model.dim {
                        let value = bits[from + d].to_le_bytes();
                        self.bytes[at + d * element..][..element].copy_from_slice(&value[..element]);
                    }
                }
                if model.fp8 {
                    let scales = [&sequence.k_scales, &sequence.v_scales];
                    for (half, scales) in scales.into_iter().enumerate() {
                        let at = start + 2 * size * row + half * size * 4 + token % size * 4;
                        let scale = scales[token * model.kv_heads + head].to_le_bytes();
                        self.bytes[at..at + 4].copy_from_slice(&scale);
                    }
                }
            }
        }
        table
    }
}

/// Queries `context .. context + query` of a stored sequence.
#[derive(Clone, Copy)]
struct Row<'a> {
    sequence: &'a Sequence,
    table: &'a [BlockId],
    context: usize,
    query: usize,
    mask: MaskKind,
}

fn metadata_of(rows: &[Row<'_>], block_size: usize) -> AttentionMetadata {
    let mut builder = MetadataBuilder::new(block_size as u32).unwrap();
    for row in rows {
        match row.query {
            0 => builder.push_pad_row(1).unwrap(),
            _ => builder.push_row(row.context as u32, row.query as u32, row.table, row.mask).unwrap(),
        }
    }
    builder.finish().clone()
}

/// How a step is cut and launched.
#[derive(Clone, Copy, Debug)]
struct Cut {
    rows: u32,
    at_once: u32,
    max_slots: u32,
    grid: u32,
}

impl Cut {
    fn random(random: &mut Random, model: Model) -> Cut {
        let least = model.group as u32;
        let fitting: Vec<u32> = AttentionShape::ROWS.into_iter().filter(|&rows| rows >= least).collect();
        Cut {
            rows: random.pick(&fitting),
            at_once: random.pick(&[1, 3, 50, 1000]),
            max_slots: random.pick(&[0, 2, 7, 100]),
            grid: random.between(1, 5) as u32,
        }
    }
}

/// Runs a step; the output of every token row, with NaN where none was written.
fn attend(random: &mut Random, cache: &Cache, rows: &[Row<'_>], cut: Cut) -> Vec<u16> {
    let (model, shape) = (cache.model, cache.model.shape(cache.block_size as u32));
    let metadata = metadata_of(rows, cache.block_size);
    let mut starts = Vec::new();
    let mut tables = vec![u32::MAX; 3];
    for table in metadata.block_tables.iter() {
        starts.push(tables.len() as u32);
        tables.extend(table.iter().map(|block| block.0));
    }
    let num_blocks = (cache.bytes.len() / cache.stride) as u32;
    let options = PlanOptions { rows: cut.rows, at_once: cut.at_once, max_slots: cut.max_slots, num_blocks };
    let mut plan = AttentionPlan::new();
    plan.plan(&shape, options, &metadata, 0..rows.len(), &starts).unwrap();
    let used = plan.used();
    let longest = metadata.seq_lens.iter().copied().max().unwrap_or(0);
    let tokens = metadata.num_tokens();
    let bounds = AttentionPlan::bounds(&shape, options, tokens as u32, rows.len() as u32, longest);
    assert!(used.items <= bounds.items && used.slots <= bounds.slots && used.groups <= bounds.groups);
    assert!(used.slots <= cut.max_slots);

    let width = model.heads() * model.dim;
    let mut q = vec![0x7fffu16; tokens * width];
    for (row, &start) in rows.iter().zip(&metadata.query_start_loc) {
        let from = row.context * width;
        q[start as usize * width..][..row.query * width]
            .copy_from_slice(&row.sequence.q[from..from + row.query * width]);
    }
    let (q, out) = (Buffer::from(&q), Buffer::filled(0xffffu16, tokens * width));
    let (memory, tables) = (Buffer::from(&cache.bytes), Buffer::from(&tables));
    let items: Vec<u32> = plan.items().iter().flatten().copied().collect();
    let (items, count) = (Buffer::from(&items), Buffer::from(&[used.items]));
    let partial = Buffer::filled(f32::NAN, used.slots as usize * shape.slot_values(cut.rows));
    let arrived = Buffer::filled(0u32, used.groups as usize * model.kv_heads);
    let source = SOURCES.iter().find(|source| source.name == "attention.cu").unwrap();
    Module::build(source.name, source.kernels, &shape.defines()).launch(
        Launch {
            kernel: &format!("attention_{}", cut.rows),
            grid: [cut.grid, model.kv_heads as u32, 1],
            threads: 128,
            shared: shape.shared_bytes(cut.rows),
            seed: random.next(),
        },
        &[
            q.arg(),
            out.arg(),
            memory.arg_at(cache.offset),
            tables.arg(),
            items.arg(),
            count.arg(),
            partial.arg(),
            arrived.arg(),
            Arg::U64(cache.stride as u64),
            Arg::F32(model.scale()),
        ],
    );
    assert!(arrived.all().iter().all(|&count| count == 0), "a counter is not 0 again");
    assert!(memory.all() == cache.bytes, "the cache was written");
    out.all().to_vec()
}

/// Output and the mean of magnitudes that errors are measured by, for one query and head.
fn slowly(model: Model, row: &Row<'_>, query: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
    let at = row.context + query;
    let visible = match row.mask {
        MaskKind::Causal => at + 1,
        MaskKind::Bidirectional => row.context + row.query,
    };
    let q = model.act.widen_all(&row.sequence.q[(at * model.heads() + head) * model.dim..][..model.dim]);
    let kv = head / model.group;
    let arithmetic = Arithmetic { fused: true };
    let attend = |value: &dyn Fn(usize, usize) -> f32| {
        let key = |j, d| row.sequence.value(model, false, j, kv, d);
        arithmetic.attend(&q, 0, visible, model.scale(), key, value)
    };
    let value = |j, d| row.sequence.value(model, true, j, kv, d);
    (attend(&value), attend(&|j, d| value(j, d).abs()))
}

#[test]
fn attention_agrees_with_the_reference_on_random_steps() {
    if !emulator::available() {
        return;
    }
    for seed in 0..24 {
        let mut random = Random(seed);
        let model = MODELS[seed as usize % MODELS.len()];
        let block_size = [16usize, 16, 32, 64][seed as usize % 4];
        let mut cache = Cache::new(&mut random, model, block_size, 200);
        let shapes: Vec<(usize, usize, MaskKind)> = (0..random.between(1, 3))
            .map(|_| {
                let query = random.pick(&[1, 1, 2, 5, 23]);
                let mask = random.pick(&[MaskKind::Causal, MaskKind::Causal, MaskKind::Bidirectional]);
                (random.pick(&[0, 3, 63, 64, 200, 255, 256, 520]), query, mask)
            })
            .collect();
        let sequences: Vec<_> =
            shapes.iter().map(|s| Sequence::random(&mut random, model, s.0 + s.1)).collect();
        let tables: Vec<_> = sequences.iter().map(|sequence| cache.store(sequence)).collect();
        let mut rows: Vec<_> = sequences
            .iter()
            .zip(&tables)
            .zip(&shapes)
            .map(|((sequence, table), &(context, query, mask))| Row { sequence, table, context, query, mask })
            .collect();
        rows.sort_by_key(|row| row.query == 1);
        let cut = Cut::random(&mut random, model);
        let out = attend(&mut random, &cache, &rows, cut);
        let mut token = 0;
        for row in &rows {
            for query in 0..row.query {
                for head in 0..model.heads() {
                    let (want, size) = slowly(model, row, query, head);
                    for d in 0..model.dim {
                        let got = model.act.widen(out[(token * model.heads() + head) * model.dim + d]);
                        let error = 2.5 * model.act.unit() * size[d] + 1e-5;
                        assert!(
                            (got - want[d]).abs() <= error,
                            "seed {seed} {model:?} {cut:?} context {} query {query} head {head} value {d}: {got}, not {}",
                            row.context,
                            want[d]
                        );
                    }
                }
                token += 1;
            }
        }
    }
}

#[test]
fn a_query_has_the_same_bits_as_decode_verify_and_prefill_however_the_step_is_cut() {
    if !emulator::available() {
        return;
    }
    for seed in 100..106 {
        let mut random = Random(seed);
        let model = MODELS[seed as usize % 3];
        let len = random.pick(&[300, 530, 700]);
        let sequence = Sequence::random(&mut random, model, len);
        let mate = Sequence::random(&mut random, model, 90);
        let first = len - 40;
        let mut reference: Option<Vec<u16>> = None;
        for block_size in [16usize, 32, 64] {
            let mut cache = Cache::new(&mut random, model, block_size, 120);
            let (table, mate_table) = (cache.store(&sequence), cache.store(&mate));
            for _ in 0..3 {
                // The last 40 queries, in pieces of any length, with mates between them.
                let mut rows = Vec::new();
                let mut at = first;
                while at < len {
                    let query = random.pick(&[1, 2, 5, 16, 33]).min(len - at);
                    let mask = MaskKind::Causal;
                    rows.push(Row { sequence: &sequence, table: &table, context: at, query, mask });
                    if random.below(3) == 0 {
                        let query = random.between(1, 20);
                        let context = random.below(90 - query);
                        rows.push(Row { sequence: &mate, table: &mate_table, context, query, mask });
                    }
                    at += query;
                }
                random.shuffle(&mut rows);
                rows.sort_by_key(|row| row.query == 1);
                let cut = Cut::random(&mut random, model);
                let out = attend(&mut random, &cache, &rows, cut);
                let width = model.heads() * model.dim;
                let mut found = vec![0u16; 40 * width];
                let mut token = 0;
                for row in &rows {
                    if std::ptr::eq(row.sequence, &sequence) {
                        let to = (row.context - first) * width;
                        found[to..to + row.query * width]
                            .copy_from_slice(&out[token * width..][..row.query * width]);
                    }
                    token += row.query;
                }
                let reference = reference.get_or_insert_with(|| found.clone());
                let different = found.iter().zip(&*reference).position(|(a, b)| a != b);
                assert_eq!(different, None, "seed {seed} {model:?} {cut:?} blocks of {block_size}");
            }
        }
    }
}

#[test]
fn what_later_tokens_hold_is_not_seen_even_if_it_is_no_number() {
    if !emulator::available() {
        return;
    }
    for seed in 200..208 {
        let mut random = Random(seed);
        let model = MODELS[seed as usize % MODELS.len()];
        let len = random.between(2, 300);
        let sound = Sequence::random(&mut random, model, len);
        let mut sick = Sequence::random(&mut Random(seed), model, len);
        (sick.q, sick.k, sick.v) = (sound.q.clone(), sound.k.clone(), sound.v.clone());
        (sick.k_scales, sick.v_scales) = (sound.k_scales.clone(), sound.v_scales.clone());
        // From here on, keys, values and scales are NaN or infinite.
        let healthy = random.between(1, len - 1);
        let from = healthy * model.kv_heads;
        let bad = if model.fp8 { 0x7f } else { random.pick(&[0x7f80, 0xffff, 0x7c00]) };
        sick.k[from * model.dim..].fill(bad);
        sick.v[from * model.dim..].fill(bad);
        sick.k_scales[from..].fill(f32::NAN);
        sick.v_scales[from..].fill(f32::INFINITY);
        let query = (len - healthy + random.below(healthy)).min(len);
        let mut outs = Vec::new();
        let cut = Cut::random(&mut random, model);
        for sequence in [&sound, &sick] {
            let mut cache = Cache::new(&mut random, model, 16, 40);
            let table = cache.store(sequence);
            let row = Row { sequence, table: &table, context: len - query, query, mask: MaskKind::Causal };
            let mut out = attend(&mut random, &cache, &[row], cut);
            out.truncate(healthy.saturating_sub(len - query) * model.heads() * model.dim);
            outs.push(out);
        }
        assert!(outs[0] == outs[1], "seed {seed} {model:?} {cut:?}: {healthy} of {len}, {query} queries");
    }
}

#[test]
fn pad_rows_are_not_read_nor_written() {
    if !emulator::available() {
        return;
    }
    let mut random = Random(7);
    let model = MODELS[0];
    let sequence = Sequence::random(&mut random, model, 40);
    let mut cache = Cache::new(&mut random, model, 16, 10);
    let table = cache.store(&sequence);
    let row = Row { sequence: &sequence, table: &table, context: 39, query: 1, mask: MaskKind::Causal };
    let pad = Row { query: 0, table: &[], ..row };
    let cut = Cut { rows: 16, at_once: 10, max_slots: 10, grid: 2 };
    let out = attend(&mut random, &cache, &[row, pad, pad], cut);
    let width = model.heads() * model.dim;
    assert!(out[..width].iter().all(|&x| x != 0xffff), "the live row was not written");
    assert!(out[width..].iter().all(|&x| x == 0xffff), "a pad row was written");
}
