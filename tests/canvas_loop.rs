//! Canvases in a closed loop: seats are never empty, and only what is final is streamed.
#![allow(clippy::unwrap_used, reason = "a test or a bench that fails says where")]

mod canvas;
mod schedule;

use std::collections::BTreeMap;

use canvas::{diffusion, drawn, dummy, request};
use pagedraft::session::{Decoder, Diffusion, EngineOptions, Request, RequestId, Session, SkipLayers};
use schedule::Random;

const SEATS: usize = 32;

/// Canvases of one to three blocks of four, some of which are filled in fewer passes than others.
fn requests(seed: u64, count: usize) -> Vec<Request> {
    println!("seed {seed}");
    let mut random = Random(seed);
    let one = |i: usize| {
        let prompt: Vec<u32> = (0..1 + random.below(12)).map(|_| random.below(298) as u32).collect();
        let blocks = 1 + random.below(3) as u32;
        let threshold = [None, Some(0.004), Some(0.9)][random.below(3) as usize];
        let decoder = [Decoder::Baseline, Decoder::PrefixCache, Decoder::DualCache][random.below(3) as usize];
        let how = Diffusion { return_steps: false, ..diffusion(decoder, 4, 4 * blocks, threshold) };
        request(&i.to_string(), &prompt, 4 * blocks, how)
    };
    (0..count).map(one).collect()
}

#[test]
fn whoever_leaves_a_loop_of_32_is_replaced_in_the_next_step_and_only_final_blocks_are_streamed() {
    let options = EngineOptions {
        max_num_seqs: SEATS as u32,
        num_blocks: Some(128),
        max_num_batched_tokens: 1024,
        ..dummy(&drawn("llada-loop", 2, 2, true), SkipLayers::Never)
    };
    let mut session = Session::open(&options).unwrap();
    let mut waiting = requests(31, 120).into_iter();
    let mut streamed: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
    for request in waiting.by_ref().take(SEATS) {
        streamed.extend(session.submit(request).unwrap().into_iter().map(|id| (id, Vec::new())));
    }
    let (mut left, mut early) = (0, 0);
    while session.has_unfinished() {
        let seats = streamed.len();
        assert!(seats == SEATS || waiting.len() == 0, "{seats} seats are taken, and {} wait", waiting.len());
        let step = session.step().unwrap();
        // Those that were just submitted have a pass in this step, too.
        assert_eq!((step.rows, step.running, step.waiting), (seats, seats, 0));
        for emitted in step.emitted {
            let tokens = streamed.get_mut(&emitted.id).unwrap();
            assert!(emitted.tokens.len() % 4 == 0 && !emitted.tokens.contains(&299), "{:?}", emitted.tokens);
            tokens.extend(emitted.tokens);
            if emitted.finish.is_none() {
                continue;
            }
            let tokens = streamed.remove(&emitted.id).unwrap();
            assert_eq!(session.take_output(emitted.id).unwrap().token_ids, tokens);
            left += 1;
            if let Some(request) = waiting.next() {
                early += 1;
                let ids = session.submit(request).unwrap();
                streamed.extend(ids.into_iter().map(|id| (id, Vec::new())));
            }
        }
    }
    assert_eq!((left, early), (120, 120 - SEATS));
}
