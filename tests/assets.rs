//! The embedded models are what their READMEs say: of one tokenizer, small, long enough, and worth drafting with.
#![allow(clippy::unwrap_used, reason = "a test or a bench that fails says where")]

use pagedraft::session::{EngineOptions, ModelRef, Request, Session};
use pagedraft::spec_decode::sampling::SamplingParams;

/// Text that neither model was trained on.
const HELD_OUT: &str = include_str!("../assets/held_out.txt");
const WINDOW: usize = 256;
const WINDOWS: usize = 24;

fn engine(name: &str) -> Session {
    Session::open(&EngineOptions {
        enable_prefix_caching: false,
        threads: 2,
        ..EngineOptions::new(ModelRef::Builtin(name.into()))
    })
    .unwrap()
}

/// For every position of the windows but the first of each: the likeliest token, and the log probability of the text's own.
fn teacher_forced(name: &str) -> (Vec<u32>, Vec<f32>) {
    let mut session = engine(name);
    let tokens = session.tokenizer().unwrap().encode(HELD_OUT, false).unwrap();
    // Windows from all over the text.
    let apart = (tokens.len() - WINDOW) / (WINDOWS - 1);
    let sampling = SamplingParams { prompt_logprobs: Some(1), ..SamplingParams::greedy() };
    let windows = (0..WINDOWS).map(|w| tokens[w * apart..w * apart + WINDOW].to_vec());
    let ids: Vec<_> = windows
        .map(|prompt| {
            let request = Request { sampling: sampling.clone(), ..Request::new("window", prompt, 1) };
            session.submit(request).unwrap()[0]
        })
        .collect();
    while session.has_unfinished() {
        session.step().unwrap();
    }
    let (mut best, mut own) = (Vec::new(), Vec::new());
    for id in ids {
        let output = session.take_output(id).unwrap();
        best.extend(output.prompt_logprobs.unwrap().iter().skip(1).map(|b| b.as_ref().unwrap()[0].token_id));
        own.extend(output.prompt_token_logprobs.unwrap().iter().skip(1).map(|o| o.unwrap().logprob));
    }
    (best, own)
}

#[test]
fn the_draft_agrees_with_the_target_on_half_of_the_positions_of_unseen_text() {
    let (target, target_own) = teacher_forced("target");
    let (draft, draft_own) = teacher_forced("draft");
    let agreeing = target.iter().zip(&draft).filter(|(a, b)| a == b).count();
    let share = agreeing as f64 / target.len() as f64;
    let loss = |own: &[f32]| -own.iter().map(|&l| f64::from(l)).sum::<f64>() / own.len() as f64;
    let (target_loss, draft_loss) = (loss(&target_own), loss(&draft_own));
    println!(
        "{} positions: agreement {share:.3}, loss {target_loss:.3} and {draft_loss:.3} nats",
        target.len()
    );
    assert!(share >= 0.5, "agreement {share}");
    // Guessed blindly, 2,048 tokens cost ln 2048 = 7.62 nats each. This text is laid out unlike the training texts.
    assert!(target_loss < 6.1 && draft_loss < 6.1, "losses {target_loss} and {draft_loss}");
}

#[test]
fn both_models_have_one_tokenizer_and_reach_32768_positions_in_16_megabytes() {
    let (target, draft) = (engine("target"), engine("draft"));
    for text in [&HELD_OUT[..2000], "Ünïcode — 漢字 🙂", ""] {
        let ids = target.tokenizer().unwrap().encode(text, false).unwrap();
        assert_eq!(ids, draft.tokenizer().unwrap().encode(text, false).unwrap());
        assert_eq!(target.tokenizer().unwrap().decode(&ids, false).unwrap(), text);
    }
    for session in [&target, &draft] {
        assert_eq!(session.info().max_model_len, 32_768);
        assert_eq!(session.info().vocab_size, 2048);
    }
    let bytes = 2 * (target.info().parameters + draft.info().parameters);
    assert!(bytes <= 16 << 20, "{bytes} bytes of weights");
}
