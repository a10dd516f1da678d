use pagedraft_workloads::sim::{Router, SimOptions};

use crate::world::{Outcome, Stream, options, request, run};

const MS: u64 = 1_000_000;

fn with(router: Router, replicas: u32) -> SimOptions {
    let mut options = options();
    (options.router, options.replicas) = (router, replicas);
    options
}

/// Requests that each engine got.
fn requests(outcome: &Outcome, replicas: u32) -> Vec<usize> {
    let of = |replica| outcome.seen.lines.iter().filter(|line| line.replica == replica).count();
    (0..replicas).map(of).collect()
}

#[test]
fn round_robin_gives_each_engine_its_turn() {
    let stream = (0..30).map(|i| request(i, Some(i * MS / 2), vec![i as u32; 5], 3)).collect();
    let outcome = run(stream, &with(Router::RoundRobin, 3));
    assert_eq!(requests(&outcome, 3), [10, 10, 10]);
    assert!((0..30).all(|i| u64::from(outcome.line(i).replica) == i % 3));
}

/// Every third request is long: in turn, one engine gets all of those.
fn lopsided() -> Stream {
    let output = |i| if i % 3 == 0 { 200 } else { 5 };
    (0..90).map(|i| request(i, Some(i * 2 * MS), vec![i as u32; 40], output(i))).collect()
}

#[test]
fn the_least_loaded_engine_gets_the_next_request() {
    let tokens = |outcome: &Outcome| -> Vec<u32> {
        let of = |replica| outcome.seen.lines.iter().filter(move |line| line.replica == replica);
        (0..3).map(|replica| of(replica).map(|line| line.output_tokens).sum()).collect()
    };
    let uneven =
        |tokens: Vec<u32>| *tokens.iter().max().unwrap() as f64 / *tokens.iter().min().unwrap() as f64;
    let robin = uneven(tokens(&run(lopsided(), &with(Router::RoundRobin, 3))));
    let least = uneven(tokens(&run(lopsided(), &with(Router::LeastLoaded, 3))));
    assert!(robin > 20.0 && least < 1.3, "{robin} in turn, {least} by load");
}

/// Conversations in turn, whose prompts share 320 tokens each.
fn conversations() -> Stream {
    (0..200)
        .map(|i| {
            let (talk, turn) = ((i * 7) % 5, i / 5);
            let mut prompt: Vec<u32> = (0..320).map(|t| talk as u32 * 1000 + t).collect();
            prompt.extend((0..20).map(|t| 100_000 + turn as u32 * 50 + t));
            request(i, Some(i * 8 * MS), prompt, 10)
        })
        .collect()
}

#[test]
fn the_engine_that_has_the_prefix_gets_the_request() {
    let hits = |router| -> (u32, Vec<usize>) {
        let outcome = run(conversations(), &with(router, 4));
        (outcome.seen.lines.iter().filter_map(|line| line.cached_tokens).sum(), requests(&outcome, 4))
    };
    let (robin, _) = hits(Router::RoundRobin);
    let (aware, spread) = hits(Router::PrefixAware);
    // Each talk's first request misses, in one engine instead of all four.
    assert_eq!(aware, (200 - 5) * 320);
    assert_eq!(robin, (200 - 5 * 4) * 320);
    assert!(spread.iter().all(|&n| n >= 40), "{spread:?}");
}

#[test]
fn a_prefix_does_not_outweigh_a_full_engine() {
    // 300 requests at once that share a prefix; the first has been computed.
    let shared: Vec<u32> = (0..64).collect();
    let mut stream = vec![request(0, Some(0), shared.clone(), 2)];
    stream.extend((1..300).map(|i| {
        let mut prompt = shared.clone();
        prompt.push(1000 + i as u32);
        request(i, Some(10 * MS), prompt, 100)
    }));
    let outcome = run(stream, &with(Router::PrefixAware, 2));
    let spread = requests(&outcome, 2);
    assert!(spread[0] > spread[1] && spread[1] > 80, "{spread:?}");
}

#[test]
fn one_engine_serves_all_whatever_the_router() {
    let hash = |router| {
        let outcome = run(lopsided(), &with(router, 1));
        assert_eq!(requests(&outcome, 1), [90]);
        outcome.report.event_log_sha256
    };
    assert_eq!(hash(Router::RoundRobin), hash(Router::LeastLoaded));
    assert_eq!(hash(Router::RoundRobin), hash(Router::PrefixAware));
}
