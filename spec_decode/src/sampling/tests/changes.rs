//! Changed logits against the definition, written down token by token.

use super::{Changer, LogitChanges, Random};

/// The definition, for one row behind `tokens`.
fn slow(changes: &LogitChanges, tokens: &[u32], prompt_len: usize, logits: &[f32]) -> Vec<f32> {
    let generated = &tokens[prompt_len..];
    let one = |(token, &logit): (u32, &f32)| {
        let mut logit = logit;
        if generated.len() < changes.min_tokens as usize && changes.ends.contains(&token) {
            logit = f32::NEG_INFINITY;
        }
        for (biased, bias) in &changes.bias {
            logit += if *biased == token { *bias } else { 0.0 };
        }
        if tokens.contains(&token) {
            logit = if logit > 0.0 { logit / changes.repetition } else { logit * changes.repetition };
        }
        let count = generated.iter().filter(|&&other| other == token).count();
        if count > 0 {
            logit = logit - changes.frequency * count as f32 - changes.presence;
        }
        logit
    };
    (0..).zip(logits).map(one).collect()
}

#[test]
fn every_row_is_changed_as_if_the_drafts_in_front_of_it_had_been_generated() {
    let random = &mut Random::new(17);
    let mut changer = Changer::default();
    for _ in 0..400 {
        let vocab = 2 + random.below(30) as usize;
        let some = |count: u64, random: &mut Random| -> Vec<u32> {
            (0..random.below(count)).map(|_| random.below(vocab as u64) as u32).collect()
        };
        let (prompt, generated, drafts) = (some(12, random), some(20, random), some(5, random));
        let mut biased = some(4, random);
        biased.sort_unstable();
        biased.dedup();
        let number = |random: &mut Random| random.below(41) as f32 / 10.0 - 2.0;
        let changes = LogitChanges {
            bias: biased.into_iter().map(|token| (token, 3.0 * number(random))).collect(),
            presence: [0.0, number(random)][random.below(2) as usize],
            frequency: [0.0, number(random)][random.below(2) as usize],
            repetition: [1.0, 1.3, 0.7][random.below(3) as usize],
            min_tokens: random.below(24) as u32,
            ends: some(3, random),
        };
        let logits: Vec<f32> = (0..vocab * (drafts.len() + 1)).map(|_| 4.0 * number(random)).collect();
        let known = [&prompt[..], &generated].concat();
        let changed = changer.change(&changes, (&known, prompt.len()), &drafts, &logits);
        for (j, (row, logits)) in changed.chunks(vocab).zip(logits.chunks(vocab)).enumerate() {
            let tokens = [&known[..], &drafts[..j]].concat();
            assert_eq!(row, slow(&changes, &tokens, prompt.len(), logits), "{changes:?} row {j}");
        }
    }
}

#[test]
fn numbers_out_of_their_ranges_are_refused_by_name() {
    let bad = |changes: LogitChanges| changes.validate().unwrap_err().to_string();
    let none = LogitChanges::default;
    assert!(none().validate().is_ok() && !none().is_some());
    assert!(bad(LogitChanges { presence: 2.5, ..none() }).contains("presence_penalty is 2.5"));
    assert!(bad(LogitChanges { frequency: f32::NAN, ..none() }).contains("frequency_penalty is NaN"));
    assert!(bad(LogitChanges { repetition: 0.0, ..none() }).contains("repetition_penalty is 0"));
    assert!(bad(LogitChanges { bias: vec![(7, -101.0)], ..none() }).contains("token 7"));
}
