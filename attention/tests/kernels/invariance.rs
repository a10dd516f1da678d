//! Promise 1 in this crate: a query gives the same bits alone, in a chunk, in a verify row, after a
//! prefix hit, with any block size, and on any number of threads.

use pagedraft_attention::{KvDtype, MaskKind};
use pagedraft_block_manager::BlockId;

use crate::world::*;

struct Case {
    heads: Heads,
    dtype: KvDtype,
    sequence: Sequence,
}

fn case(seed: u64, rng: &mut Rng) -> Case {
    let heads = Heads {
        kv: rng.between(1, 2),
        group: rng.pick(&[1, 2, 4, 7, 8]),
        dim: rng.pick(&[16, 32, 64, 80, 128]),
    };
    let dtype = rng.pick(&[KvDtype::F32, KvDtype::F16, KvDtype::Bf16]);
    let sequence = Sequence::random(rng.between(2, 300), heads, rng);
    println!("seed {seed}: {heads:?} {dtype:?} {} tokens", sequence.len);
    Case { heads, dtype, sequence }
}

impl Case {
    /// The sequence stored in scattered blocks of a cache of its own.
    fn stored(
        &self,
        block_size: u32,
        isa: pagedraft_attention::isa::Isa,
        rng: &mut Rng,
    ) -> (Cache, Vec<BlockId>) {
        let mut cache = Cache::roomy(self.dtype, block_size, self.heads, self.sequence.len, rng);
        let table = cache.table(self.sequence.len);
        cache.store(isa, &self.sequence, 0, self.sequence.len, &table);
        (cache, table)
    }

    fn row<'a>(&'a self, table: &'a [BlockId], context: usize, query: usize) -> Row<'a> {
        Row { sequence: &self.sequence, table, context, query, mask: MaskKind::Causal }
    }
}

#[test]
fn chunks_of_any_length_give_the_bits_of_one_pass() {
    for seed in 0..25 {
        let mut rng = Rng(seed);
        let case = case(seed, &mut rng);
        for isa in sets() {
            let (cache, table) = case.stored(16, isa, &mut rng);
            let whole = attend(isa, &cache, &[case.row(&table, 0, case.sequence.len)], case.heads, 1);
            for chunk in [1, 7, 16, 64] {
                let mut chunked = Vec::new();
                for start in (0..case.sequence.len).step_by(chunk) {
                    let query = chunk.min(case.sequence.len - start);
                    let row = case.row(&table, start, query);
                    chunked.extend(attend(isa, &cache, &[row], case.heads, 1));
                }
                assert_same_bits(&chunked, &whole, &format!("seed {seed} {isa} chunks of {chunk}"));
            }
        }
    }
}

#[test]
fn both_scorers_and_a_full_batch_give_the_bits_of_decoding_alone() {
    for seed in 100..125 {
        let mut rng = Rng(seed);
        let case = case(seed, &mut rng);
        let mate = Sequence::random(200, case.heads, &mut rng);
        for isa in sets() {
            let mut cache = Cache::roomy(case.dtype, 32, case.heads, 1000, &mut rng);
            let table = cache.table(case.sequence.len);
            cache.store(isa, &case.sequence, 0, case.sequence.len, &table);
            let mate_table = cache.table(mate.len);
            cache.store(isa, &mate, 0, mate.len, &mate_table);
            let mate = |context, query| Row {
                sequence: &mate,
                table: &mate_table,
                context,
                query,
                mask: MaskKind::Bidirectional,
            };

            let query = rng.between(1, 6).min(case.sequence.len);
            let context = case.sequence.len - query;
            let alone: Vec<f32> = (context..case.sequence.len)
                .flat_map(|i| attend(isa, &cache, &[case.row(&table, i, 1)], case.heads, 1))
                .collect();
            let mqa = [mate(20, 90), case.row(&table, context, query), mate(120, 1)];
            let start = 90 * case.heads.q_width();
            let out = attend(isa, &cache, &mqa, case.heads, 2);
            assert_same_bits(&out[start..start + alone.len()], &alone, &format!("seed {seed} {isa} MQA"));

            let mut expansion = vec![mate(3, 90)];
            expansion.extend((context..case.sequence.len).map(|i| case.row(&table, i, 1)));
            let out = attend(isa, &cache, &expansion, case.heads, 2);
            assert_same_bits(&out[start..], &alone, &format!("seed {seed} {isa} batch expansion"));
        }
    }
}

#[test]
fn block_size_blocks_and_threads_show_in_no_bit() {
    for seed in 200..225 {
        let mut rng = Rng(seed);
        let case = case(seed, &mut rng);
        for isa in sets() {
            let mut first: Option<Vec<f32>> = None;
            for (block_size, threads) in [(16, 1), (16, 2), (32, 1), (64, 3)] {
                let (cache, table) = case.stored(block_size, isa, &mut rng);
                let row = case.row(&table, 0, case.sequence.len);
                let out = attend(isa, &cache, &[row], case.heads, threads);
                let first = first.get_or_insert_with(|| out.clone());
                assert_same_bits(&out, first, &format!("seed {seed} {isa} blocks of {block_size}"));
            }
        }
    }
}

#[test]
fn what_a_prefix_hit_shares_gives_the_bits_of_computing_it() {
    for seed in 300..315 {
        let mut rng = Rng(seed);
        let case = case(seed, &mut rng);
        for isa in sets() {
            let (mut cache, table) = case.stored(16, isa, &mut rng);
            let whole = attend(isa, &cache, &[case.row(&table, 0, case.sequence.len)], case.heads, 1);
            let hit = (case.sequence.len - 1) / 16;
            let mut shared = cache.table(case.sequence.len);
            shared[..hit].copy_from_slice(&table[..hit]);
            cache.store(isa, &case.sequence, hit * 16, case.sequence.len, &shared);
            let row = case.row(&shared, hit * 16, case.sequence.len - hit * 16);
            let out = attend(isa, &cache, &[row], case.heads, 1);
            let rest = &whole[hit * 16 * case.heads.q_width()..];
            assert_same_bits(&out, rest, &format!("seed {seed} {isa} {hit} blocks hit"));
        }
    }
}
