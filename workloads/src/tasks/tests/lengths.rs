//! Short lengths, and that they change no other.

use super::super::RULER_TASKS;
use super::{Quarters, answers, budgeted, generator, least_length, text, tokenizers};
use sha2::{Digest, Sha256};
use std::sync::Arc;

#[test]
fn samples_with_room_for_the_whole_task_stay_as_they_were_to_the_byte() {
    let mut hash = Sha256::new();
    for task in RULER_TASKS {
        for (_, tokenizer) in tokenizers() {
            for length in [1024, 4096, 20_000] {
                for index in [0, 3] {
                    let sample = generator(task, length, 7, tokenizer.clone()).sample(index).unwrap();
                    let told = format!("{}\n{:?}\n{}\n", text(&sample), answers(&sample), budgeted(&sample));
                    hash.update(told);
                }
            }
        }
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "97f26cc40f71a5a44192e8ce496ec5c99506b357193b2443469d701041904f38");
}

/// The lengths from 1 on at which a shape begins: the length, whether there is an example, and how many answers there are.
fn shapes(task: &str, example: &str) -> Vec<(u32, bool, usize)> {
    let mut shapes: Vec<(u32, bool, usize)> = Vec::new();
    for length in 1..1024 {
        let Ok(sample) = generator(task, length, 3, Arc::new(Quarters)).sample(1) else {
            assert!(shapes.is_empty(), "{task}: {length} is too short, {shapes:?}");
            continue;
        };
        let shape = (text(&sample).matches(example).count() == 2, answers(&sample).len());
        if shapes.last().is_none_or(|&(_, has_example, count)| (has_example, count) != shape) {
            shapes.push((length, shape.0, shape.1));
        }
    }
    shapes
}

#[test]
fn the_shorter_a_text_the_less_is_asked_for_and_never_anything_else() {
    for (task, example, wanted) in [
        ("vt", "Memorize and track", &[(false, 2), (false, 3), (false, 4), (false, 5), (true, 5)][..]),
        ("cwe", "Below is a numbered", &[(false, 3), (false, 5), (false, 10), (true, 10)]),
    ] {
        let shapes = shapes(task, example);
        let found: Vec<(bool, usize)> = shapes.iter().map(|&(_, example, count)| (example, count)).collect();
        assert_eq!(found, wanted, "{task}: {shapes:?}");
        let at =
            |length| answers(&generator(task, length, 3, Arc::new(Quarters)).sample(1).unwrap()).to_vec();
        let whole = at(2048);
        for (length, _, count) in shapes {
            assert_eq!(at(length), whole[..count], "{task} {length}");
        }
    }
}

#[test]
fn a_short_answer_has_room_for_a_perfect_one_and_gets_its_whole_room_back_with_the_length() {
    for task in RULER_TASKS {
        for (name, tokenizer) in tokenizers() {
            let mut lengths: Vec<u32> = vec![128, 192, 256, 320, 400, 512];
            if let Err(error) = generator(task, 1, 3, tokenizer.clone()).sample(0) {
                lengths.push(least_length(&error));
            }
            for length in lengths {
                let generator = generator(task, length, 3, tokenizer.clone());
                let Ok(sample) = generator.sample(0) else {
                    assert!(length < 256, "{task} {name}: {length}");
                    continue;
                };
                let room = budgeted(&sample);
                let told = match task.starts_with("qa") {
                    true => answers(&sample).iter().map(|answer| generator.tokens(answer)).max().unwrap(),
                    false => generator.tokens(&answers(&sample).join(", ")),
                };
                assert!(told <= room, "{task} {name} {length}: {told} tokens in {room}");
                assert!(
                    generator.tokens(text(&sample)) + room <= u64::from(length),
                    "{task} {name} {length}"
                );
            }
            let whole = budgeted(&generator(task, 1024, 3, tokenizer.clone()).sample(0).unwrap());
            assert_eq!(whole, budgeted(&generator(task, 4096, 3, tokenizer).sample(0).unwrap()), "{task}");
        }
    }
}
