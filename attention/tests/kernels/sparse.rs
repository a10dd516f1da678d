//! Sparse attention against its twin, bit for bit: selections and outputs, whatever the step around a row looks like.

use pagedraft_attention::isa::Isa;
use pagedraft_attention::reference::Arithmetic;
use pagedraft_attention::sparse::{
    IndexShape, LatentCall, LatentScores, LatentScratch, LatentShape, SelectCall, SelectScratch,
    SelectionView, SparseRows, VectorDtype, VectorLayer, VectorLayout, fp8, reference::best,
};
use pagedraft_attention::{AttentionMetadata, KvDtype, MaskKind, MetadataBuilder, TokenRows};
use pagedraft_block_manager::BlockId;

use crate::world::{Rng, sets};

/// A cache of vectors whose every byte is 0xff at first: a NaN in each element type.
struct Vectors {
    _memory: Vec<u64>,
    layer: VectorLayer,
}

impl Vectors {
    fn new(layout: VectorLayout, num_blocks: u32) -> Vectors {
        let stride = layout.block_bytes() + 32;
        let mut memory = vec![u64::MAX; stride * num_blocks as usize / 8 + 8];
        let layer = unsafe { VectorLayer::new(memory.as_mut_ptr().cast(), stride, num_blocks, layout) };
        Vectors { _memory: memory, layer }
    }

    fn slot(&self, table: &[BlockId], index: usize) -> u64 {
        let size = self.layer.layout().block_size() as usize;
        u64::from(table[index / size].0) * size as u64 + (index % size) as u64
    }

    fn store(&self, isa: Isa, table: &[BlockId], values: &[f32]) {
        let width = self.layer.layout().width();
        let slots: Vec<i64> = (0..values.len() / width).map(|i| self.slot(table, i) as i64).collect();
        unsafe { self.layer.write(isa, &slots, TokenRows::new(values, width)) }.unwrap();
    }

    fn vector(&self, table: &[BlockId], index: usize) -> Vec<f32> {
        let slot = self.slot(table, index);
        (0..self.layer.layout().width()).map(|d| unsafe { self.layer.value(slot, d) }).collect()
    }
}

/// Shapes of one case.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dtype: KvDtype,
    keys: VectorDtype,
    hadamard: bool,
    block_size: u32,
    heads: usize,
    rank: usize,
    rope: usize,
    nope: usize,
    index_heads: usize,
    index_dim: usize,
    k: usize,
}

/// A sequence: its keys as stored, and a query for each of its tokens.
struct Sequence {
    table: Vec<BlockId>,
    len: usize,
    index_q: Vec<f32>,
    index_w: Vec<f32>,
    absorbed: Vec<f32>,
    q: Vec<f32>,
}

struct Case {
    shape: Shape,
    keys: Vectors,
    latents: Vectors,
    sequences: Vec<Sequence>,
    scale: f32,
    index_scale: f32,
}

/// What scores are like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scores {
    Random,
    /// Few different keys.
    Tied,
    /// All weights are 0.
    Zero,
    /// All keys are the same.
    Equal,
}

impl Case {
    fn new(shape: Shape, lens: &[usize], scores: Scores, rng: &mut Rng) -> Case {
        let blocks: u32 = lens.iter().map(|&len| (len as u32).div_ceil(shape.block_size)).sum();
        let num_blocks = blocks + 7;
        let layout = |dtype, width| VectorLayout::new(dtype, shape.block_size, width).unwrap();
        let keys = Vectors::new(layout(shape.keys, shape.index_dim), num_blocks);
        let latents = VectorDtype::Plain(shape.dtype);
        let latents = Vectors::new(layout(latents, shape.rank + shape.rope), num_blocks);
        let mut free: Vec<BlockId> = (0..num_blocks).map(BlockId).collect();
        rng.shuffle(&mut free);
        let isa = Isa::detect();
        let kinds: Vec<Vec<f32>> = (0..3).map(|_| rng.normals(shape.index_dim)).collect();
        let sequences = lens.iter().map(|&len| {
            let table = free.split_off(free.len() - len.div_ceil(shape.block_size as usize));
            let index_keys: Vec<f32> = (0..len)
                .flat_map(|_| match scores {
                    Scores::Random | Scores::Zero => rng.normals(shape.index_dim),
                    Scores::Tied => kinds[rng.below(3)].clone(),
                    Scores::Equal => kinds[0].clone(),
                })
                .collect();
            keys.store(isa, &table, &index_keys);
            latents.store(isa, &table, &rng.normals(len * (shape.rank + shape.rope)));
            let mut index_w = rng.normals(len * shape.index_heads);
            if scores == Scores::Zero {
                index_w.fill(0.0);
            }
            Sequence {
                table,
                len,
                index_q: rng.normals(len * shape.index_heads * shape.index_dim),
                index_w,
                absorbed: rng.normals(len * shape.heads * shape.rank),
                q: rng.normals(len * shape.heads * (shape.nope + shape.rope)),
            }
        });
        let sequences = sequences.collect();
        Case { shape, keys, latents, sequences, scale: 0.21, index_scale: 0.37 }
    }

    /// What the twin scores the keys of token `t` of a sequence.
    fn scores(&self, isa: Isa, sequence: &Sequence, t: usize) -> Vec<f32> {
        let s = self.shape;
        let arithmetic = Arithmetic::of(isa);
        let iq = s.index_heads * s.index_dim;
        let mut index_q = sequence.index_q[t * iq..(t + 1) * iq].to_vec();
        let index_w = &sequence.index_w[t * s.index_heads..(t + 1) * s.index_heads];
        let mut weights: Vec<f32> = index_w.iter().map(|weight| self.index_scale * weight).collect();
        for (head, weight) in index_q.chunks_exact_mut(s.index_dim).zip(&mut weights) {
            if s.hadamard {
                fp8::hadamard(head);
            }
            if let VectorDtype::Fp8 { power_of_two } = s.keys {
                let scale = fp8::scale_of(head, power_of_two);
                head.iter_mut().for_each(|x| *x = value_of(fp8::to_e4m3(*x / scale)));
                *weight *= scale;
            }
        }
        let score = |j| {
            let key = self.keys.vector(&sequence.table, j);
            let key_scale = unsafe { self.keys.layer.scale(self.keys.slot(&sequence.table, j)) };
            let score = arithmetic.index_score(&index_q, &weights, 1.0, &key);
            if let VectorDtype::Fp8 { .. } = s.keys { score * key_scale } else { score }
        };
        (0..=t).map(score).collect()
    }

    /// What the twin chooses and computes for token `t` of a sequence.
    fn expected(&self, isa: Isa, sequence: &Sequence, t: usize) -> (Vec<u32>, Vec<f32>) {
        let s = self.shape;
        let (arithmetic, head) = (Arithmetic::of(isa), s.nope + s.rope);
        let list = best(&self.scores(isa, sequence, t), s.k);
        let latents: Vec<Vec<f32>> =
            list.iter().map(|&j| self.latents.vector(&sequence.table, j as usize)).collect();
        let mut out = Vec::new();
        for h in 0..s.heads {
            let absorbed = (t * s.heads + h) * s.rank;
            let rotated = (t * s.heads + h) * head + s.nope;
            let mut q = sequence.absorbed[absorbed..absorbed + s.rank].to_vec();
            q.extend(&sequence.q[rotated..rotated + s.rope]);
            out.extend(arithmetic.attend_list(&q, s.rank, self.scale, list.len(), |j, d| latents[j][d]));
        }
        (list, out)
    }

    /// Runs one step of these rows (sequence, first token, tokens), in this order of items; what each token row chose and got.
    fn run(
        &self,
        isa: Isa,
        rows: &[(usize, usize, usize)],
        pads: usize,
        backwards: bool,
    ) -> Vec<(Vec<u32>, Vec<f32>)> {
        let s = self.shape;
        let mut builder = MetadataBuilder::new(s.block_size).unwrap();
        builder.begin();
        for &(sequence, first, count) in rows {
            let table = &self.sequences[sequence].table;
            let blocks = (first + count).div_ceil(s.block_size as usize);
            builder.push_row(first as u32, count as u32, &table[..blocks], MaskKind::Causal).unwrap();
        }
        for _ in 0..pads {
            builder.push_pad_row(1).unwrap();
        }
        let metadata: &AttentionMetadata = builder.finish();
        let widths =
            [s.index_heads * s.index_dim, s.index_heads, s.heads * s.rank, s.heads * (s.nope + s.rope)];
        let mut buffers = widths.map(|_| Vec::new());
        for &(sequence, first, count) in rows {
            let sequence = &self.sequences[sequence];
            let all = [&sequence.index_q, &sequence.index_w, &sequence.absorbed, &sequence.q];
            for ((buffer, all), width) in buffers.iter_mut().zip(all).zip(widths) {
                buffer.extend_from_slice(&all[first * width..(first + count) * width]);
            }
        }
        let tokens = rows.iter().map(|row| row.2).sum::<usize>();
        for (buffer, width) in buffers.iter_mut().zip(widths) {
            buffer.extend(std::iter::repeat_n(f32::NAN, pads * width));
        }
        let mut plan = SparseRows::new();
        plan.plan(metadata, s.block_size, self.keys.layer.num_blocks()).unwrap();
        assert_eq!(plan.rows().len(), tokens, "pad rows are left out");
        let all = tokens + pads;
        let (mut positions, mut lens) = (vec![u32::MAX; all * s.k], vec![0u32; all]);
        let (mut stats, mut scores) = (vec![f32::NAN; all * 3], vec![f32::NAN; all * s.k]);
        let selection = SelectionView::new(&mut positions, &mut lens, s.k);
        // The figures of scores are kept always, and each score in every second run.
        let each = if backwards { scores.as_mut_ptr() } else { std::ptr::null_mut() };
        let selection = unsafe { selection.with_scores(stats.as_mut_ptr(), each) };
        let of = |i: usize| TokenRows::new(&buffers[i], widths[i]);
        let index = IndexShape { heads: s.index_heads, scale: self.index_scale, hadamard: s.hadamard };
        let select =
            SelectCall::new(isa, metadata, &plan, self.keys.layer, index, of(0), of(1), selection).unwrap();
        let mut scratch = SelectScratch::default();
        let order = |n: usize| (0..n).map(move |i| if backwards { n - 1 - i } else { i });
        // As threads share an item, where there are few.
        let parts = if pads > 0 { 3 } else { 1 };
        for item in order(select.num_items()) {
            if parts == 1 {
                unsafe { select.run_item(item, &mut scratch) };
                continue;
            }
            let mut others = [SelectScratch::default(), SelectScratch::default()];
            unsafe {
                select.run_part(item, (0, parts), &mut scratch);
                for (part, other) in others.iter_mut().enumerate() {
                    select.run_part(item, (part + 1, parts), other);
                }
                let [second, third] = &others;
                select.join(item, &mut scratch, &[second, third]);
            }
        }
        let queries = rows.iter().flat_map(|&(i, first, count)| (first..first + count).map(move |t| (i, t)));
        for (r, (i, t)) in queries.enumerate() {
            let (chosen, kept) = unsafe { (selection.row(r), selection.scores(r)) };
            // A row that takes all of its keys has their scores too.
            let kept = kept.unwrap();
            let all = self.scores(isa, &self.sequences[i], t);
            let own: Vec<f32> = chosen.iter().map(|&key| all[key as usize]).collect();
            let (min, max) = own.iter().fold((f32::MAX, f32::MIN), |(a, b), &s| (a.min(s), b.max(s)));
            let mean = own.iter().copied().map(f64::from).sum::<f64>() / own.len() as f64;
            assert_eq!((kept.min, kept.mean, kept.max), (min, mean as f32, max), "token {t}");
            assert_eq!(kept.each, if backwards { &own[..] } else { &[] }, "token {t}");
        }
        let shape = LatentShape {
            heads: s.heads,
            rank: s.rank,
            rotated_stride: s.nope + s.rope,
            rotated_offset: s.nope,
            scale: self.scale,
        };
        let width = s.heads * s.rank;
        let mut out = vec![f32::NAN; all * width];
        let attend = LatentCall::new(
            isa,
            metadata,
            &plan,
            self.latents.layer,
            selection,
            shape,
            of(2),
            of(3),
            &mut out,
            width,
        )
        .unwrap();
        // In every second run rows that take all of their keys share the tiles.
        let attend = if backwards { attend.share_tiles(1) } else { attend };
        let mut scratch = LatentScratch::default();
        let mut scores = LatentScores::default();
        scores.prepare(&attend);
        for item in order(attend.num_items()) {
            if parts == 1 {
                unsafe { attend.run_item(item, &mut scratch) };
                continue;
            }
            for part in order(parts) {
                unsafe { attend.score_part(item, (part, parts), &scores, &mut scratch) };
            }
            for part in order(parts) {
                unsafe { attend.sum_part(item, (part, parts), &scores, &mut scratch) };
            }
        }
        assert!(out[tokens * width..].iter().all(|x| x.is_nan()), "a pad row was written");
        (0..tokens)
            .map(|r| (unsafe { selection.row(r) }.to_vec(), out[r * width..(r + 1) * width].to_vec()))
            .collect()
    }
}

/// The value of an e4m3 by its definition.
fn value_of(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7) / 8.0);
    let size = if exponent == 0 { fraction / 64.0 } else { (1.0 + fraction) * 2f32.powi(exponent - 7) };
    if bits >> 7 == 1 { -size } else { size }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn shape(rng: &mut Rng) -> Shape {
    let dtype = rng.pick(&[KvDtype::F32, KvDtype::F16, KvDtype::Bf16]);
    let keys = rng.pick(&[
        VectorDtype::Plain(dtype),
        VectorDtype::Fp8 { power_of_two: false },
        VectorDtype::Fp8 { power_of_two: true },
    ]);
    let index_dim = rng.pick(&[4, 16, 20, 32]);
    Shape {
        dtype,
        keys,
        hadamard: index_dim != 20 && rng.below(2) == 0,
        block_size: rng.pick(&[16, 32, 64]),
        heads: rng.pick(&[1, 2, 3, 4, 16, 17, 35]),
        rank: rng.pick(&[5, 16, 24, 32, 48, 80]),
        rope: rng.pick(&[2, 8, 16]),
        nope: rng.pick(&[0, 3, 16]),
        index_heads: rng.pick(&[1, 4, 16, 20, 33]),
        index_dim,
        k: rng.pick(&[1, 7, 32, 64, 100]),
    }
}

#[test]
fn selections_and_outputs_are_those_of_the_twin_on_random_steps() {
    let seed = 20_261_130;
    println!("seed {seed}");
    let mut rng = Rng(seed);
    for case in 0..60 {
        let shape = shape(&mut rng);
        let scores = [Scores::Random, Scores::Tied, Scores::Zero, Scores::Equal][case % 4];
        // Shorter than k, k, k + 1, one token, and block borders.
        let block = shape.block_size as usize;
        let lens = [
            1,
            shape.k,
            shape.k + 1,
            block,
            block + 1,
            rng.between(1, 300),
            shape.k.saturating_sub(1).max(1),
        ];
        let world = Case::new(shape, &lens, scores, &mut rng);
        let mut rows: Vec<(usize, usize, usize)> = world
            .sequences
            .iter()
            .enumerate()
            .map(|(i, sequence)| {
                let count = rng.between(1, sequence.len.min(9));
                (i, sequence.len - count, count)
            })
            .collect();
        rng.shuffle(&mut rows);
        // Rows of several tokens come first.
        rows.sort_by_key(|row| row.2 == 1);
        let pads = rng.below(3);
        for isa in sets() {
            let found = world.run(isa, &rows, pads, case % 2 == 1);
            let tokens =
                rows.iter().flat_map(|&(i, first, count)| (first..first + count).map(move |t| (i, t)));
            for ((i, t), (list, out)) in tokens.zip(&found) {
                let (expected, values) = world.expected(isa, &world.sequences[i], t);
                assert_eq!(list, &expected, "case {case} on {isa}: {shape:?}, {scores:?}, token {t}");
                assert_eq!(
                    bits(out),
                    bits(&values),
                    "case {case} on {isa}: {shape:?}, {scores:?}, token {t}"
                );
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_chunks_and_beside_others() {
    let seed = 77;
    println!("seed {seed}");
    let mut rng = Rng(seed);
    for case in 0..8 {
        let shape = Shape { k: 40, ..shape(&mut rng) };
        let world = Case::new(shape, &[150, 97, 3], Scores::Random, &mut rng);
        for isa in sets() {
            let whole = world.run(isa, &[(0, 0, 150), (1, 0, 97), (2, 0, 3)], 0, false);
            for chunk in [1, 7, 64] {
                let mut first = 0;
                while first < 150 {
                    let count = chunk.min(150 - first);
                    let mate = (1, 96, 1);
                    let found = world.run(isa, &[(0, first, count), mate], 2, chunk == 7);
                    for (r, (list, out)) in found[..count].iter().enumerate() {
                        let (expected, values) = &whole[first + r];
                        assert_eq!(list, expected, "case {case} on {isa}, token {}", first + r);
                        assert_eq!(bits(out), bits(values), "case {case} on {isa}, token {}", first + r);
                    }
                    first += count;
                }
            }
        }
    }
}

#[test]
fn a_context_of_no_more_keys_than_k_is_attended_densely() {
    let mut rng = Rng(5);
    let shape = Shape { k: 1000, ..shape(&mut rng) };
    let mut world = Case::new(shape, &[200], Scores::Random, &mut rng);
    let dense = world.run(Isa::detect(), &[(0, 0, 200)], 0, false);
    for (t, (list, _)) in dense.iter().enumerate() {
        assert!(list.iter().copied().eq(0..=t as u32));
    }
    world.shape.k = 200;
    let same = world.run(Isa::detect(), &[(0, 0, 200)], 0, false);
    assert!(dense.iter().zip(&same).all(|(a, b)| bits(&a.1) == bits(&b.1)));
}

#[test]
fn the_twin_agrees_with_f64() {
    let mut rng = Rng(9);
    let arithmetic = Arithmetic::of(Isa::detect());
    let (width, rank, n) = (40, 32, 150);
    let (q, latents) = (rng.normals(width), rng.normals(n * width));
    let found = arithmetic.attend_list(&q, rank, 0.2, n, |j, d| latents[j * width + d]);
    let dot = |j: usize| (0..width).map(|d| f64::from(q[d]) * f64::from(latents[j * width + d])).sum::<f64>();
    let weights: Vec<f64> = (0..n).map(|j| (0.2 * dot(j)).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (d, found) in found.iter().enumerate() {
        let expected = (0..n).map(|j| weights[j] * f64::from(latents[j * width + d])).sum::<f64>() / total;
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{d}: {found} {expected}");
    }
    let (heads, dim) = (5, 12);
    let (q, weights, key) = (rng.normals(heads * dim), rng.normals(heads), rng.normals(dim));
    let found = arithmetic.index_score(&q, &weights, 0.3, &key);
    let relu =
        |h: usize| (0..dim).map(|d| f64::from(q[h * dim + d]) * f64::from(key[d])).sum::<f64>().max(0.0);
    let expected: f64 = (0..heads).map(|h| 0.3 * f64::from(weights[h]) * relu(h)).sum();
    assert!((f64::from(found) - expected).abs() < 1e-5);
}

#[test]
fn keys_in_fp8_score_nearly_the_same_and_choose_mostly_the_same_keys() {
    let seed = 31;
    println!("seed {seed}");
    let mut rng = Rng(seed);
    let (heads, dim, n, k) = (16, 128, 2000, 200);
    let arithmetic = Arithmetic::of(Isa::detect());
    // Of each vector some values are far greater than the others, as real ones are: that is what the transform is for.
    let mut vectors = |count: usize| -> Vec<f32> {
        let mut all = rng.normals(count * dim);
        all.chunks_exact_mut(dim).for_each(|vector| (0..4).for_each(|i| vector[i * 31] *= 12.0));
        all
    };
    let (q, keys) = (vectors(heads), vectors(n));
    let weights: Vec<f32> = (0..heads).map(|h| 0.2 + 0.1 * h as f32).collect();
    let scores = |rounded: bool, hadamard: bool| -> Vec<f32> {
        let prepare = |vectors: &[f32]| -> Vec<f32> {
            let mut all = vectors.to_vec();
            for vector in all.chunks_exact_mut(dim) {
                if hadamard {
                    fp8::hadamard(vector);
                }
                if rounded {
                    let scale = fp8::scale_of(vector, true);
                    vector.iter_mut().for_each(|x| *x = value_of(fp8::to_e4m3(*x / scale)) * scale);
                }
            }
            all
        };
        let q = prepare(&q);
        prepare(&keys).chunks_exact(dim).map(|key| arithmetic.index_score(&q, &weights, 0.1, key)).collect()
    };
    let exact = scores(false, false);
    let greatest = exact.iter().fold(0.0f32, |most, score| most.max(score.abs()));
    let turned = scores(false, true);
    let off = |found: &[f32]| {
        let worst = exact.iter().zip(found).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        worst / greatest
    };
    assert!(off(&turned) < 1e-5, "without rounding the transform changes nothing: {}", off(&turned));
    let chosen = best(&exact, k);
    for hadamard in [false, true] {
        let found = scores(true, hadamard);
        let list = best(&found, k);
        let same = list.iter().filter(|at| chosen.binary_search(at).is_ok()).count();
        println!("hadamard {hadamard}: off by {:.4} of the greatest, {same} of {k} the same", off(&found));
        assert!(off(&found) < 0.06, "{}", off(&found));
        assert!(same * 100 >= 90 * k, "{same} of {k}");
    }
}
