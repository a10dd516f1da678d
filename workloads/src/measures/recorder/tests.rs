#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod by_hand;
mod schedule;
mod streams;

use std::collections::BTreeMap;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::measures::distribution::MOST_KEPT;
use crate::measures::{Figures, Latencies, Summary, Tally};
use crate::replay::Status;
use schedule::{BLOCK_SIZE, LoggedRequest, Schedule, run};

/// The point at `share * (n - 1)` of the line through (rank, value): numpy's percentile.
fn interpolated(sorted: &[f64], share: f64) -> f64 {
    let x = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[x.floor() as usize], sorted[x.ceil() as usize]);
    low + (high - low) * x.fract()
}

/// Figures by their definitions. Of more values than are kept one by one percentiles may be 0.1 % too high; no other figure may be off.
fn assert_figures(name: &str, got: &Figures, mut ns: Vec<u64>) {
    ns.sort_unstable();
    let Some(&max) = ns.last() else {
        assert_eq!(*got, Figures::default(), "{name}");
        return;
    };
    let n = ns.len() as f64;
    for (q, got) in [(0.5, got.median), (0.9, got.p90), (0.95, got.p95), (0.99, got.p99), (0.999, got.p99_9)]
    {
        let ms: Vec<f64> = ns.iter().map(|&v| v as f64 / 1e6).collect();
        let (got, want) = (got.unwrap(), interpolated(&ms, q));
        let most = if ns.len() > MOST_KEPT { want * 1.001 + 1e-6 } else { want + 1e-9 };
        assert!(got >= want - 1e-9 && got <= most, "{name} {q}: {got} for {want}");
    }
    let mean = ns.iter().map(|&v| v as f64 / 1e6).sum::<f64>() / n;
    let std = (ns.iter().map(|&v| (v as f64 / 1e6 - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert_near(&format!("{name} mean"), got.mean.unwrap(), mean);
    assert_near(&format!("{name} std"), got.std.unwrap(), std);
    assert_near(&format!("{name} max"), got.max.unwrap(), max as f64 / 1e6);
}

fn assert_near(name: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-6 * want.abs() + 1e-6, "{name}: {got} for {want}");
}

fn assert_tally(name: &str, got: &Tally, mut values: Vec<f64>, tolerance: f64) {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    assert_eq!(got.count, n as u64, "{name}");
    if n == 0 {
        return;
    }
    let at = |q: f64| interpolated(&values, q);
    let mean = values.iter().sum::<f64>() / n as f64;
    for (figure, got, want) in [
        ("min", got.min, values[0]),
        ("p50", got.p50, at(0.5)),
        ("p95", got.p95, at(0.95)),
        ("max", got.max, values[n - 1]),
        ("mean", got.mean, mean),
    ] {
        assert!((got - want).abs() <= tolerance + 1e-9 * want, "{name} {figure}: {got} for {want}");
    }
}

struct Naive {
    ttft: Vec<u64>,
    tpot: Vec<u64>,
    e2el: Vec<u64>,
    queue: Vec<u64>,
    step: Vec<u64>,
    token: Vec<u64>,
    burst: Vec<u64>,
}

fn naive<'a>(requests: impl Iterator<Item = &'a LoggedRequest>) -> Naive {
    let none = Vec::new;
    let mut all = Naive {
        ttft: none(),
        tpot: none(),
        e2el: none(),
        queue: none(),
        step: none(),
        token: none(),
        burst: none(),
    };
    for request in requests {
        let emissions = Schedule::emissions(request);
        for (gap, row) in &emissions {
            let n = u64::from(row.row.new_tokens);
            if let Some(gap) = *gap {
                all.step.push(gap);
                for i in 0..n {
                    all.token.push((gap as f64 / n as f64).round() as u64);
                    all.burst.push(if i == 0 { gap } else { 0 });
                }
            }
        }
        if request.fate == 0 {
            let (first, last) = (emissions[0].1.end_ns, emissions[emissions.len() - 1].1.end_ns);
            all.ttft.push(first - request.intended_ns);
            all.e2el.push(last - request.intended_ns);
            all.queue.push(request.rows[0].start_ns - request.intended_ns);
            if request.output.len() > 1 {
                all.tpot.push(((last - first) as f64 / (request.output.len() - 1) as f64).round() as u64);
            }
        }
    }
    all
}

fn assert_latencies(got: &Latencies, itl: &crate::measures::InterToken, want: Naive) {
    assert_figures("ttft", &got.ttft, want.ttft);
    assert_figures("tpot", &got.tpot, want.tpot);
    assert_figures("e2el", &got.e2el, want.e2el);
    assert_figures("queue", &got.queue, want.queue);
    assert_figures("itl", &got.itl, want.step.clone());
    assert_figures("step", &itl.step, want.step);
    assert_figures("token", &itl.token, want.token);
    assert_figures("burst", &itl.burst, want.burst);
}

fn assert_lines(all: &Schedule) {
    assert_eq!(all.lines.len(), all.requests.len());
    for line in &all.lines {
        let request = &all.requests[&line.request_id.parse().unwrap()];
        let want =
            [Status::Finished, Status::Failed, Status::Failed, Status::Skipped][usize::from(request.fate)];
        assert_eq!((line.status, &line.category), (want, &request.category));
        assert_eq!(line.intended_arrival_s, Some(request.intended_ns as f64 / 1e9));
        if request.fate == 3 {
            assert!(line.sent_s.is_none() && line.skip_reason.is_some() && line.output_tokens == 0);
            continue;
        }
        let emissions = Schedule::emissions(request);
        let ms = |ns: Option<u64>| ns.map(|ns| (ns - request.intended_ns) as f64 / 1e6);
        let (first, last) = (emissions.first().map(|e| e.1.end_ns), emissions.last().map(|e| e.1.end_ns));
        assert_eq!(line.first_token_s, first.map(|ns| ns as f64 / 1e9));
        assert_eq!(line.sent_s, Some(request.sent_ns as f64 / 1e9));
        assert_eq!(line.output_tokens as usize, request.output.len());
        assert_eq!(line.queue_ms, ms(request.rows.first().map(|r| r.start_ns)));
        assert_eq!(line.prompt_tokens, Some(request.prompt_tokens));
        if request.fate == 0 {
            assert_eq!((line.ttft_ms, line.e2el_ms), (ms(first), ms(last)));
            assert_eq!(line.finish_s, last.map(|ns| ns as f64 / 1e9));
            assert_eq!(line.tpot_ms.is_some(), request.output.len() > 1);
            assert_eq!(line.score, Some(f64::from(u8::from(request.answer == "yes"))));
            assert_eq!((line.num_preemptions, line.blocks_held, line.replica), (2, 5, request.replica));
            assert_eq!(line.cached_tokens, Some(request.cached_tokens));
            let bytes: Vec<u8> = request.output.iter().flat_map(|id| id.to_le_bytes()).collect();
            let hex: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(line.output_hash.as_deref(), Some(&hex[..16]));
            assert_eq!(line.token_ids, all.options.save_outputs.then(|| request.output.clone()));
        }
        let most = request.rows.iter().map(|r| r.row.num_drafts).max().unwrap_or(0);
        let at = |of: fn(&crate::replay::RowReport) -> u16| -> Vec<u32> {
            (0..most).map(|i| request.rows.iter().filter(|r| of(&r.row) > i).count() as u32).collect()
        };
        assert_eq!(line.drafted_by_position, at(|r| r.num_drafts));
        assert_eq!(line.accepted_by_position, at(|r| r.num_accepted));
    }
}

fn assert_blocks(all: &Schedule, summary: &Summary) {
    let (mut blocks, mut tokens, mut shares) = (vec![], vec![], vec![]);
    let mut hot = BTreeMap::<(u32, u32), u64>::new();
    for request in all.requests.values() {
        let decodes: Vec<_> = Schedule::emissions(request).into_iter().filter(|e| e.0.is_some()).collect();
        for (_, row) in &decodes {
            let n = row.row.context.div_ceil(BLOCK_SIZE);
            blocks.push(f64::from(n));
            tokens.extend((0..n).map(|b| f64::from((row.row.context - b * BLOCK_SIZE).min(BLOCK_SIZE))));
            shares.push(f64::from(request.cached_tokens / BLOCK_SIZE) / f64::from(n));
        }
        if request.fate < 2 {
            for &block in &request.prefix_blocks {
                *hot.entry((request.replica, block)).or_default() += decodes.len() as u64;
            }
        }
    }
    assert_tally("blocks", &summary.engine.as_ref().unwrap().unique_blocks, blocks, 0.0);
    assert_tally("tokens", &summary.engine.as_ref().unwrap().tokens_per_touched_block, tokens, 0.0);
    assert_tally("shares", &summary.engine.as_ref().unwrap().prefix_intersection_ratio, shares, 0.5 / 4096.0);
    let mut most: Vec<_> = hot.into_iter().filter(|h| h.1 > 0).collect();
    most.sort_by_key(|h| (std::cmp::Reverse(h.1), h.0));
    let got: Vec<_> = summary.engine.as_ref().unwrap().prefix_hot_blocks["0"]
        .iter()
        .map(|h| ((h.replica, h.block_id), h.touch_count))
        .collect();
    assert_eq!(got, most[..most.len().min(16)]);
}

fn assert_timeline(all: &Schedule, summary: &Summary) {
    let timeline = &summary.timeline;
    let bins = timeline.arrivals.len();
    assert!(bins <= 600);
    let width_ns = (timeline.bin_s * 1e9).round() as u64;
    let bin = |ns: u64| (ns / width_ns) as usize;
    let (mut arrivals, mut tokens, mut finished) = (vec![0; bins], vec![0; bins], vec![0; bins]);
    let (mut prompt, mut drafts, mut cached) = (vec![0; bins], vec![0; bins], vec![0; bins]);
    for request in all.requests.values().filter(|r| r.fate != 3) {
        arrivals[bin(request.intended_ns)] += 1;
        let rows = Schedule::emissions(request);
        if let Some((_, first)) = rows.first() {
            cached[bin(first.end_ns)] += u64::from(request.cached_tokens);
        }
        if request.fate == 0 {
            finished[bin(rows[rows.len() - 1].1.end_ns)] += 1;
        }
        for (_, row) in rows {
            tokens[bin(row.end_ns)] += u64::from(row.row.new_tokens);
        }
        request.rows.iter().for_each(|r| drafts[bin(r.end_ns)] += u64::from(r.row.num_drafts));
    }
    let (mut running, mut kv) = (0.0, 0.0);
    let mut last = BTreeMap::<u32, (u64, f64, f64)>::new();
    let (mut peak, mut peak_share) = (0, 0.0f64);
    for (i, step) in all.steps.iter().enumerate() {
        prompt[bin(step.end_ns)] += u64::from(step.prefill_tokens);
        let (since, was, used) = last.get(&step.replica).copied().unwrap_or_default();
        let (between, spent) = ((step.start_ns - since) as f64, (step.end_ns - step.start_ns) as f64);
        running += was * between + f64::from(step.running) * spent;
        kv += used * between + step.pool_during.used as f64 * spent;
        let left = f64::from(step.running) - step.ended.len() as f64;
        last.insert(step.replica, (step.end_ns, left, step.pool.used as f64));
        let others = (0..3).filter(|r| *r != step.replica).filter_map(|r| {
            let last = all.steps[..i].iter().rev().find(|s| s.replica == r)?;
            Some(if last.end_ns > step.start_ns { last.pool_during.used } else { last.pool.used })
        });
        peak = peak.max(step.pool_during.used + others.sum::<u64>());
        peak_share = peak_share.max(step.pool_during.used as f64 / 100.0);
    }
    assert_eq!(
        (summary.engine.as_ref().unwrap().kv.peak_used, summary.engine.as_ref().unwrap().kv.peak_share),
        (peak, peak_share)
    );
    assert_eq!(timeline.kv_max_share.iter().copied().fold(0.0, f64::max), peak_share);
    assert_eq!(timeline.observed_from_s, 0.0);
    assert_eq!((&timeline.arrivals, &timeline.finished), (&arrivals, &finished));
    assert_eq!((&timeline.output_tokens, &timeline.prompt_tokens_computed), (&tokens, &prompt));
    assert_eq!((&timeline.drafts, &timeline.cached_tokens), (&drafts, &cached));
    let width = |i: usize| (summary.duration - i as f64 * timeline.bin_s).min(timeline.bin_s) * 1e9;
    let integral = |means: &[f64]| means.iter().enumerate().map(|(i, v)| v * width(i)).sum::<f64>();
    let end = summary.duration * 1e9;
    assert!((integral(&timeline.running) - running).abs() <= 1e-6 * end, "running");
    assert!((integral(&timeline.kv_used) - kv).abs() <= 1e-6 * end, "kv");
    assert_near(
        "mean share",
        summary.engine.as_ref().unwrap().kv.mean_share,
        kv / end / (100 * last.len()) as f64,
    );
}

fn assert_totals(all: &Schedule, summary: &Summary) {
    let of = |fate: u8| all.requests.values().filter(move |r| r.fate == fate);
    assert_eq!(summary.completed, of(0).count() as u64);
    assert_eq!(summary.failed, (of(1).count() + of(2).count()) as u64);
    assert_eq!(summary.skipped.values().sum::<u64>(), of(3).count() as u64);
    assert_eq!(all.recorder.done(), all.requests.len() as u64);
    let output: u64 = of(0).map(|r| r.output.len() as u64).sum();
    assert_eq!(summary.total_output_tokens, output);
    assert_eq!(summary.total_input_tokens, of(0).map(|r| u64::from(r.prompt_tokens)).sum::<u64>());
    assert_eq!(
        summary.prefix_cache.unwrap().cached_tokens,
        of(0).map(|r| u64::from(r.cached_tokens)).sum::<u64>()
    );
    let seconds = all.end_ns() as f64 / 1e9;
    assert_near("duration", summary.duration, seconds);
    assert_near("output", summary.output_throughput, output as f64 / seconds);
    assert_eq!(summary.max_concurrent_requests, all.most_in_flight as u64);
    let mut by_second = BTreeMap::<u64, u64>::new();
    for step in &all.steps {
        let tokens: u64 = step.rows.iter().map(|r| u64::from(r.new_tokens)).sum();
        *by_second.entry(step.end_ns / 1_000_000_000).or_default() += tokens;
    }
    assert_eq!(summary.max_output_tokens_per_s, by_second.values().copied().max().unwrap_or(0));
    let goodput = summary.goodput.unwrap();
    let good = |l: &&crate::replay::RequestLine| {
        l.ttft_ms.is_some_and(|v| v <= 400.0) && l.tpot_ms.is_none_or(|v| v <= 60.0)
    };
    let met = all.lines.iter().filter(|l| l.status == Status::Finished).filter(good).count();
    assert_eq!(goodput.met_all, met as u64);
    assert_near("goodput", summary.request_goodput.unwrap(), met as f64 / seconds);
    let drafts: u64 = all.steps.iter().flat_map(|s| &s.rows).map(|r| u64::from(r.num_drafts)).sum();
    assert_eq!(summary.speculation.as_ref().map_or(0, |s| s.spec_decode_draft_tokens), drafts);
    let yes = of(0).filter(|r| r.category.is_none()).map(|r| f64::from(u8::from(r.answer == "yes")));
    let yes: Vec<f64> = yes.collect();
    if !yes.is_empty() {
        let score = summary.score["all"];
        assert_eq!(score.count, yes.len() as u64);
        assert_near("score", score.mean, yes.iter().sum::<f64>() / yes.len() as f64);
    }
}

fn assert_steady(all: &Schedule, summary: &Summary) {
    let (items, steady) = (all.options.items, &summary.steady);
    let window = items / 10..items - items / 10;
    assert_eq!(window, steady.from_request..steady.to_request);
    assert_latencies(
        &steady.latencies,
        &steady.itl,
        naive(all.requests.values().filter(|r| window.contains(&r.index))),
    );
    if items < 10 {
        assert_eq!(steady.from_s, Some(0.0));
        return;
    }
    let mut done: Vec<_> = all.requests.values().map(|r| (r.done, r.fate)).collect();
    done.sort_unstable();
    let at = |n: u64| done[n as usize - 1].0.1;
    let (from, to) = (at(window.start), at(window.end));
    assert_eq!(steady.from_s, Some(from as f64 / 1e9));
    assert_eq!(steady.to_s, Some(to as f64 / 1e9));
    if to > from {
        let between = &done[window.start as usize..window.end as usize];
        let finished = between.iter().filter(|d| d.1 == 0).count() as f64;
        assert_near("steady", steady.request_throughput.unwrap(), finished / ((to - from) as f64 / 1e9));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_figure_is_that_of_a_second_naive_computation(seed: u64, items in 1u64..120, speculate: bool) {
        let all = run(seed, items, speculate);
        let summary = all.recorder.summary();
        assert_lines(&all);
        assert_latencies(&summary.latencies, &summary.itl, naive(all.requests.values()));
        assert_totals(&all, &summary);
        assert_blocks(&all, &summary);
        assert_timeline(&all, &summary);
        assert_steady(&all, &summary);
    }

    #[test]
    fn a_restored_run_has_the_figures_that_its_lines_have(seed: u64, items in 1u64..80) {
        let all = run(seed, items, true);
        let mut again = crate::measures::Recorder::new(all.options.clone());
        for line in &all.lines {
            let text = serde_json::to_string(line).unwrap();
            again.restore(&serde_json::from_str(&text).unwrap());
        }
        let (was, is) = (all.recorder.summary(), again.summary());
        prop_assert_eq!(is.restored, items);
        prop_assert_eq!(again.done(), items);
        let without_itl = |latencies: &Latencies| Latencies { itl: Figures::default(), ..*latencies };
        prop_assert_eq!(is.latencies, without_itl(&was.latencies));
        prop_assert_eq!(is.steady.latencies, without_itl(&was.steady.latencies));
        prop_assert_eq!(is.speculation, was.speculation);
        prop_assert_eq!(is.score, was.score);
        prop_assert_eq!(is.goodput.map(|g| g.met_all), was.goodput.map(|g| g.met_all));
        prop_assert_eq!(is.prefix_cache, was.prefix_cache);
        prop_assert_eq!((is.rate_sent, is.send_lateness_ms), (was.rate_sent, was.send_lateness_ms));
        prop_assert_eq!(is.timeline.arrivals.iter().sum::<u64>(), was.timeline.arrivals.iter().sum::<u64>());
        prop_assert_eq!((is.completed, is.failed, is.skipped), (was.completed, was.failed, was.skipped));
    }
}
