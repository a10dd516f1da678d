//! How much attention some queries pay to each key of their sequence.
//!
//! Attention itself never writes down its weights. What judges tokens by the attention that they get asks for them here: for a few
//! queries, in one layer, after the keys have been stored. The result is the same to the bit on every instruction set and with any number
//! of threads, because it is made of single multiplications and additions in one order.

use pagedraft_block_manager::BlockId;

use crate::error::AttentionError;
use crate::isa::{Isa, Kernel};
use crate::kv_layer::KvLayer;
use crate::lanes::Lanes;

/// How the weights of several query heads become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MassOver {
    /// Those of all queries and heads are added up: a number a key.
    Sum,
    /// The greatest of all heads: a number a query and key.
    Greatest,
}

/// The last queries of a sequence, in one layer.
#[derive(Clone, Copy, Debug)]
pub struct MassCall<'a> {
    layer: KvLayer,
    table: &'a [BlockId],
    keys: usize,
    q: &'a [f32],
    queries: usize,
    heads: usize,
    scale: f32,
    over: MassOver,
}

/// Queries whose weights are computed side by side.
const TOGETHER: usize = 8;

/// Keys whose scores stay in the cache while they are computed.
const TILE: usize = 512;

impl<'a> MassCall<'a> {
    /// The queries `q` (`[queries, heads * head_dim]`, rotated) are those of the last tokens of a sequence of `keys` tokens, whose keys lie
    /// in the blocks of `table`. Query i of m sees the keys up to its own, of index `keys - m + i`.
    ///
    /// # Errors
    ///
    /// [`AttentionError::SmallBuffer`] for queries that are no rows or more than there are keys, or a table that is too short,
    /// [`AttentionError::NoSuchBlock`], [`AttentionError::Shape`].
    pub fn new(
        layer: KvLayer,
        table: &'a [BlockId],
        keys: usize,
        (q, heads): (&'a [f32], usize),
        scale: f32,
        over: MassOver,
    ) -> Result<Self, AttentionError> {
        let (kv_heads, head_dim) = (layer.layout().kv_heads(), layer.layout().head_dim());
        if heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Shape { heads, kv_heads, head_dim });
        }
        let queries = q.len() / (heads * head_dim);
        if q.len() != queries * heads * head_dim || queries > keys {
            let needed = queries.min(keys) * heads * head_dim;
            return Err(AttentionError::SmallBuffer { buffer: "q", found: q.len(), needed });
        }
        let blocks = keys.div_ceil(layer.layout().block_size() as usize);
        let Some(used) = table.get(..blocks) else {
            return Err(AttentionError::SmallBuffer { buffer: "table", found: table.len(), needed: blocks });
        };
        if let Some(&BlockId(block)) = used.iter().find(|block| block.0 >= layer.num_blocks()) {
            let num_blocks = layer.num_blocks();
            return Err(AttentionError::NoSuchBlock { row: 0, block, num_blocks });
        }
        Ok(Self { layer, table: used, keys, q, queries, heads, scale, over })
    }

    /// How many items there are to run: one for each key head.
    #[must_use]
    pub fn num_items(&self) -> usize {
        self.layer.layout().kv_heads()
    }

    /// The numbers that an item gives.
    #[must_use]
    pub fn item_len(&self) -> usize {
        match self.over {
            MassOver::Sum => self.keys,
            MassOver::Greatest => self.queries * self.keys,
        }
    }

    /// Puts what the query heads of one key head give into `out`, which has [`item_len`](Self::item_len) zeroes.
    ///
    /// # Safety
    ///
    /// Nobody writes the sequence's keys during the call.
    ///
    /// # Panics
    ///
    /// If this machine lacks the instruction set, or `out` is shorter.
    pub unsafe fn run_item(&self, isa: Isa, item: usize, out: &mut [f32]) {
        let (size, dim) = (self.layer.layout().block_size() as usize, self.layer.layout().head_dim());
        let mut keys = vec![0.0; dim * self.keys];
        for (j, block) in (0..self.keys).map(|j| (j, self.table[j / size])) {
            let slot = u64::from(block.0) * size as u64 + (j % size) as u64;
            for d in 0..dim {
                // SAFETY: the block exists, head and d are those of the layout, and nobody writes the key.
                keys[d * self.keys + j] = unsafe { self.layer.key(slot, item, d) };
            }
        }
        isa.run(Weights { call: self, head: item, keys: &keys, out });
    }

    /// Adds up what the items gave, item 0 first, in `out`, which has [`item_len`](Self::item_len) values. Numbers of queries are put
    /// together first.
    pub fn combine(&self, items: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        for item in items.chunks_exact(self.item_len().max(1)) {
            for (out, &x) in out.iter_mut().zip(item) {
                *out = match self.over {
                    MassOver::Sum => *out + x,
                    MassOver::Greatest => out.max(x),
                };
            }
        }
    }
}

/// The weights of the query heads of one key head. `keys` has all keys' first values, then all second ones, and so on.
struct Weights<'a> {
    call: &'a MassCall<'a>,
    head: usize,
    keys: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Weights<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let MassCall { keys: n, q, queries, heads, scale, over, .. } = *self.call;
        let dim = self.keys.len() / n.max(1);
        let group = heads / self.call.num_items();
        let mut scores = vec![0.0f32; TOGETHER * n];
        for head in self.head * group..(self.head + 1) * group {
            for first in (0..queries).step_by(TOGETHER) {
                let rows = TOGETHER.min(queries - first);
                scores.fill(0.0);
                let mut tile = 0;
                while tile < n {
                    let end = (tile + TILE).min(n);
                    for i in 0..rows {
                        let query = &q[((first + i) * heads + head) * dim..][..dim];
                        let row = &mut scores[i * n + tile..i * n + end];
                        for (d, &x) in query.iter().enumerate() {
                            let keys = &self.keys[d * n + tile..d * n + end];
                            for (score, &key) in row.iter_mut().zip(keys) {
                                *score += x * key;
                            }
                        }
                    }
                    tile = end;
                }
                for i in 0..rows {
                    let visible = n - queries + first + i + 1;
                    let row = &mut scores[i * n..i * n + visible];
                    softmax(row, scale);
                    let out = match over {
                        MassOver::Sum => &mut self.out[..visible],
                        MassOver::Greatest => &mut self.out[(first + i) * n..][..visible],
                    };
                    for (out, &weight) in out.iter_mut().zip(row.iter()) {
                        *out = if over == MassOver::Sum { *out + weight } else { out.max(weight) };
                    }
                }
            }
        }
    }
}

/// Sixteen partial sums, which are added in order.
#[inline(always)]
fn sum(row: &[f32]) -> f32 {
    let mut parts = [0.0f32; 16];
    let (sixteens, rest) = row.as_chunks::<16>();
    for sixteen in sixteens {
        for (part, &x) in parts.iter_mut().zip(sixteen) {
            *part += x;
        }
    }
    parts.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

#[inline(always)]
fn softmax(row: &mut [f32], scale: f32) {
    let mut most = [f32::NEG_INFINITY; 16];
    let (sixteens, rest) = row.as_chunks::<16>();
    for sixteen in sixteens {
        for (most, &x) in most.iter_mut().zip(sixteen) {
            *most = if x > *most { x } else { *most };
        }
    }
    let greatest = most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    // A negative scale turns the order round; no model has one.
    for x in row.iter_mut() {
        *x = exp((*x - greatest) * scale);
    }
    let share = 1.0 / sum(row);
    for x in row.iter_mut() {
        *x *= share;
    }
}

/// e to the power of x, within two in ten million, of single multiplications and additions. NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Added to a small number, it leaves the number's integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.33 { -87.33 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4;
    let r = r + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let y = p * (r * r) + r + 1.0;
    y * f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23)
}
