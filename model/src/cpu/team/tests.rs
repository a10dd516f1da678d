//! Tests the team under ordinary and hostile use.

use super::*;

#[test]
fn every_share_is_done_exactly_once_in_every_run() {
    for members in [1, 2, 3, 8] {
        let team = Team::new(members).unwrap();
        for round in 0..3000 {
            let done: Vec<AtomicUsize> = (0..members).map(|_| AtomicUsize::new(0)).collect();
            team.run(&|share, shares| {
                assert_eq!(shares, members);
                done[share].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1), "round {round}");
            if round % 1000 == 999 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

#[test]
fn the_panic_of_a_share_reaches_the_caller_and_the_team_lives_on() {
    let team = Team::new(3).unwrap();
    for culprit in 0..3 {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            team.run(&|share, _| assert_ne!(share, culprit, "share {culprit} gives up"));
        }));
        let message = outcome.unwrap_err();
        assert!(message.downcast_ref::<String>().unwrap().contains("gives up"));
        let sum = AtomicUsize::new(0);
        team.run(&|share, _| _ = sum.fetch_add(share, Ordering::Relaxed));
        assert_eq!(sum.load(Ordering::Relaxed), 3);
    }
}

#[test]
fn a_job_that_runs_another_job_and_two_callers_at_once_both_end() {
    let team = Team::new(2).unwrap();
    let inner = AtomicUsize::new(0);
    team.run(&|_, _| {
        team.run(&|_, shares| _ = inner.fetch_add(10 / shares, Ordering::Relaxed));
    });
    assert_eq!(inner.load(Ordering::Relaxed), 20);
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    team.run(&|_, shares| _ = count.fetch_add(2 / shares, Ordering::Relaxed));
                }
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 4000);
}

#[test]
fn chunks_cover_all_items_once_and_in_order() {
    for (items, shares, least) in [(0, 2, 1), (1, 2, 4), (100, 1, 1), (1000, 3, 4), (7, 8, 2)] {
        let chunks = Chunks::new(items, shares, least);
        let mut next = 0;
        while let Some(run) = chunks.draw() {
            assert_eq!(run.start, next);
            assert!(run.len() >= least.min(items - next));
            next = run.end;
        }
        assert_eq!(next, items);
    }
}
