//! The kernels against the reference, bit for bit, and both against plain softmax in f64.

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{KvDtype, MaskKind};

use crate::world::*;

/// Sequences of one random step, with their tables, and what each row computes.
struct Step {
    heads: Heads,
    cache: Cache,
    sequences: Vec<Sequence>,
    tables: Vec<Vec<pagedraft_block_manager::BlockId>>,
    shapes: Vec<(usize, usize, MaskKind)>,
}

impl Step {
    fn random(rng: &mut Rng) -> Step {
        let heads = Heads {
            kv: rng.between(1, 3),
            group: rng.pick(&[1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16]),
            dim: rng.pick(&[2, 8, 16, 20, 32, 64, 80, 96, 128]),
        };
        let dtype = rng.pick(&[KvDtype::F32, KvDtype::F16, KvDtype::Bf16]);
        let block_size = rng.pick(&[16, 32, 64]);
        let rows = rng.between(1, 3);
        let mut shapes: Vec<_> = (0..rows)
            .map(|_| {
                let seen = rng.between(1, 300);
                let query = if rng.below(2) == 0 { 1 } else { rng.between(2, 70) };
                let mask = rng.pick(&[MaskKind::Causal, MaskKind::Causal, MaskKind::Bidirectional]);
                (seen - 1, query, mask)
            })
            .collect();
        shapes.sort_by_key(|shape| shape.1 == 1);
        let mut cache = Cache::roomy(dtype, block_size, heads, rows * 370, rng);
        let sequences: Vec<_> = shapes.iter().map(|s| Sequence::random(s.0 + s.1, heads, rng)).collect();
        let tables = sequences.iter().map(|s| cache.table(s.len)).collect();
        Step { heads, cache, sequences, tables, shapes }
    }

    fn store(&self, isa: Isa) {
        for (sequence, table) in self.sequences.iter().zip(&self.tables) {
            self.cache.store(isa, sequence, 0, sequence.len, table);
        }
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let parts = self.sequences.iter().zip(&self.tables).zip(&self.shapes);
        parts
            .map(|((sequence, table), &(context, query, mask))| Row { sequence, table, context, query, mask })
            .collect()
    }

    fn describe(&self, isa: Isa) -> String {
        format!("{isa} {:?} {:?} rows {:?}", self.heads, self.cache.layer.layout(), self.shapes)
    }
}

#[test]
fn kernels_give_the_bits_of_the_reference_on_random_steps() {
    for seed in 0..60 {
        let step = Step::random(&mut Rng(seed));
        for isa in sets() {
            step.store(isa);
            let what = format!("seed {seed}: {}", step.describe(isa));
            println!("{what}");
            let fast = attend(isa, &step.cache, &step.rows(), step.heads, 2);
            let slow = attend_slowly(isa, &step.cache, &step.rows(), step.heads);
            assert_same_bits(&fast, &slow, &what);
        }
    }
}

#[test]
fn instruction_sets_that_fuse_give_the_same_bits_as_each_other() {
    for seed in 500..520 {
        let step = Step::random(&mut Rng(seed));
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::ALL.into_iter().filter(|i| i.available() && *i != Isa::Portable) {
            step.store(isa);
            let out = attend(isa, &step.cache, &step.rows(), step.heads, 1);
            let first = first.get_or_insert_with(|| out.clone());
            assert_same_bits(&out, first, &format!("seed {seed}: {}", step.describe(isa)));
        }
    }
}

#[test]
fn outputs_are_softmax_attention_within_single_precision() {
    for seed in 1000..1030 {
        let step = Step::random(&mut Rng(seed));
        for isa in sets() {
            step.store(isa);
            let out = attend(isa, &step.cache, &step.rows(), step.heads, 1);
            let mut at = 0;
            for row in step.rows() {
                for i in row.context..row.context + row.query {
                    for head in 0..step.heads.kv * step.heads.group {
                        let exact = exact(&step, &row, i, head);
                        for (d, exact) in exact.iter().enumerate() {
                            let error = (f64::from(out[at]) - exact).abs();
                            assert!(
                                error < 2e-5,
                                "seed {seed}: {} d {d}: off by {error:e}",
                                step.describe(isa)
                            );
                            at += 1;
                        }
                    }
                }
            }
        }
    }
}

/// softmax(q K^T) V in f64, of K and V as stored.
fn exact(step: &Step, row: &Row<'_>, query: usize, head: usize) -> Vec<f64> {
    let Heads { group, dim, .. } = step.heads;
    let q = &row.sequence.q[query * step.heads.q_width() + head * dim..][..dim];
    let visible = if row.mask == MaskKind::Causal { query + 1 } else { row.context + row.query };
    let slot = |j: usize| step.cache.slot(row.table, j) as u64;
    let scores: Vec<f64> = (0..visible)
        .map(|j| {
            let products = q.iter().enumerate().map(|(d, &q)| {
                f64::from(q) * f64::from(unsafe { step.cache.layer.key(slot(j), head / group, d) })
            });
            products.sum::<f64>() * f64::from(step.heads.scale())
        })
        .collect();
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..dim)
        .map(|d| {
            let terms = weights
                .iter()
                .enumerate()
                .map(|(j, w)| w * f64::from(unsafe { step.cache.layer.value(slot(j), head / group, d) }));
            terms.sum::<f64>() / total
        })
        .collect()
}
