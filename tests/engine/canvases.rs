//! Canvases in a closed loop, where seats are never empty and only what is final is streamed; canvases of which a part is given; passes whose
//! fills are decided beforehand.

use std::collections::BTreeMap;

use pagedraft::session::{
    Decoder, Diffusion, DiffusionOutput, EngineOptions, Request, RequestId, RequestOutput, Session,
    SkipLayers,
};
use pagedraft::spec_decode::ForcedPass;

use crate::canvas::{diffusion, drawn, dummy, request};
use crate::requests::Random;

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

/// A canvas of 16 tokens in blocks of 8, of which every third is a mask.
fn given() -> Vec<u32> {
    (0..16).map(|at| if at % 3 == 0 { 299 } else { 7 * at + 1 }).collect()
}

fn denoise(session: &mut Session, how: Diffusion) -> RequestOutput {
    let how = Diffusion { given: given().into(), return_choices: true, ..how };
    let id = session.submit(request("0", &[5, 6, 7], 16, how)).unwrap()[0];
    while session.has_unfinished() {
        session.step().unwrap();
    }
    session.take_output(id).unwrap()
}

/// Each pass with what it filled.
fn fills(output: &DiffusionOutput) -> Vec<ForcedPass> {
    let steps = output.steps.iter().flatten();
    let pass = |step: &pagedraft::session::DiffusionStep| ForcedPass {
        block: step.block,
        step: step.step,
        fills: step.pos.iter().copied().zip(step.tok.iter().copied()).collect(),
    };
    steps.map(pass).collect()
}

#[test]
fn tokens_that_are_given_stay_and_masks_among_them_are_filled_by_the_choices_of_their_passes() {
    let mut session =
        Session::open(&dummy(&drawn("llada-given", 4, 2, true), SkipLayers::BehindHalf)).unwrap();
    for decoder in [Decoder::Baseline, Decoder::PrefixCache, Decoder::DualCache, Decoder::DualCacheSkip] {
        let output = denoise(&mut session, diffusion(decoder, 8, 16, None));
        for (at, (&id, &known)) in output.token_ids.iter().zip(&given()).enumerate() {
            assert!(if known == 299 { id != 299 } else { id == known }, "{decoder}, {at}: {id} for {known}");
        }
        let canvas = output.diffusion.unwrap();
        // Six masks, one a pass; the first pass of a block may also look at those of the blocks before it, which have none left.
        assert_eq!((canvas.nfe, canvas.masks_left), (6, 0), "{decoder}");
        for step in canvas.steps.unwrap() {
            assert_eq!(step.choices.len() as u32, step.masked_before, "{decoder}");
            let filled = (step.pos[0], step.tok[0]);
            assert!(step.choices.contains(&filled), "{decoder}: {filled:?} of {:?}", step.choices);
        }
    }
}

#[test]
fn forced_passes_fill_what_they_are_told_and_choose_as_if_they_had_filled_it_themselves() {
    let mut session =
        Session::open(&dummy(&drawn("llada-forced", 4, 2, true), SkipLayers::BehindHalf)).unwrap();
    let how = diffusion(Decoder::DualCache, 8, 16, None);
    let free = denoise(&mut session, how.clone());
    let passes = fills(free.diffusion.as_ref().unwrap());
    let same = denoise(&mut session, Diffusion { forced: passes.clone().into(), ..how.clone() });
    assert_eq!((&same.token_ids, &same.diffusion), (&free.token_ids, &free.diffusion));
    // Other tokens, and a position that is no mask, which stays as it is.
    let mut others = passes;
    others.iter_mut().flat_map(|pass| &mut pass.fills).for_each(|(_, token)| *token = (*token + 1) % 298);
    others[0].fills.push((3 + 1, 11));
    let forced = denoise(&mut session, Diffusion { forced: others.clone().into(), ..how.clone() });
    for (position, token) in others.iter().flat_map(|pass| pass.fills.iter().copied()) {
        let wanted = if position == 4 { given()[1] } else { token };
        assert_eq!(forced.token_ids[position as usize - 3], wanted);
    }
    for (change, says) in [
        (Diffusion { given: vec![299; 15].into(), ..how.clone() }, "15 ids are given for a canvas of 16"),
        (Diffusion { given: vec![304; 16].into(), ..how.clone() }, "begins with the token id 304"),
        (Diffusion { forced: others_with(299).into(), ..how }, "fill in the token id 299"),
    ] {
        let error = format!("{:#}", session.check(&request("0", &[5], 16, change)).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
}

fn others_with(token: u32) -> Vec<ForcedPass> {
    vec![ForcedPass { block: 0, step: 0, fills: vec![(3, token)] }]
}
