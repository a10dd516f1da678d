use pagedraft_workloads::replay::Status;
use pagedraft_workloads::sim::Router;
use proptest::prelude::*;

use crate::world::{options, random_stream, request, run, speculating};

#[test]
fn the_same_seed_gives_the_same_log_and_another_seed_another() {
    let stream = || random_stream(3, 200, 2_000_000, 100, 30);
    let mut options = speculating(options(), true, 4, 0.6);
    options.replicas = 2;
    options.router = Router::PrefixAware;
    let first = run(stream(), &options);
    let second = run(stream(), &options);
    assert_eq!(first.report, second.report);
    assert_eq!(first.seen.lines, second.seen.lines);
    assert_eq!(first.report.event_log_sha256.len(), 64);
    let hash = first.report.event_log_sha256;
    options.seed = 1;
    assert_ne!(run(stream(), &options).report.event_log_sha256, hash);
    options.seed = 0;
    let mut later = stream();
    later[100].max_tokens += 1;
    assert_ne!(run(later, &options).report.event_log_sha256, hash);
}

#[test]
fn a_preempted_request_gives_as_much_and_holds_nothing_in_the_end() {
    let mut options = options();
    // 12 blocks: two of the eight requests of up to 96 tokens.
    options.scheduler.num_blocks = 12;
    options.scheduler.enable_prefix_caching = false;
    let stream: Vec<_> = (0..8).map(|i| request(i, Some(0), vec![i as u32; 16], 80)).collect();
    let outcome = run(stream, &options);
    assert_eq!(outcome.seen.lines.len(), 8);
    assert!(outcome.seen.lines.iter().any(|line| line.num_preemptions > 0));
    assert!(outcome.seen.lines.iter().all(|line| line.output_tokens == 80 && line.blocks_held == 6));
    let preempted: u32 = outcome.seen.steps.iter().map(|step| step.preempted).sum();
    assert_eq!(preempted, outcome.seen.lines.iter().map(|line| line.num_preemptions).sum::<u32>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_with_all_its_tokens_and_gives_its_blocks_back(
        seed in 0u64..1 << 32,
        num_blocks in 14u32..80,
        max_num_seqs in 1u32..20,
        budget in 4u32..80,
        caching: bool,
        replicas in 1u32..4,
        router in prop_oneof![Just(Router::RoundRobin), Just(Router::LeastLoaded), Just(Router::PrefixAware)],
        concurrency in prop_oneof![Just(None), (1u32..9).prop_map(Some)],
        drafts in 0u16..5,
        keeps_kv: bool,
        batch_expansion: bool,
        auto: bool,
    ) {
        let mut options = options();
        options.scheduler.num_blocks = num_blocks;
        options.scheduler.max_num_seqs = max_num_seqs;
        options.scheduler.max_num_batched_tokens = budget;
        options.scheduler.enable_prefix_caching = caching;
        if drafts > 0 {
            options = speculating(options, keeps_kv, drafts, 0.7);
            if let Some(speculation) = &mut options.speculation {
                (speculation.batch_expansion, speculation.auto) = (batch_expansion, auto);
            }
        }
        (options.replicas, options.router, options.max_concurrency) = (replicas, router, concurrency);
        options.seed = seed;
        let stream = random_stream(seed, 60, 1_500_000, 120, 60);
        let asked: Vec<_> = stream.iter().map(|r| (r.prompt.len() as u32, r.max_tokens)).collect();
        let outcome = run(stream, &options);

        prop_assert_eq!(outcome.seen.lines.len(), 60);
        prop_assert_eq!((outcome.recorder.in_flight(), outcome.recorder.done()), (0, 60));
        for (index, (prompt, output)) in (0u64..).zip(asked) {
            let line = outcome.line(index);
            prop_assert_eq!(line.status, Status::Finished);
            prop_assert_eq!((line.prompt_tokens, line.output_tokens), (Some(prompt), output));
            // The last token needs no slot.
            prop_assert!(line.blocks_held >= (prompt + output - 1).div_ceil(16));
            prop_assert!(line.cached_tokens < Some(prompt));
        }
        for replica in 0..replicas {
            let of = |step: &&_| -> bool { let step: &pagedraft_workloads::replay::StepReport = step; step.replica == replica };
            if let Some(last) = outcome.seen.steps.iter().rfind(of) {
                prop_assert_eq!((last.pool.used, last.pool.free), (0, u64::from(num_blocks)));
            }
            let steps: Vec<_> = outcome.seen.steps.iter().filter(of).collect();
            for pair in steps.windows(2) {
                prop_assert!(pair[0].end_ns <= pair[1].start_ns, "steps of an engine overlap");
            }
        }
    }
}
