//! Attention over a cache that is written by hand.

use pagedraft_attention::cuda::AttentionShape;
use pagedraft_attention::{MaskKind, MetadataBuilder};
use pagedraft_block_manager::BlockId;
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::cuda::{
    AttentionWork, Backend, CudaDevice, CudaOptions, InputLayout, KvStorage, Packer,
};
use pagedraft_model::{Dtype, StepInputs};

use super::{
    Finding, Nearness, Random, float, halves_at, launch, narrow, poison, same_bits, space, unit, widen, words,
};

/// Which contexts.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Length of each sequence, of at least [`LAST`] tokens.
    pub lengths: &'static [u32],
    /// KV blocks of the device.
    pub num_blocks: u32,
    /// How many times split contexts are repeated.
    pub times: usize,
}

/// How many of a sequence's last tokens are queries.
pub const LAST: u32 = 24;

/// What is stored of the sequences, as numbers: `[token][kv head][value]`.
struct Stored {
    k: Vec<f32>,
    v: Vec<f32>,
}

struct Attention<'a> {
    shape: AttentionShape,
    dtype: Dtype,
    work: AttentionWork,
    layout: InputLayout,
    lengths: &'a [u32],
    num_blocks: u32,
    stride: u64,
    cache: u64,
    q: u64,
    out: u64,
    inputs: u64,
    partial: u64,
    arrived: u64,
    counters: usize,
}

/// A row of a step: sequence, context, queries.
type Row = (usize, u32, u32);

/// Decode, verify and prefill rows of the same tokens have the same bits, which are right; long contexts repeat themselves.
/// The model has one layer.
pub fn check<B: Backend>(
    device: &mut CudaDevice<B>,
    config: &ModelConfig,
    options: &CudaOptions,
    sizes: Sizes,
) -> Vec<Finding> {
    let shape = device.geometry().attention;
    let (stride, cache) = (device.geometry().block_stride() as u64, device.cache());
    let b = device.backend();
    let work = AttentionWork::of(config, options, sizes.num_blocks, b.multiprocessors()).unwrap();
    let layout = InputLayout::of(options, &work);
    let (partial, counters) = work.workspace(options.token_rows as u32);
    let width = (shape.heads() * shape.head_dim()) as usize;
    let rows = options.token_rows;
    let a = Attention {
        shape,
        dtype: options.dtype,
        work,
        layout,
        lengths: sizes.lengths,
        num_blocks: sizes.num_blocks,
        stride,
        cache,
        q: space(b, 2 * rows * width),
        out: space(b, 2 * rows * width),
        inputs: space(b, 4 * layout.words()),
        partial: space(b, 4 * partial),
        arrived: space(b, 4 * counters),
        counters,
    };
    poison(b, a.partial, 4 * partial);
    let stored = a.store(b, options.kv);
    let name = |what: &str| {
        let (heads, kv_heads, d) = (shape.heads(), shape.kv_heads(), shape.head_dim());
        format!("attention {heads}/{kv_heads} heads of {d}, {:?}, KV {:?}: {what}", options.dtype, options.kv)
    };
    let all = |pieces: &[u32]| -> Vec<Row> {
        let mut rows = Vec::new();
        for (s, &length) in sizes.lengths.iter().enumerate() {
            let mut at = length - LAST;
            for &piece in pieces.iter().cycle() {
                let piece = piece.min(length - at);
                rows.push((s, at, piece));
                at += piece;
                if at == length {
                    break;
                }
            }
        }
        rows
    };
    let mut findings = Vec::new();
    let single = all(&[1]);
    let reference = a.run(b, &single);
    findings.push((name("right"), a.right(&stored, &single, &reference)));
    for pieces in [&[2u32][..], &[5], &[7, 2, 3], &[16], &[LAST]] {
        let rows = all(pieces);
        let got = a.run(b, &rows);
        let found =
            same_bits(&got, &reference, width, |bits| widen(a.dtype, bits as u16), || a.run(b, &rows));
        let longest = rows.iter().map(|row| row.2).max().unwrap();
        let rows = a.work.options(longest).rows;
        findings.push((
            name(&format!("rows of {pieces:?} tokens (attention_{rows}) have the bits of single ones")),
            found,
        ));
    }
    // Alone, a sequence is cut into more pieces than among others.
    for (s, &length) in sizes.lengths.iter().enumerate() {
        let alone = [(s, length - 1, 1)];
        let want = &reference[((s as u32 * LAST + LAST - 1) as usize * width)..][..width];
        let number = |bits: u32| widen(a.dtype, bits as u16);
        let mut found = Ok(());
        for time in 0..sizes.times.max(1) {
            let got = a.run(b, &alone);
            found = same_bits(&got, want, width, number, || a.run(b, &alone))
                .map_err(|why| format!("run {time}: {why}"));
            if found.is_err() {
                break;
            }
        }
        findings.push((
            name(&format!("{} runs of a context of {length} alone have its bits among others", sizes.times)),
            found,
        ));
    }
    let left = words(b, a.arrived, a.counters);
    let zero = if left.iter().all(|&count| count == 0) { Ok(()) } else { Err("some are not".to_owned()) };
    findings.push((name("counters are 0 again"), zero));
    findings
}

impl Attention<'_> {
    fn block_of(&self, sequence: usize, block: u32) -> BlockId {
        let before: u32 = self.lengths[..sequence].iter().map(|length| length.div_ceil(16)).sum();
        // Scattered; 7919 is a prime that divides no number of blocks here.
        BlockId((u64::from(before + block) * 7919 % u64::from(self.num_blocks)) as u32)
    }

    /// Writes the keys and values of all sequences; whatever else the cache has is NaN.
    fn store<B: Backend>(&self, b: &mut B, kv: KvStorage) -> Vec<Stored> {
        let (kv_heads, d) = (self.shape.kv_heads() as usize, self.shape.head_dim() as usize);
        let fp8 = kv == KvStorage::Fp8;
        let (row, head_bytes) = (d * if fp8 { 1 } else { 2 }, self.shape.part_bytes() / kv_heads);
        let mut random = Random(8);
        let mut bytes = vec![0xffu8; self.stride as usize * self.num_blocks as usize];
        let mut stored = Vec::new();
        for (s, &length) in self.lengths.iter().enumerate() {
            let mut halves = [Vec::new(), Vec::new()];
            for token in 0..length {
                let block = self.block_of(s, token / 16).0 as usize * self.stride as usize;
                let token = token as usize % 16;
                for head in 0..kv_heads {
                    for (half, numbers) in halves.iter_mut().enumerate() {
                        let start = block + head * head_bytes + half * 16 * row + token * row;
                        let scale = if fp8 { 0.2 + (random.value() + 1.0) * 0.4 } else { 1.0 };
                        for i in 0..d {
                            if fp8 {
                                // Any finite code of a magnitude below 2.
                                let code = (random.next() as u8 & 0x80) | (random.next() as u8 & 0x3f);
                                bytes[start + i] = code;
                                numbers.push(e4m3(code) * scale);
                            } else {
                                let bits = narrow(self.dtype, random.value() * 1.5);
                                bytes[start + 2 * i..][..2].copy_from_slice(&bits.to_le_bytes());
                                numbers.push(widen(self.dtype, bits));
                            }
                        }
                        if fp8 {
                            let at = block + head * head_bytes + 2 * 16 * row + half * 64 + token * 4;
                            bytes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
                        }
                    }
                }
            }
            let [k, v] = halves;
            stored.push(Stored { k, v });
        }
        b.write(self.cache, &bytes).unwrap();
        stored
    }

    /// The query of a token in all heads.
    fn query(&self, sequence: usize, position: u32) -> Vec<u16> {
        let mut random = Random((sequence as u64) << 32 | u64::from(position));
        let width = (self.shape.heads() * self.shape.head_dim()) as usize;
        (0..width).map(|_| narrow(self.dtype, random.value() * 2.0)).collect()
    }

    /// The output of a step, a number a word.
    fn run<B: Backend>(&self, b: &mut B, rows: &[Row]) -> Vec<u32> {
        let mut builder = MetadataBuilder::new(16).unwrap();
        let (mut positions, mut queries) = (Vec::new(), Vec::new());
        for &(s, context, count) in rows {
            let blocks = (context + count).div_ceil(16);
            let table: Vec<_> = (0..blocks).map(|block| self.block_of(s, block)).collect();
            builder.push_row(context, count, &table, MaskKind::Causal).unwrap();
            for position in context..context + count {
                positions.push(position);
                queries.extend(self.query(s, position).into_iter().flat_map(u16::to_le_bytes));
            }
        }
        let inputs = StepInputs::dense(vec![0; positions.len()], positions, builder.finish().clone());
        let longest = inputs.metadata().max_query_len;
        let mut packed = vec![0u32; self.layout.words()];
        let pool = (self.num_blocks, 16);
        let items = Packer::new(self.layout)
            .pack(&inputs, None, pool, (&self.work, longest), &mut packed)
            .unwrap()
            .items;
        let bytes: Vec<u8> = packed.iter().flat_map(|word| word.to_le_bytes()).collect();
        b.write(self.inputs, &bytes).unwrap();
        b.write(self.q, &queries).unwrap();
        poison(b, self.out, queries.len());
        let how = self.work.launch(longest, items);
        let word = |word: usize| self.inputs + 4 * word as u64;
        let arguments = [
            self.q,
            self.out,
            self.cache,
            word(0),
            word(self.layout.items()),
            word(self.layout.num_items()),
            self.partial,
            self.arrived,
            self.stride,
            float(self.scale()),
        ];
        let grid = [how.grid, self.shape.kv_heads(), 1];
        launch(b, how.kernel(), grid, (128, self.shape.shared_bytes(how.rows)), &arguments);
        halves_at(b, self.out, queries.len() / 2).into_iter().map(u32::from).collect()
    }

    fn scale(&self) -> f32 {
        (self.shape.head_dim() as f32).sqrt().recip()
    }

    fn right(&self, stored: &[Stored], rows: &[Row], got: &[u32]) -> Result<(), String> {
        let (heads, kv_heads) = (self.shape.heads() as usize, self.shape.kv_heads() as usize);
        let (d, mut near) = (self.shape.head_dim() as usize, Nearness::default());
        for (token, &(s, context, _)) in
            rows.iter().enumerate().filter(|(token, _)| token % 7 == 0 || token % 24 == 23)
        {
            let q = self.query(s, context);
            for head in (0..heads).filter(|head| head % 3 == token % 3) {
                let q: Vec<f64> =
                    q[head * d..][..d].iter().map(|&bits| f64::from(widen(self.dtype, bits))).collect();
                let at = |key: usize| (key * kv_heads + head * kv_heads / heads) * d;
                let scores: Vec<f64> = (0..=context as usize)
                    .map(|key| {
                        let k = &stored[s].k[at(key)..][..d];
                        q.iter().zip(k).map(|(q, &k)| q * f64::from(k)).sum::<f64>() * f64::from(self.scale())
                    })
                    .collect();
                let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..d {
                    let (mut sum, mut size) = (0.0, 0.0);
                    for (key, weight) in weights.iter().enumerate() {
                        let v = f64::from(stored[s].v[at(key) + i]) * weight / total;
                        sum += v;
                        size += v.abs();
                    }
                    let out = widen(self.dtype, got[(token * heads + head) * d + i] as u16);
                    let place = || format!("sequence {s}, position {context}, head {head}, value {i}");
                    near.add(place, f64::from(out), sum, 2.5 * unit(self.dtype) * size + 1e-5);
                }
            }
        }
        near.verdict()
    }
}

/// An 8-bit number (4 bits of exponent, 3 of fraction) that is no NaN.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => fraction / 512.0,
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}
