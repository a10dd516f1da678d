//! The rules of a step, one at a time.

use pagedraft_block_manager::{GroupId, KvGroup, Salt};
use pagedraft_scheduler::fake::Script;
use pagedraft_scheduler::{
    ConfigError, Error, FinishReason, Kind, KvView, Phase, Policy, RequestKey, RequestSpec, Scheduler,
    SchedulerConfig, StepId, SubmitError,
};

use crate::rig::Rig;

fn config() -> SchedulerConfig {
    SchedulerConfig { num_blocks: 400, max_num_batched_tokens: 4096, ..SchedulerConfig::default() }
}

#[test]
fn the_golden_prompts_get_blocks_in_order_and_one_more_each_to_verify() {
    for drafts in [0, 2] {
        let mut rig = Rig::new(SchedulerConfig { num_speculative_tokens: drafts, ..config() });
        let keys: Vec<_> = (0..8).map(|_| rig.request(256, 128)).collect();
        rig.step();
        for (i, &key) in (0..).zip(&keys) {
            let expected: Vec<u32> = (i * 16..i * 16 + 16).collect();
            assert_eq!(rig.table(key), expected);
        }
        rig.step();
        for ((i, &key), row) in (0..).zip(&keys).zip(&rig.plan.rows) {
            assert_eq!(rig.table(key)[16..], [128 + i]);
            assert_eq!((row.tokens.clone(), row.drafts_max), (256..257, drafts));
            let kind = if drafts == 0 { Kind::Decode } else { Kind::Verify };
            assert_eq!(row.kind, kind);
        }
    }
}

#[test]
fn prefill_and_decode_share_a_step_and_its_budget() {
    let mut rig = Rig::new(SchedulerConfig { max_num_batched_tokens: 40, ..config() });
    let a = rig.request(20, 10);
    assert_eq!(rig.step(), [(a, 0, 20)]);
    let b = rig.request(100, 10);
    assert_eq!(rig.step(), [(a, 20, 21), (b, 0, 39)]);
    assert!(!rig.plan.rows[1].samples);
    assert_eq!(rig.step(), [(a, 21, 22), (b, 39, 78)]);
    assert_eq!(rig.step(), [(a, 22, 23), (b, 78, 100)]);
    assert!(rig.plan.rows[1].samples);
    assert_eq!(rig.step(), [(a, 23, 24), (b, 100, 101)]);
    assert_eq!(rig.plan.rows[1].kind, Kind::Decode);
}

#[test]
fn prefill_pieces_are_no_longer_than_the_chunk() {
    for chunk in [1, 7, 16, 64] {
        let mut rig = Rig::new(SchedulerConfig { prefill_chunk: Some(chunk), ..config() });
        let (a, b) = (rig.request(50, 3), rig.request(33, 3));
        rig.step();
        assert_eq!(rig.rows(), [(a, 0, chunk.min(50)), (b, 0, chunk.min(33))]);
        rig.drain();
        let tokens: Vec<u32> = (50..53).map(|p| Script::default().token(p)).collect();
        assert_eq!(rig.output[&a], tokens);
    }
}

#[test]
fn a_prompt_is_scheduled_whole_when_chunked_prefill_is_off() {
    let mut rig =
        Rig::new(SchedulerConfig { enable_chunked_prefill: false, max_num_batched_tokens: 64, ..config() });
    let (a, b) = (rig.request(40, 4), rig.request(40, 4));
    assert_eq!(rig.step(), [(a, 0, 40)]);
    assert_eq!(rig.step(), [(a, 40, 41), (b, 0, 40)]);
    let long = RequestSpec::new(vec![1; 65], 1);
    let refused = rig.scheduler.submit(long);
    assert!(matches!(refused, Err(SubmitError::LargerThanStep { .. })));
}

#[test]
fn a_resumed_request_longer_than_the_budget_is_cut_even_without_chunked_prefill() {
    let mut rig = Rig::new(SchedulerConfig {
        enable_chunked_prefill: false,
        enable_prefix_caching: false,
        max_num_batched_tokens: 32,
        num_blocks: 8,
        ..config()
    });
    let a = rig.request(32, 60);
    let b = rig.request(30, 60);
    rig.drain();
    assert_eq!((rig.output[&a].len(), rig.output[&b].len()), (60, 60));
}

#[test]
fn a_prompt_hits_whole_blocks_of_all_but_its_last_token() {
    let mut rig = Rig::new(config());
    let prompt: Vec<u32> = (0..513).collect();
    rig.submit(RequestSpec::new(prompt[..512].to_vec(), 1), Script::default());
    rig.drain();
    let a = rig.submit(RequestSpec::new(prompt[..512].to_vec(), 9), Script::default());
    let b = rig.submit(RequestSpec::new(prompt.clone(), 9), Script::default());
    let c = rig
        .submit(RequestSpec { reads_cache: false, ..RequestSpec::new(prompt.clone(), 9) }, Script::default());
    let d = rig.submit(
        RequestSpec { salt: Salt::of(&[("tenant", "other")]), ..RequestSpec::new(prompt, 9) },
        Script::default(),
    );
    let rows = rig.step();
    assert_eq!(rows, [(a, 496, 512), (b, 512, 513), (c, 0, 513), (d, 0, 513)]);
    let cached: Vec<u32> = [a, b, c, d].iter().map(|&key| rig.cached(key)).collect();
    assert_eq!(cached, [496, 512, 0, 0]);
    // One prompt token alone is a prefill still.
    assert_eq!(rig.plan.rows[1].kind, Kind::Prefill);
}

#[test]
fn equal_prompts_of_one_step_do_not_hit_each_other() {
    let mut rig = Rig::new(config());
    let spec = RequestSpec::new((0..100).collect(), 4);
    let a = rig.submit(spec.clone(), Script::default());
    let b = rig.submit(spec.clone(), Script::default());
    assert_eq!(rig.step(), [(a, 0, 100), (b, 0, 100)]);
    let c = rig.submit(spec, Script::default());
    assert_eq!(rig.step()[2], (c, 96, 100));
}

#[test]
fn without_prefix_caching_nothing_is_hit_or_kept() {
    let mut rig = Rig::new(SchedulerConfig { enable_prefix_caching: false, ..config() });
    let spec = RequestSpec::new((0..100).collect(), 4);
    rig.submit(spec.clone(), Script::default());
    rig.drain();
    assert_eq!(rig.scheduler.stats().pool.cached, 0);
    let again = rig.submit(spec, Script::default());
    assert_eq!(rig.step(), [(again, 0, 100)]);
}

#[test]
fn the_newest_is_preempted_and_comes_back_first_with_its_own_prefix() {
    let mut rig = Rig::new(SchedulerConfig { num_blocks: 6, ..config() });
    let (a, b) = (rig.request(40, 30), rig.request(40, 30));
    let late = rig.request(8, 30);
    assert_eq!(rig.step(), [(a, 0, 40), (b, 0, 40)]);
    while rig.plan.preempted.is_empty() {
        rig.plan();
        rig.execute();
        rig.apply();
    }
    assert_eq!(rig.plan.preempted, [b]);
    assert_eq!(rig.plan.rows.len(), 1, "nobody is admitted in a step that preempted");
    assert_eq!(rig.table(b), []);
    rig.drain();
    let info = |rig: &Rig, key| rig.scheduler.request(key);
    assert_eq!(info(&rig, b), None);
    assert_eq!(rig.output[&b].len(), 30);
    let expected: Vec<u32> = (40..70).map(|p| Script::default().token(p)).collect();
    assert_eq!(rig.output[&b], expected);
    assert_eq!(rig.output[&late].len(), 30);
}

#[test]
fn under_priority_the_worst_waits_and_the_worst_is_preempted() {
    let mut rig =
        Rig::new(SchedulerConfig { policy: Policy::Priority, num_blocks: 6, max_num_seqs: 2, ..config() });
    let mut with = |priority, first: u32| {
        let spec = RequestSpec { priority, ..RequestSpec::new((first..first + 40).collect(), 30) };
        rig.submit(spec, Script::default())
    };
    let (low, high, higher) = (with(5, 0), with(0, 100), with(-1, 200));
    assert_eq!(rig.step(), [(higher, 0, 40), (high, 0, 40)]);
    while rig.plan.preempted.is_empty() {
        rig.step();
    }
    assert_eq!(rig.plan.preempted, [high]);
    rig.drain();
    assert_eq!(rig.output[&low].len(), 30);
}

#[test]
fn drafts_take_what_the_budget_has_beyond_a_token_for_everyone() {
    let mut rig =
        Rig::new(SchedulerConfig { max_num_batched_tokens: 9, num_speculative_tokens: 2, ..config() });
    let keys: Vec<_> = (0..6).map(|_| rig.request(1, 200)).collect();
    assert_eq!(rig.step().len(), 6);
    for _ in 0..30 {
        rig.step();
        let drafts: Vec<_> = rig.plan.rows.iter().map(|row| row.drafts_max).collect();
        assert_eq!(drafts, [2, 1, 0, 0, 0, 0]);
    }
    for key in &keys {
        assert!(rig.output[key].len() > 30, "a row in every step");
    }
}

#[test]
fn a_prefill_that_drafts_cut_leaves_a_token_for_those_behind_it() {
    let mut rig = Rig::new(SchedulerConfig {
        max_num_batched_tokens: 12,
        prefill_chunk: Some(10),
        num_speculative_tokens: 4,
        ..config()
    });
    let a = rig.request(1, 100);
    let b = rig.request(100, 100);
    let c = rig.request(1, 100);
    assert_eq!(rig.step(), [(a, 0, 1), (b, 0, 10), (c, 0, 1)]);
    rig.plan();
    assert_eq!(rig.rows(), [(a, 1, 2), (b, 10, 16), (c, 1, 2)]);
    assert_eq!(rig.plan.rows[0].drafts_max, 4);
}

#[test]
fn a_budget_below_the_number_of_seats_admits_as_many_as_it_serves() {
    let mut rig = Rig::new(SchedulerConfig { max_num_batched_tokens: 3, ..config() });
    let keys: Vec<_> = (0..8).map(|_| rig.request(1, 5)).collect();
    for _ in 0..5 {
        assert_eq!(rig.step().len(), 3);
    }
    assert_eq!(rig.scheduler.stats().waiting, 5);
    rig.drain();
    assert!(keys.iter().all(|key| rig.output[key].len() == 5));
}

#[test]
fn drafts_end_where_the_output_the_model_and_the_budget_end() {
    let drafts = |max_tokens, max_model_len, budget| {
        let mut rig = Rig::new(SchedulerConfig {
            num_speculative_tokens: 4,
            max_model_len,
            max_num_batched_tokens: budget,
            ..config()
        });
        rig.request(20, max_tokens);
        while rig.scheduler.stats().running == 0 || rig.output.values().all(Vec::is_empty) {
            rig.step();
        }
        rig.plan().rows[0].drafts_max
    };
    assert_eq!(drafts(100, 1000, 100), 4);
    assert_eq!(drafts(3, 1000, 100), 1);
    assert_eq!(drafts(2, 1000, 100), 0);
    assert_eq!(drafts(100, 24, 100), 2);
    assert_eq!(drafts(100, 1000, 3), 2);
}

#[test]
fn drafts_never_cost_a_preemption() {
    let mut rig = Rig::new(SchedulerConfig {
        num_speculative_tokens: 4,
        num_blocks: 5,
        enable_prefix_caching: false,
        ..config()
    });
    // Two blocks each, and one to spare that the second one's next token needs.
    let (a, b) = (rig.request(28, 5), rig.request(32, 3));
    rig.step();
    let rows = &rig.plan().rows;
    assert_eq!((rows[0].request, rows[0].drafts_max), (a, 3));
    assert_eq!((rows[1].request, rows[1].drafts_max), (b, 1));
    assert!(rig.plan.preempted.is_empty());
}

#[test]
fn drafts_never_cost_a_prefill_its_blocks() {
    let mut rig = Rig::new(SchedulerConfig {
        num_speculative_tokens: 8,
        num_blocks: 6,
        max_num_batched_tokens: 64,
        prefill_chunk: Some(32),
        enable_prefix_caching: false,
        ..config()
    });
    // Two blocks for the one that decodes, two for each piece of the other.
    let (a, b) = (rig.request(31, 16), rig.request(64, 3));
    assert_eq!(rig.step(), [(a, 0, 31), (b, 0, 32)]);
    rig.plan();
    assert_eq!(rig.rows(), [(a, 31, 32), (b, 32, 64)]);
    assert_eq!((rig.plan.rows[0].drafts_max, rig.plan.preempted.len()), (0, 0));
}

#[test]
fn accepted_drafts_count_and_blocks_behind_them_stay() {
    let mut rig = Rig::new(SchedulerConfig { num_speculative_tokens: 4, ..config() });
    let script = Script { accepted: vec![4, 0, 2], ..Script::default() };
    let key = rig.submit(RequestSpec::new((0..30).collect(), 50), script.clone());
    rig.step();
    assert_eq!(rig.step(), [(key, 30, 31)]);
    assert_eq!(rig.table(key).len(), 3);
    assert_eq!(rig.step(), [(key, 35, 36)]);
    assert_eq!(rig.step(), [(key, 36, 37)]);
    assert_eq!(rig.step(), [(key, 39, 40)]);
    rig.drain();
    let expected: Vec<u32> = (30..80).map(|p| script.token(p)).collect();
    assert_eq!(rig.output[&key], expected);
}

#[test]
fn a_stop_token_ends_a_request_and_what_is_behind_it_is_dropped() {
    let script = Script { accepted: vec![4], ..Script::default() };
    let mut rig = Rig::new(SchedulerConfig { num_speculative_tokens: 4, ..config() });
    let spec =
        RequestSpec { stop_token_ids: vec![script.token(33)], ..RequestSpec::new((0..30).collect(), 50) };
    let key = rig.submit(spec, script.clone());
    rig.drain();
    let expected: Vec<u32> = (30..34).map(|p| script.token(p)).collect();
    assert_eq!(rig.output[&key], expected);
    assert_eq!(rig.finish[&key], FinishReason::Stop);
    assert_eq!(rig.scheduler.tokens(key).len(), 34, "readable until the next plan");
    assert_eq!(rig.scheduler.request(key).unwrap().phase, Phase::Ended(FinishReason::Stop));
}

#[test]
fn the_length_ends_a_request_within_an_accepted_run() {
    let mut rig = Rig::new(SchedulerConfig { num_speculative_tokens: 4, ..config() });
    let script = Script { accepted: vec![4], ..Script::default() };
    let short = rig.submit(RequestSpec::new((0..30).collect(), 7), script.clone());
    let stops = rig.submit(RequestSpec::new((0..30).collect(), 70), Script { output_len: Some(9), ..script });
    rig.drain();
    assert_eq!((rig.output[&short].len(), rig.finish[&short]), (7, FinishReason::Length));
    assert_eq!((rig.output[&stops].len(), rig.finish[&stops]), (9, FinishReason::Stop));
}

#[test]
fn a_request_that_outgrows_the_pool_ends_with_length() {
    let mut rig = Rig::new(SchedulerConfig { num_blocks: 2, ..config() });
    let key = rig.request(32, 500);
    let other = rig.request(5, 500);
    rig.drain();
    assert_eq!((rig.output[&key].len(), rig.finish[&key]), (1, FinishReason::Length));
    assert_eq!((rig.output[&other].len(), rig.finish[&other]), (28, FinishReason::Length));
}

#[test]
fn two_groups_share_the_pool_and_grow_together() {
    let second = KvGroup { id: GroupId(1), name: "indexer".to_owned(), ..KvGroup::dense(1, 1) };
    let mut rig = Rig::new(SchedulerConfig {
        num_blocks: 6,
        num_speculative_tokens: 3,
        groups: vec![KvGroup::dense(1, 1), second],
        ..config()
    });
    let keys = [rig.request(40, 60), rig.request(40, 60), rig.request(90, 60)];
    rig.step();
    let tables = [GroupId(0), GroupId(1)].map(|group| rig.scheduler.block_table(keys[0], group).len());
    assert_eq!(tables, [3, 3]);
    rig.drain();
    let lens = keys.map(|key| rig.output[&key].len());
    assert_eq!(lens, [57, 57, 7], "six blocks of both groups hold 96 tokens, and one token needs no slot");
    assert_eq!(rig.scheduler.stats().pool.used, 0);
}

#[test]
fn a_request_is_aborted_at_any_moment() {
    let mut rig = Rig::new(config());
    let keys: Vec<_> = (0..4).map(|_| rig.request(40, 9)).collect();
    assert!(rig.scheduler.abort(keys[0]).unwrap(), "waiting");
    assert!(!rig.scheduler.abort(keys[0]).unwrap(), "twice");
    rig.step();
    assert!(rig.scheduler.abort(keys[1]).unwrap(), "between steps");
    assert_eq!(rig.scheduler.stats().pool.used, 6);
    rig.plan();
    assert_eq!(rig.plan.finished, [keys[1]]);
    rig.execute();
    assert!(rig.scheduler.abort(keys[2]).unwrap(), "in flight");
    assert_eq!(rig.scheduler.stats().pool.used, 6, "its step may still write");
    rig.apply();
    assert_eq!(rig.scheduler.stats().pool.used, 3);
    assert_eq!(rig.applied.len(), 1);
    rig.drain();
    assert_eq!(rig.scheduler.stats().pool.used, 0);
    assert!(!rig.scheduler.abort(keys[3]).unwrap(), "ended");
    assert!(!rig.scheduler.abort(RequestKey::default()).unwrap(), "never was");
}

#[test]
fn finished_requests_are_told_by_the_next_plan_that_has_rows() {
    let mut rig = Rig::new(config());
    let a = rig.request(4, 1);
    rig.step();
    assert!(rig.plan().rows.is_empty());
    assert!(rig.plan.finished.is_empty());
    let b = rig.request(4, 1);
    assert_ne!(a, b);
    assert_eq!(rig.plan().finished, [a]);
    assert_eq!(rig.plan.id, StepId(1), "an empty plan has no number of its own");
}

#[test]
fn a_failed_step_is_computed_again() {
    let mut rig = Rig::new(config());
    let (a, b) = (rig.request(40, 5), rig.request(40, 5));
    rig.step();
    rig.plan();
    let failed = rig.plan.id;
    rig.plan();
    assert_eq!(rig.plan.id, StepId(failed.0 + 1));
    assert_eq!(rig.plan.preempted, [b, a]);
    assert_eq!(rig.rows(), [(a, 32, 41), (b, 32, 41)]);
    rig.outcome.id = failed;
    let late = rig.scheduler.apply(&rig.outcome, &mut rig.applied);
    assert!(matches!(late, Err(Error::WrongStep { .. })));
    rig.execute();
    rig.apply();
    rig.drain();
    let expected: Vec<u32> = (40..45).map(|p| Script::default().token(p)).collect();
    assert_eq!(rig.output[&a], expected);
}

#[test]
fn an_outcome_that_does_not_answer_the_plan_changes_nothing() {
    let mut rig = Rig::new(config());
    let key = rig.request(40, 5);
    rig.plan();
    rig.execute();
    let good = rig.outcome.clone();
    let mut refuse = |spoil: &dyn Fn(&mut pagedraft_scheduler::StepOutcome<()>), what: &str| {
        let mut bad = good.clone();
        spoil(&mut bad);
        let error = rig.scheduler.apply(&bad, &mut rig.applied).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    };
    refuse(&|o| o.id = StepId(9), "step 9, but step 0 is in flight");
    refuse(&|o| o.rows.clear(), "1 plan rows but its outcome has 0");
    refuse(&|o| o.rows[0].request = RequestKey::default(), "another request");
    refuse(&|o| o.rows[0].tokens = 0..2, "not there");
    refuse(&|o| o.rows[0].tokens = 0..0, "fewer tokens");
    refuse(&|o| o.rows[0].num_drafts = 1, "more drafts than were planned");
    refuse(&|o| o.rows[0].num_accepted = 1, "more drafts than it scored");
    rig.apply();
    assert_eq!(rig.output[&key].len(), 1);
}

#[test]
fn what_could_never_be_served_is_refused() {
    let mut scheduler =
        Scheduler::new(SchedulerConfig { num_blocks: 4, max_model_len: 100, ..config() }).unwrap();
    let mut submit = |len: usize, max_tokens| scheduler.submit(RequestSpec::new(vec![1; len], max_tokens));
    assert_eq!(submit(0, 1), Err(SubmitError::EmptyPrompt));
    assert_eq!(submit(1, 0), Err(SubmitError::NoTokens));
    assert!(matches!(submit(100, 1), Err(SubmitError::LongerThanModel { .. })));
    assert!(matches!(submit(65, 1), Err(SubmitError::LargerThanPool { .. })));
    let parent = submit(64, 1000).unwrap();
    let other = RequestSpec { fork_of: Some(parent), ..RequestSpec::new(vec![2; 64], 1) };
    assert_eq!(scheduler.submit(other), Err(SubmitError::ForkDiffers { parent }));
    assert_eq!(scheduler.stats().waiting, 1);
}

#[test]
fn a_canvas_that_cannot_be_denoised_is_refused() {
    let limits = SchedulerConfig { max_model_len: 100, max_num_batched_tokens: 60, ..config() };
    let mut scheduler = Scheduler::new(limits).unwrap();
    let mut submit = |prompt: usize, len: u32, kept: &[u32]| {
        let canvas = Some(pagedraft_scheduler::Canvas { len, block: 4, suffix: false });
        let spec = RequestSpec::new(vec![1; prompt], len);
        scheduler.submit(RequestSpec { canvas, kept: kept.to_vec(), ..spec })
    };
    for (prompt, len, kept, why) in [
        (4, 10, &[][..], "whole blocks"),
        (4, 8, &[2], "drops prompt tokens"),
        (90, 16, &[], "max_model_len"),
        (50, 16, &[], "max_num_batched_tokens"),
    ] {
        let message = submit(prompt, len, kept).unwrap_err().to_string();
        assert!(message.contains(why), "{message}");
    }
    assert!(submit(4, 8, &[]).is_ok());
}

#[test]
fn a_configuration_under_which_nothing_runs_is_refused() {
    let made = |config| Scheduler::new(config).map(|_| ()).unwrap_err();
    let zero = |name| ConfigError::Zero { name };
    let base = config();
    assert_eq!(made(SchedulerConfig { max_num_seqs: 0, ..base.clone() }), zero("max_num_seqs"));
    let none = SchedulerConfig { max_num_batched_tokens: 0, ..base.clone() };
    assert_eq!(made(none), zero("max_num_batched_tokens"));
    assert_eq!(made(SchedulerConfig { prefill_chunk: Some(0), ..base.clone() }), zero("prefill_chunk"));
    let short = SchedulerConfig { max_model_len: 1, ..base.clone() };
    assert_eq!(made(short), ConfigError::MaxModelLen { given: 1 });
    let chunk = SchedulerConfig { enable_chunked_prefill: false, prefill_chunk: Some(8), ..base.clone() };
    assert_eq!(made(chunk), ConfigError::ChunkWithoutChunking { chunk: 8 });
    let size = made(SchedulerConfig { block_size: 24, ..base.clone() });
    assert_eq!(size.to_string(), "block size 24 is not allowed; choose one of [16, 32, 64]");
    let empty = made(SchedulerConfig { num_blocks: 0, ..base });
    assert!(empty.to_string().contains("at least one block"));
}
