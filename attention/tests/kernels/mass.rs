//! The attention that keys get, against the formula written out in f64.

use pagedraft_attention::isa::Isa;
use pagedraft_attention::mass::{MassCall, MassOver};
use pagedraft_attention::{KvDtype, KvLayer, KvLayout, TokenRows};
use pagedraft_block_manager::BlockId;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn value(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 18) as f32 - 2.0
    }
}

#[test]
fn the_mass_of_each_key_is_what_the_formula_gives_on_every_instruction_set_to_the_bit() {
    println!("seed 5");
    let mut random = Random(5);
    for case in 0..30 {
        let (kv_heads, group) = (1 + random.below(3) as usize, 1 + random.below(3) as usize);
        let (dim, block_size) = ([8, 16, 20, 64][case % 4], [16u32, 32, 64][case % 3]);
        let (keys, heads) = (1 + random.below(700) as usize, kv_heads * group);
        let queries = 1 + random.below(keys.min(20) as u64) as usize;
        let blocks = keys.div_ceil(block_size as usize);
        let layout = KvLayout::new(KvDtype::F32, block_size, kv_heads, dim).unwrap();
        let num_blocks = blocks as u32 + 3;
        let mut memory = vec![0.0f32; layout.block_bytes() / 4 * num_blocks as usize];
        // SAFETY: the memory holds the blocks, and is accessed through this view alone.
        let layer =
            unsafe { KvLayer::new(memory.as_mut_ptr().cast(), layout.block_bytes(), num_blocks, layout) };
        let table: Vec<BlockId> = (0..blocks as u32).map(|i| BlockId(num_blocks - 1 - i)).collect();
        let k: Vec<f32> = (0..keys * kv_heads * dim).map(|_| random.value()).collect();
        let slots: Vec<i64> = (0..keys)
            .map(|j| {
                i64::from(table[j / block_size as usize].0 * block_size) + (j as i64 % i64::from(block_size))
            })
            .collect();
        let rows = TokenRows::new(&k, kv_heads * dim);
        // SAFETY: one thread.
        unsafe { layer.write(Isa::Portable, &slots, rows, rows).unwrap() };
        let q: Vec<f32> = (0..queries * heads * dim).map(|_| random.value()).collect();
        let scale = 1.0 / (dim as f32).sqrt();
        let weight = |i: usize, h: usize, j: usize| -> f64 {
            let score = |j: usize| -> f64 {
                let pairs = (0..dim).map(|d| {
                    f64::from(q[(i * heads + h) * dim + d])
                        * f64::from(k[(j * kv_heads + h / group) * dim + d])
                });
                pairs.sum::<f64>() * f64::from(scale)
            };
            let visible = keys - queries + i + 1;
            if j >= visible {
                return 0.0;
            }
            let most = (0..visible).map(score).fold(f64::NEG_INFINITY, f64::max);
            (score(j) - most).exp() / (0..visible).map(|j| (score(j) - most).exp()).sum::<f64>()
        };
        for over in [MassOver::Sum, MassOver::Greatest] {
            let mut found: Option<Vec<f32>> = None;
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let call = MassCall::new(layer, &table, keys, (&q, heads), scale, over).unwrap();
                let mut items = vec![0.0; call.num_items() * call.item_len()];
                for (item, out) in items.chunks_exact_mut(call.item_len()).enumerate() {
                    // SAFETY: one thread.
                    unsafe { call.run_item(isa, item, out) };
                }
                let mut all = vec![1.0; call.item_len()];
                call.combine(&items, &mut all);
                let same = found.get_or_insert_with(|| all.clone());
                assert!(same.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}: other bits");
            }
            let found = found.unwrap();
            // A few keys: the formula costs the square of them.
            for j in (0..keys).step_by(keys.div_ceil(7)) {
                match over {
                    MassOver::Sum => {
                        let pairs = (0..queries).flat_map(|i| (0..heads).map(move |h| (i, h)));
                        let want: f64 = pairs.map(|(i, h)| weight(i, h, j)).sum();
                        assert!((f64::from(found[j]) - want).abs() < 1e-5, "case {case}, key {j}");
                    }
                    MassOver::Greatest => {
                        for i in 0..queries {
                            let want = (0..heads).map(|h| weight(i, h, j)).fold(0.0, f64::max);
                            assert!((f64::from(found[i * keys + j]) - want).abs() < 1e-6, "case {case}");
                        }
                    }
                }
            }
            if over == MassOver::Sum {
                let all: f64 = found.iter().map(|&x| f64::from(x)).sum();
                assert!((all - (queries * heads) as f64).abs() < 1e-3 * all);
            }
        }
    }
}

#[test]
fn a_table_that_is_short_or_names_no_block_is_refused() {
    let layout = KvLayout::new(KvDtype::F32, 16, 1, 8).unwrap();
    let mut memory = vec![0.0f32; layout.block_bytes() / 2];
    // SAFETY: the memory holds two blocks.
    let layer = unsafe { KvLayer::new(memory.as_mut_ptr().cast(), layout.block_bytes(), 2, layout) };
    let new = |table: &[u32], keys, q: usize, heads| {
        let table: Vec<BlockId> = table.iter().map(|&id| BlockId(id)).collect();
        MassCall::new(layer, &table, keys, (&vec![0.0; q], heads), 1.0, MassOver::Sum).map(|_| ())
    };
    assert!(new(&[0, 1], 20, 8, 1).is_ok());
    assert!(new(&[0], 20, 8, 1).unwrap_err().to_string().contains("table"));
    assert!(new(&[0, 2], 20, 8, 1).unwrap_err().to_string().contains('2'));
    assert!(new(&[0], 2, 24, 1).is_err());
    assert!(new(&[0], 2, 7, 1).is_err());
    assert!(new(&[0], 2, 0, 0).is_err());
}
