//! What the tests stand on: random numbers, a cache of scattered blocks, sequences stored in it.
#![allow(dead_code)] // each test file uses a part

use pagedraft_attention::isa::Isa;
use pagedraft_attention::reference::Arithmetic;
use pagedraft_attention::{
    AttentionCall, AttentionMetadata, AttentionScratch, KvDtype, KvLayer, KvLayout, MaskKind,
    MetadataBuilder, TokenRows, WorkList,
};
use pagedraft_block_manager::BlockId;
use std::ops::Range;

pub use crate::random::Random as Rng;

/// The instruction sets of this machine with lanes of their own.
pub fn sets() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available() && !matches!(isa, Isa::Amx | Isa::Avx512Bf16)).collect()
}

/// Heads of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub kv: usize,
    pub group: usize,
    pub dim: usize,
}

impl Heads {
    pub fn q_width(&self) -> usize {
        self.kv * self.group * self.dim
    }
    pub fn kv_width(&self) -> usize {
        self.kv * self.dim
    }
    pub fn scale(&self) -> f32 {
        (self.dim as f32).sqrt().recip()
    }
}

/// A cache whose every byte is 0xff at first: a NaN in each element type.
pub struct Cache {
    _memory: Vec<u64>,
    pub layer: KvLayer,
    free: Vec<BlockId>,
}

impl Cache {
    pub fn new(layout: KvLayout, num_blocks: u32, rng: &mut Rng) -> Cache {
        let stride = layout.block_bytes() + 64;
        let mut memory = vec![u64::MAX; stride * num_blocks as usize / 8];
        let layer = unsafe { KvLayer::new(memory.as_mut_ptr().cast(), stride, num_blocks, layout) };
        let mut free: Vec<_> = (0..num_blocks).map(BlockId).collect();
        rng.shuffle(&mut free);
        Cache { _memory: memory, layer, free }
    }

    /// A cache with room for so many sequences of so many tokens.
    pub fn roomy(dtype: KvDtype, block_size: u32, heads: Heads, tokens: usize, rng: &mut Rng) -> Cache {
        let layout = KvLayout::new(dtype, block_size, heads.kv, heads.dim).unwrap();
        Cache::new(layout, (tokens as u32).div_ceil(block_size) * 2 + 64, rng)
    }

    pub fn block_size(&self) -> u32 {
        self.layer.layout().block_size()
    }

    /// Blocks for so many tokens, from anywhere.
    pub fn table(&mut self, tokens: usize) -> Vec<BlockId> {
        let blocks = tokens.div_ceil(self.block_size() as usize);
        self.free.split_off(self.free.len() - blocks)
    }

    pub fn slot(&self, table: &[BlockId], index: usize) -> i64 {
        let size = self.block_size() as usize;
        i64::from(table[index / size].0) * size as i64 + (index % size) as i64
    }

    /// Stores tokens `from ..` of a sequence.
    pub fn store(&self, isa: Isa, sequence: &Sequence, from: usize, to: usize, table: &[BlockId]) {
        let slots: Vec<_> = (from..to).map(|i| self.slot(table, i)).collect();
        let width = self.layer.layout().kv_heads() * self.layer.layout().head_dim();
        let k = TokenRows::new(&sequence.k[from * width..], width);
        let v = TokenRows::new(&sequence.v[from * width..], width);
        unsafe { self.layer.write(isa, &slots, k, v) }.unwrap();
    }
}

/// K, V and queries of a sequence.
pub struct Sequence {
    pub len: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Sequence {
    pub fn random(len: usize, heads: Heads, rng: &mut Rng) -> Sequence {
        let gain = rng.pick(&[0.2, 1.0, 4.0]);
        let q = rng.normals(len * heads.q_width()).iter().map(|x| x * gain).collect();
        let (k, v) = (rng.normals(len * heads.kv_width()), rng.normals(len * heads.kv_width()));
        Sequence { len, q, k, v }
    }
}

/// A metadata row to run: queries `context .. context + query` of a stored sequence.
pub struct Row<'a> {
    pub sequence: &'a Sequence,
    pub table: &'a [BlockId],
    pub context: usize,
    pub query: usize,
    pub mask: MaskKind,
}

/// Metadata and queries of rows in the right order.
pub fn step(rows: &[Row<'_>], heads: Heads, block_size: u32) -> (AttentionMetadata, Vec<f32>) {
    let mut builder = MetadataBuilder::new(block_size).unwrap();
    let mut q = Vec::new();
    for row in rows {
        builder.push_row(row.context as u32, row.query as u32, row.table, row.mask).unwrap();
        let width = heads.q_width();
        q.extend_from_slice(&row.sequence.q[row.context * width..(row.context + row.query) * width]);
    }
    (builder.finish().clone(), q)
}

/// Runs rows in one call, on `threads` threads, and gives the output of every token row.
pub fn attend(isa: Isa, cache: &Cache, rows: &[Row<'_>], heads: Heads, threads: usize) -> Vec<f32> {
    let (metadata, q) = step(rows, heads, cache.block_size());
    run(isa, cache, &metadata, &q, heads, threads)
}

/// Runs a step in one call, on `threads` threads, and gives the output of every token row.
pub fn run(
    isa: Isa,
    cache: &Cache,
    metadata: &AttentionMetadata,
    q: &[f32],
    heads: Heads,
    threads: usize,
) -> Vec<f32> {
    let mut work = WorkList::new();
    work.plan(metadata, heads.kv * heads.group, &cache.layer).unwrap();
    let mut out = vec![f32::NAN; q.len()];
    let width = heads.q_width();
    let q = TokenRows::new(q, width);
    let call =
        AttentionCall::new(isa, metadata, &work, cache.layer, heads.scale(), q, &mut out, width).unwrap();
    let call = &call;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut scratch = AttentionScratch::new();
                for item in (thread..call.num_items()).step_by(threads) {
                    unsafe { call.run_item(item, &mut scratch) };
                }
            });
        }
    });
    out
}

/// The same by the reference.
pub fn attend_slowly(isa: Isa, cache: &Cache, rows: &[Row<'_>], heads: Heads) -> Vec<f32> {
    let mut out = Vec::new();
    for row in rows {
        for i in row.context..row.context + row.query {
            let visible = match row.mask {
                MaskKind::Causal => i + 1,
                MaskKind::Bidirectional => row.context + row.query,
            };
            out.extend(query_slowly(isa, cache, row.table, row.sequence, i, 0..visible, heads));
        }
    }
    out
}

/// The output of query `i` of a sequence in all heads, where it sees the keys `seen`, by the reference.
pub fn query_slowly(
    isa: Isa,
    cache: &Cache,
    table: &[BlockId],
    sequence: &Sequence,
    i: usize,
    seen: Range<usize>,
    heads: Heads,
) -> Vec<f32> {
    let mut out = Vec::new();
    for head in 0..heads.kv * heads.group {
        let q = &sequence.q[i * heads.q_width() + head * heads.dim..][..heads.dim];
        let slot = |j: usize| {
            assert!(seen.contains(&j), "key {j} is not in {seen:?}");
            cache.slot(table, j) as u64
        };
        let kv = head / heads.group;
        out.extend(Arithmetic::of(isa).attend(
            q,
            seen.start,
            seen.end,
            heads.scale(),
            |j, d| unsafe { cache.layer.key(slot(j), kv, d) },
            |j, d| unsafe { cache.layer.value(slot(j), kv, d) },
        ));
    }
    out
}

#[track_caller]
pub fn assert_same_bits(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "{what}: element {i} is {a:e}, expected {b:e}");
    }
}
