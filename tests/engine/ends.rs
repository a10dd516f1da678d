//! Ends inside an accepted run: the output, its text, its log probabilities and its reason are those of the plain run.

use std::sync::Arc;

use pagedraft::session::{
    DraftLength, DraftRef, EngineOptions, ModelRef, Request, RequestOutput, Session, SpeculationOptions,
};
use pagedraft::spec_decode::sampling::{LogitChanges, SamplingParams};

const TOKENS: u32 = 48;

fn session(speculation: SpeculationOptions) -> Session {
    let model = ModelRef::Builtin("target".into());
    let options = EngineOptions {
        num_blocks: Some(512),
        max_model_len: Some(512),
        enable_prefix_caching: false,
        speculation,
        ..EngineOptions::new(model)
    };
    Session::open(&options).unwrap()
}

/// Every draft right, eight at a time: nearly every end falls into a run of accepted drafts.
fn drafting() -> SpeculationOptions {
    SpeculationOptions {
        draft: Some(DraftRef::Synthetic { rate: 1.0 }),
        length: DraftLength::Fixed(8),
        ..SpeculationOptions::default()
    }
}

fn run(session: &mut Session, request: Request) -> RequestOutput {
    run_together(session, &[request]).remove(0)
}

fn run_together(session: &mut Session, requests: &[Request]) -> Vec<RequestOutput> {
    let ids: Vec<_> = requests.iter().flat_map(|request| session.submit(request.clone()).unwrap()).collect();
    while session.has_unfinished() {
        session.step().unwrap();
    }
    ids.into_iter().map(|id| session.take_output(id).unwrap()).collect()
}

/// What of an output may not depend on speculation.
fn essence(output: &RequestOutput) -> String {
    let mut json = serde_json::to_value(output).unwrap();
    let object = json.as_object_mut().unwrap();
    for count in ["num_drafts", "num_accepted", "drafted_by_position", "accepted_by_position"] {
        object.remove(count);
    }
    json.to_string()
}

fn prompts() -> Vec<Request> {
    let texts = ["The king said to the", "Once upon a time there was", "And then, without a"];
    let plain = session(SpeculationOptions::default());
    let tokenizer = plain.tokenizer().unwrap();
    let sampling = [
        SamplingParams { logprobs: Some(2), ..SamplingParams::greedy() },
        SamplingParams { logprobs: Some(1), temperature: 0.9, seed: 5, ..SamplingParams::default() },
    ];
    let request = |text: &str, sampling: &SamplingParams| Request {
        sampling: sampling.clone(),
        ignore_eos: true,
        ..Request::new("r", tokenizer.encode(text, true).unwrap(), TOKENS)
    };
    texts.iter().flat_map(|text| sampling.iter().map(|s| request(text, s)).collect::<Vec<_>>()).collect()
}

/// Runs each prompt with every end that `ends` makes of its plain output, all of them at once, plainly and with drafts.
fn every_end(ends: impl Fn(&RequestOutput) -> Vec<Request>) {
    let (mut plain, mut drafted) = (session(SpeculationOptions::default()), session(drafting()));
    let (mut cases, mut inside) = (0, 0);
    for prompt in prompts() {
        let whole = run(&mut plain, prompt.clone());
        assert_eq!(whole.token_ids.len(), TOKENS as usize);
        let recorded = vec![Arc::from(&whole.token_ids[..])];
        let mut ends = ends(&whole);
        for (i, end) in ends.iter_mut().enumerate() {
            end.request_id = i.to_string();
            (end.prompt, end.sampling) = (prompt.prompt.clone(), prompt.sampling.clone());
        }
        let expected = run_together(&mut plain, &ends);
        ends.iter_mut().for_each(|end| end.recorded.clone_from(&recorded));
        let found = run_together(&mut drafted, &ends);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(essence(found), essence(expected));
            cases += 1;
            // With all drafts right a step gives nine tokens: other lengths end inside one.
            inside += usize::from(found.num_accepted > 0 && !(found.token_ids.len() - 1).is_multiple_of(9));
        }
    }
    assert!(cases > 50 && inside > cases / 2, "{inside} of {cases} ends were inside an accepted run");
}

#[test]
fn a_stop_string_that_ends_inside_an_accepted_run_ends_as_it_does_without_drafts() {
    every_end(|whole| {
        let text: Vec<char> = whole.text.chars().collect();
        let stop = |at: usize, len: usize| text[at..at + len].iter().collect::<String>();
        let places = (3..text.len().saturating_sub(9)).step_by(5);
        places
            .map(|at| Request {
                stop: vec![stop(at, 1 + at % 7)],
                ignore_eos: true,
                ..Request::new("r", vec![], TOKENS)
            })
            .collect()
    });
}

#[test]
fn a_stop_token_inside_an_accepted_run_ends_as_it_does_without_drafts() {
    every_end(|whole| {
        let tokens = whole.token_ids.iter().skip(2).step_by(2);
        tokens
            .map(|&token| Request {
                stop_token_ids: vec![token],
                ignore_eos: true,
                ..Request::new("r", vec![], TOKENS)
            })
            .collect()
    });
}

#[test]
fn max_tokens_inside_an_accepted_run_ends_as_it_does_without_drafts() {
    every_end(|_| {
        (1..TOKENS).map(|n| Request { ignore_eos: true, ..Request::new("r", vec![], n) }).collect()
    });
}

#[test]
fn an_abort_between_steps_of_drafts_leaves_the_others_as_they_were() {
    let draft = SpeculationOptions {
        draft: Some(DraftRef::Model(ModelRef::Builtin("draft".into()))),
        length: DraftLength::Fixed(4),
        ..SpeculationOptions::default()
    };
    let (mut plain, mut drafted) = (session(SpeculationOptions::default()), session(draft));
    let prompts = prompts();
    let expected: Vec<String> = prompts.iter().map(|p| essence(&run(&mut plain, p.clone()))).collect();
    for steps in 1..8 {
        let ids: Vec<_> = prompts.iter().map(|p| drafted.submit(p.clone()).unwrap()[0]).collect();
        for _ in 0..steps {
            drafted.step().unwrap();
        }
        drafted.abort(ids[steps % ids.len()]).unwrap();
        while drafted.has_unfinished() {
            drafted.step().unwrap();
        }
        for (i, (&id, expected)) in ids.iter().zip(&expected).enumerate() {
            let output = drafted.take_output(id).unwrap();
            if i != steps % ids.len() {
                assert_eq!(&essence(&output), expected, "abort after {steps} steps");
            }
        }
    }
}

#[test]
fn penalties_and_a_least_length_give_the_same_tokens_with_drafts_and_without() {
    let (mut plain, mut drafted) = (session(SpeculationOptions::default()), session(drafting()));
    let mut differs = 0;
    for prompt in prompts() {
        let unchanged = run(&mut plain, prompt.clone());
        let changes = LogitChanges {
            bias: vec![(unchanged.token_ids[3], -3.0)],
            presence: 0.4,
            frequency: 0.6,
            repetition: 1.1,
            min_tokens: 20,
            ..LogitChanges::default()
        };
        let mut changed = prompt;
        changed.sampling.changes = Some(Box::new(changes));
        changed.stop_token_ids = unchanged.token_ids[..6].to_vec();
        let expected = run(&mut plain, changed.clone());
        changed.recorded = vec![Arc::from(&expected.token_ids[..])];
        let found = run(&mut drafted, changed);
        assert_eq!(essence(&found), essence(&expected));
        assert!(found.num_accepted > 10, "{} drafts were accepted", found.num_accepted);
        assert!(expected.token_ids.len() >= 20);
        assert!(!unchanged.token_ids[..6].contains(&expected.token_ids[0]));
        // Log probabilities are those of the model.
        let first = |output: &RequestOutput| output.logprobs.as_ref().unwrap()[0].clone();
        assert_eq!(first(&expected), first(&unchanged));
        differs += usize::from(expected.token_ids != unchanged.token_ids);
    }
    assert_eq!(differs, 6);
}
