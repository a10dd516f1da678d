use super::*;
use proptest::prelude::*;

fn maker(seed: u64, scale: f64) -> PromptMaker {
    PromptMaker::new(seed, 100..32_100, scale).unwrap()
}

fn blocks(length: u32, block_size: u32, ids: &[u64]) -> Prompt {
    Prompt::Blocks { length, block_size, ids: ids.to_vec() }
}

/// Tokens that two prompts have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// By definition: token by token, each from its stream.
fn naive(maker: &PromptMaker, purpose: Purpose, name: u64, length: usize) -> Vec<u32> {
    let draws = Draws::new(maker.seed, purpose, name);
    let span = u64::from(maker.vocabulary.end - maker.vocabulary.start);
    (0..length as u64)
        .map(|i| {
            let half = if i % 2 == 0 { draws.bits(i / 2) >> 32 } else { draws.bits(i / 2) & 0xffff_ffff };
            maker.vocabulary.start + u32::try_from(half * span / (1 << 32)).unwrap()
        })
        .collect()
}

#[test]
fn the_generator_gives_the_numbers_it_is_documented_to() {
    // SplitMix64 from state 1234567, as its authors' C code prints them.
    let draws = Draws { key: 1_234_567 };
    let first: Vec<u64> = (0..3).map(|i| draws.bits(i)).collect();
    assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
}

#[test]
fn the_same_seed_gives_the_same_prompt_and_another_seed_another() {
    let prompt = Prompt::Length(1001);
    let made = maker(7, 1.0).make(3, &prompt).unwrap();
    assert_eq!(made.len(), 1001);
    assert_eq!(made, naive(&maker(7, 1.0), Purpose::Request, 3, 1001));
    assert_eq!(Some(made.clone()), maker(7, 1.0).make(3, &prompt));
    for other in [maker(8, 1.0).make(3, &prompt), maker(7, 1.0).make(4, &prompt)] {
        let equal = made.iter().zip(other.unwrap()).filter(|(a, b)| **a == *b).count();
        assert!(equal < 5, "{equal} of 1001 tokens are equal");
    }
    // A name is a block's, a group's or a request's: the same number does not mean the same tokens.
    let group = maker(7, 1.0).make(9, &Prompt::SharedPrefix { length: 100, prefix: 100, group: 3 }).unwrap();
    let block = maker(7, 1.0).make(9, &blocks(100, 512, &[3])).unwrap();
    assert!(common(&group, &block) < 3 && common(&group, &made) < 3 && common(&block, &made) < 3);
}

#[test]
fn tokens_cover_the_vocabulary_evenly() {
    let maker = PromptMaker::new(5, 10..26, 1.0).unwrap();
    let mut seen = [0_u32; 26];
    for token in maker.make(0, &Prompt::Length(160_001)).unwrap() {
        seen[token as usize] += 1;
    }
    // 10,000 each, standard deviation 97.
    assert!(
        seen[..10].iter().all(|&n| n == 0) && seen[10..].iter().all(|n| (9_500..10_500).contains(n)),
        "{seen:?}"
    );
    assert_eq!(PromptMaker::new(5, 3..4, 1.0).unwrap().make(0, &Prompt::Length(3)), Some(vec![3, 3, 3]));
    let all = PromptMaker::new(5, 0..u32::MAX, 1.0).unwrap();
    assert!(all.make(0, &Prompt::Length(1000)).unwrap().iter().any(|&token| token > u32::MAX / 2));
}

#[test]
fn token_ids_are_folded_into_the_vocabulary() {
    let maker = PromptMaker::new(0, 10..20, 1.0).unwrap();
    let ids = vec![10, 19, 9, 20, 20, u32::MAX];
    assert_eq!(maker.make(0, &Prompt::Tokens(ids)), Some(vec![10, 19, 19, 10, 10, 15]));
}

#[test]
fn text_takes_a_tokenizer_and_bad_options_are_refused() {
    assert_eq!(maker(0, 1.0).make(0, &Prompt::Text("a".into())), None);
    assert!(PromptMaker::new(0, 5..5, 1.0).is_err());
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(PromptMaker::new(0, 0..5, scale).unwrap_err().contains("--length-scale"));
    }
}

#[test]
fn scaled_lengths_are_rounded_bounded_and_at_least_one() {
    for (scale, given, scaled) in
        [(0.1, 1, 1), (0.1, 15, 2), (0.1, 0, 0), (1.0, 7, 7), (2.5, 3, 8), (1e30, 5, u32::MAX), (1e-30, 5, 1)]
    {
        assert_eq!(maker(0, scale).scaled(given), scaled, "{given} * {scale}");
    }
    let tiny = maker(0, 1e-3).make(0, &blocks(1000, 512, &[1, 2])).unwrap();
    assert_eq!(tiny.len(), 1);
}

#[test]
fn prompts_of_the_mooncake_trace_share_exactly_the_prefixes_its_names_say() {
    let Some(path) = crate::dataset::tests::shared("mooncake/conversation_trace.jsonl") else { return };
    let mut asked = crate::dataset::tests::options(crate::dataset::Workload::Mooncake, Some(path));
    asked.limit = Some(300);
    let prompts: Vec<(Prompt, Vec<u64>)> = crate::dataset::open(&asked, None)
        .unwrap()
        .map(|item| match item.unwrap() {
            crate::dataset::Item::Sample(sample) => match sample.prompt.clone() {
                Prompt::Blocks { ids, .. } => (sample.prompt, ids),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect();
    for scale in [1.0, 0.1, 0.013] {
        let maker = maker(11, scale);
        let made: Vec<Vec<u32>> =
            prompts.iter().zip(0..).map(|((prompt, _), index)| maker.make(index, prompt).unwrap()).collect();
        for (a, (prompt_a, ids_a)) in prompts.iter().enumerate() {
            assert_eq!(made[a].len(), maker.length(prompt_a).unwrap() as usize);
            for (b, (_, ids_b)) in prompts[..a].iter().enumerate() {
                let names = ids_a.iter().zip(ids_b).take_while(|(x, y)| x == y).count() as u64;
                let shared =
                    usize::try_from(maker.place(names * 512)).unwrap().min(made[a].len()).min(made[b].len());
                let found = common(&made[a], &made[b]);
                // Three tokens of 32,000 that are equal by chance would be too many.
                assert!((shared..shared + 3).contains(&found), "{a} {b} at {scale}: {found} for {shared}");
            }
        }
    }
}

proptest! {
    #[test]
    fn blocks_are_their_streams_one_after_the_other(
        ids in prop::collection::vec(0_u64..4, 1..6), block_size in 1_u32..40, cut in 0_u32..40, seed: u64, scale in 0.02_f64..3.0,
    ) {
        let length = u32::try_from(ids.len()).unwrap() * block_size - cut.min(block_size - 1);
        for scale in [1.0, scale] {
            let maker = maker(seed, scale);
            let made = maker.make(0, &blocks(length, block_size, &ids)).unwrap();
            let total = ((f64::from(length) * scale).round() as usize).max(1);
            prop_assert_eq!(made.len(), total);
            let mut expected = Vec::new();
            for (k, &id) in ids.iter().enumerate() {
                let place = |k: usize| (k as f64 * f64::from(block_size) * scale).round() as usize;
                expected.extend(naive(&maker, Purpose::Block, id, place(k + 1) - place(k)));
            }
            if expected.len() >= total {
                prop_assert_eq!(&made, &expected[..total]);
            } else {
                prop_assert_eq!(total, 1);
            }
        }
    }

    #[test]
    fn a_group_shares_its_prefix_and_no_more(
        length in 1_u32..300, share in 0.0_f64..=1.0, seed: u64, scale in 0.1_f64..2.0,
    ) {
        let maker = maker(seed, scale);
        let prefix = (f64::from(length) * share) as u32;
        let prompt = |group| Prompt::SharedPrefix { length, prefix, group };
        let (a, b) = (maker.make(0, &prompt(5)).unwrap(), maker.make(1, &prompt(5)).unwrap());
        prop_assert_eq!(a.len(), maker.scaled(length) as usize);
        let shared = ((f64::from(prefix) * scale).round() as usize).min(a.len());
        prop_assert!((shared..shared + 3).contains(&common(&a, &b)), "{} {}", shared, common(&a, &b));
        let other = maker.make(0, &prompt(6)).unwrap();
        prop_assert!(shared == 0 || common(&a, &other) < 3 || common(&a, &other) < shared);
    }
}
