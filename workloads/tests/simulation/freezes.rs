use pagedraft_workloads::sim::Freeze;

use crate::world::{options, request, run};

#[test]
fn the_p99_of_a_run_that_froze_is_the_analytic_one() {
    // 100 requests a second for 60 s, each a step of 1 ms; from 30 s on nothing happens for 10 s.
    let (gap_ms, at_ms, for_ms) = (10.0, 30_000.0, 10_000.0);
    let mut options = options();
    options.scheduler.max_num_seqs = 2048;
    options.scheduler.max_num_batched_tokens = 4096;
    options.cost.freezes = vec![Freeze { at_s: at_ms / 1e3, for_s: for_ms / 1e3 }];
    let stream = (0..6000).map(|i| request(i, Some(i * 10_000_000), vec![1], 1)).collect();
    let outcome = run(stream, &options);

    // Who came first in the freeze is computed right behind it, the others in the step after that.
    let analytic = |i: u32| {
        let sent = f64::from(i) * gap_ms;
        let frozen = (at_ms..at_ms + for_ms).contains(&sent);
        let until = if sent == at_ms { at_ms + for_ms + 1.0 } else { at_ms + for_ms + 2.0 };
        if frozen { until - sent } else { 1.0 }
    };
    let mut expected: Vec<f64> = (0..6000).map(analytic).collect();
    let mut found: Vec<f64> = (0..6000).map(|i| outcome.line(i).ttft_ms.unwrap()).collect();
    expected.sort_by(f64::total_cmp);
    found.sort_by(f64::total_cmp);
    // 60 of 6000 are above p99: those that came in the first 0.6 s of the freeze.
    let p99 = expected[5940];
    assert!((p99 - 9400.0).abs() < 20.0, "{p99}");
    assert!((found[5940] / p99 - 1.0).abs() < 0.01, "{} for {p99}", found[5940]);
    let reported = outcome.recorder.summary().latencies.ttft.p99.unwrap();
    assert!((reported / p99 - 1.0).abs() < 0.01, "{reported} for {p99}");
    let wrong = expected.iter().zip(&found).filter(|(e, f)| (*e - *f).abs() > 2.0).count();
    assert_eq!(wrong, 0);
}
