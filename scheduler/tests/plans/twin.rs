//! The scheduler against a slow obvious one: same plans, same tables, same pool, step by step.

use std::collections::{BTreeMap, BTreeSet};

use pagedraft_block_manager::{GroupId, Salt};
use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{
    Canvas, CostCurve, DraftControl, Executor, KvView, Policy, Progress, RequestKey, RequestSpec, Scheduler,
    SchedulerConfig, StepCosts, StepOutcome, StepPlan, StepTimes,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::reference::{Plan, Reference, Req, Row};

const TOKENS_END: u32 = 50;

#[derive(Clone, Debug)]
struct Arrival {
    step: usize,
    family: u32,
    shared: usize,
    own: usize,
    max_tokens: u32,
    priority: i32,
    salted: bool,
    reads_cache: bool,
    forks: Option<usize>,
    stops: bool,
    most_drafts: u16,
    canvas: Option<Canvas>,
    script: Script,
}

#[derive(Clone, Copy, Debug)]
struct Abort {
    step: usize,
    request: usize,
    in_flight: bool,
}

#[derive(Clone, Debug)]
struct Workload {
    config: SchedulerConfig,
    arrivals: Vec<Arrival>,
    aborts: Vec<Abort>,
    /// Steps that fail: executed, never applied.
    failures: BTreeSet<usize>,
}

fn configs() -> impl Strategy<Value = SchedulerConfig> {
    (
        prop::sample::select(vec![16, 32]),
        prop_oneof![2u32..9, 6u32..24],
        1u32..7,
        prop_oneof![1u32..12, 12u32..90],
        20u32..260,
        (any::<bool>(), any::<bool>(), any::<bool>()),
        prop::option::of(1u32..40),
        0u16..5,
    )
        .prop_map(|(block_size, num_blocks, seats, budget, length, flags, chunk, drafts)| {
            SchedulerConfig {
                block_size,
                num_blocks,
                max_num_seqs: seats,
                max_num_batched_tokens: budget,
                max_model_len: length,
                enable_chunked_prefill: flags.0,
                enable_prefix_caching: flags.1,
                prefill_chunk: chunk.filter(|_| flags.0),
                num_speculative_tokens: drafts,
                policy: if flags.2 { Policy::Priority } else { Policy::Fcfs },
                ..SchedulerConfig::default()
            }
        })
}

fn arrivals() -> impl Strategy<Value = Arrival> {
    (
        (0usize..16, 0u32..3, 0usize..70, 0usize..30, 1u32..60),
        (-1i32..2, prop::bool::weighted(0.2), prop::bool::weighted(0.8)),
        (
            prop::option::weighted(0.4, 0usize..12),
            prop::bool::weighted(0.3),
            prop::collection::vec(0u16..5, 0..4),
            prop::option::weighted(0.3, 1u32..40),
            0u64..3,
            prop::option::weighted(0.3, 0u16..4),
        ),
        (prop::option::weighted(0.25, (1u32..5, 1u32..9)), prop::collection::vec(1u32..5, 0..3), 0u32..3),
    )
        .prop_map(
            |((step, family, shared, own, max_tokens), (priority, salted, reads_cache), rest, canvas)| {
                let (forks, stops, accepted, output_len, seed, most_drafts) = rest;
                let (canvas, passes, refresh_every) = canvas;
                let canvas =
                    canvas.map(|(blocks, block)| Canvas { len: blocks * block, block, suffix: false });
                Arrival {
                    step,
                    family,
                    shared,
                    own,
                    max_tokens,
                    priority,
                    salted,
                    reads_cache,
                    forks,
                    stops,
                    most_drafts: most_drafts.unwrap_or(u16::MAX),
                    canvas,
                    script: Script { output_len, accepted, seed, passes, refresh_every, ..Script::default() },
                }
            },
        )
}

fn workloads() -> impl Strategy<Value = Workload> {
    let aborts = (0usize..40, 0usize..12, any::<bool>()).prop_map(|(step, request, in_flight)| Abort {
        step,
        request,
        in_flight,
    });
    (
        configs(),
        prop::collection::vec(arrivals(), 1..12),
        prop::collection::vec(aborts, 0..5),
        prop::collection::btree_set(0usize..40, 0..3),
    )
        .prop_map(|(config, mut arrivals, aborts, failures)| {
            arrivals.sort_by_key(|arrival| arrival.step);
            Workload { config, arrivals, aborts, failures }
        })
}

struct Both {
    fast: Scheduler,
    slow: Reference,
    fake: FakeExecutor,
    keys: Vec<RequestKey>,
    numbers: BTreeMap<RequestKey, usize>,
}

impl Both {
    fn submit(&mut self, number: usize, arrival: &Arrival) {
        let shares = |p: &usize| *p < self.keys.len() && self.slow.requests[*p].canvas.is_none();
        let parent = arrival.forks.filter(shares).filter(|_| arrival.canvas.is_none());
        let mut prompt: Vec<u32> = (0..arrival.shared as u32)
            .map(|i| 1_000_000 * (arrival.family + 1) + i)
            .chain((0..arrival.own as u32).map(|i| 10_000_000 * (number as u32 + 1) + i))
            .collect();
        let mut salt = if arrival.salted { Salt::of(&[("tenant", "other")]) } else { Salt::NONE };
        if let Some(p) = parent {
            let parent = &self.slow.requests[p];
            prompt = parent.tokens[..parent.prompt_len].to_vec();
            salt = parent.salt;
        }
        let max_tokens = arrival.canvas.map_or(arrival.max_tokens, |canvas| canvas.len);
        let stop_ids: Vec<u32> = if arrival.stops && arrival.canvas.is_none() {
            // Half of all scripted tokens of this position or later: some request will stop early.
            (0..TOKENS_END).filter(|p| p % 7 == 3).map(|p| arrival.script.token(p + 40)).collect()
        } else {
            vec![]
        };
        let spec = RequestSpec {
            stop_token_ids: stop_ids.clone(),
            priority: arrival.priority,
            salt,
            reads_cache: arrival.reads_cache,
            fork_of: parent.map(|p| self.keys[p]),
            canvas: arrival.canvas,
            most_drafts: arrival.most_drafts,
            ..RequestSpec::new(prompt.clone(), max_tokens)
        };
        let Ok(key) = self.fast.submit(spec) else {
            return;
        };
        self.fake.insert(key, prompt.len() as u32, arrival.script.clone());
        self.numbers.insert(key, self.keys.len());
        self.keys.push(key);
        self.slow.submit(Req {
            prompt_len: prompt.len(),
            tokens: prompt,
            max_tokens: max_tokens as usize,
            stop_ids,
            most_drafts: arrival.most_drafts.into(),
            priority: arrival.priority,
            salt,
            reads_cache: arrival.reads_cache,
            fork_of: parent,
            computed: 0,
            blocks: vec![],
            preemptions: 0,
            cached: None,
            admitted_in: None,
            ended: None,
            canvas: arrival.canvas.map(|canvas| (canvas.len as usize, canvas.block as usize)),
            refresh: true,
            starved: false,
        });
    }

    fn abort(&mut self, request: usize) {
        if let Some(&key) = self.keys.get(request) {
            assert_eq!(self.fast.abort(key).unwrap(), self.slow.abort(request));
        }
    }

    fn numbered(&self, plan: &StepPlan) -> Plan {
        let number = |key: &RequestKey| self.numbers[key];
        Plan {
            rows: plan
                .rows
                .iter()
                .map(|row| Row {
                    request: number(&row.request),
                    kind: row.kind.clone(),
                    start: row.tokens.start as usize,
                    end: row.tokens.end as usize,
                    drafts: row.drafts_max as usize,
                    samples: row.samples,
                })
                .collect(),
            copies: plan.copies.iter().map(|c| (c.src.0, c.dst.0)).collect(),
            preempted: plan.preempted.iter().map(number).collect(),
            finished: plan.finished.iter().map(number).collect(),
        }
    }

    fn compare_state(&self) {
        let stats = self.fast.stats().pool;
        assert_eq!(stats.used + stats.free, stats.num_blocks);
        assert_eq!((stats.used, stats.free, stats.cached), self.slow.pool());
        let mut held: BTreeSet<u32> = BTreeSet::new();
        for (number, slow) in self.slow.requests.iter().enumerate() {
            let key = self.keys[number];
            let table: Vec<u32> = self.fast.block_table(key, GroupId(0)).iter().map(|b| b.0).collect();
            assert_eq!(table, slow.blocks, "table of request {number}");
            held.extend(table.iter().copied());
            let Some(info) = self.fast.request(key) else {
                assert!(slow.ended.is_some());
                continue;
            };
            assert_eq!(self.fast.tokens(key), &slow.tokens);
            assert_eq!(info.num_preemptions, slow.preemptions);
            assert_eq!(info.num_cached_tokens as usize, slow.cached.unwrap_or_default());
            // Whatever is written next belongs to nobody else.
            let writable = slow.computed / self.fast.config().block_size as usize;
            for block in table.iter().skip(writable) {
                let owners = self.slow.requests.iter();
                let owners = owners.filter(|other| other.blocks.contains(block)).count();
                assert_eq!(owners, 1, "block {block} of request {number} is shared");
            }
        }
        assert_eq!(held.len() as u32, stats.used);
    }
}

fn play(workload: &Workload, costs: Option<&StepCosts>) {
    let mut both = Both {
        fast: Scheduler::new(workload.config.clone()).unwrap(),
        slow: Reference::new(workload.config.clone()),
        fake: FakeExecutor::new(),
        keys: vec![],
        numbers: BTreeMap::new(),
    };
    let control = costs.map(|costs| DraftControl::new(workload.config.num_speculative_tokens, costs));
    both.fast.set_draft_control(control);
    let mut plan = StepPlan::default();
    let mut outcome = StepOutcome::default();
    let mut applied = vec![];
    let mut arrivals = workload.arrivals.iter().enumerate().peekable();
    let mut step = 0;
    while arrivals.peek().is_some() || both.fast.has_unfinished() {
        assert!(step < 5_000, "livelock");
        while let Some((number, arrival)) = arrivals.next_if(|(_, a)| a.step <= step) {
            both.submit(number, arrival);
        }
        let abort_now = |both: &mut Both, in_flight| {
            for abort in &workload.aborts {
                if abort.step == step && abort.in_flight == in_flight {
                    both.abort(abort.request);
                    both.compare_state();
                }
            }
        };
        abort_now(&mut both, false);
        both.fast.step(&mut plan).unwrap();
        if let Some(control) = both.fast.draft_control() {
            both.slow.wanted = both.keys.iter().map(|&key| control.wanted(key).into()).collect();
        }
        let expected = both.slow.step();
        assert_eq!(both.numbered(&plan), expected, "plan of step {step}");
        assert_eq!(plan.rows.is_empty(), !both.fast.has_unfinished());
        let sources: BTreeSet<_> = plan.copies.iter().map(|copy| copy.src).collect();
        assert!(plan.copies.iter().all(|copy| !sources.contains(&copy.dst)));
        both.compare_state();
        if !plan.rows.is_empty() {
            let Ok(()) = both.fake.execute(&plan, &both.fast, &mut outcome);
        }
        abort_now(&mut both, true);
        if !plan.rows.is_empty() && !workload.failures.contains(&step) {
            both.fast.apply(&outcome, &mut applied).unwrap();
            both.fast.observe(&StepTimes { propose_us: 20.0, execute_us: 100.0, total_us: 130.0 });
            let results: Vec<_> = outcome
                .rows
                .iter()
                .map(|row| {
                    let range = row.tokens.start as usize..row.tokens.end as usize;
                    let tokens = outcome.tokens[range].to_vec();
                    let refresh = row.progress == Progress::Canvas { refresh: true };
                    (tokens, row.num_accepted as usize, row.stop, refresh)
                })
                .collect();
            both.slow.apply(&results);
            for one in &applied {
                let slow = &both.slow.requests[both.numbers[&one.request]];
                assert_eq!(one.finish, slow.ended);
            }
            both.compare_state();
        }
        step += 1;
    }
    // One more step gives up what a failed last one left in flight; then nobody holds a block.
    both.fast.step(&mut plan).unwrap();
    both.slow.step();
    both.compare_state();
    let stats = both.fast.stats().pool;
    assert_eq!(stats.free, stats.num_blocks);
}

/// How many cases: `PROPTEST_CASES` for a campaign, fewer every day.
fn cases(everyday: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(everyday)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(4000),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn plans_equal_those_of_the_slow_obvious_scheduler(workload in workloads()) {
        play(&workload, None);
    }

    #[test]
    fn plans_are_the_same_with_lengths_that_a_control_chose(
        workload in workloads(),
        slopes in (0.0..30.0, 0.0..5.0),
        proposer_keeps_kv: bool,
    ) {
        let curve = |first: f64, slope: f64| CostCurve {
            points: vec![(1, first), (4, first), (64, first + 60.0 * slope)],
            us_per_context: 0.01, us_per_read: 0.0,
        };
        let (target, draft) = (curve(100.0, slopes.0), curve(10.0, slopes.1));
        play(&workload, Some(&StepCosts { target, draft, proposer_keeps_kv, ..StepCosts::default() }));
    }
}
