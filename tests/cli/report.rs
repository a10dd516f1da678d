//! The page of a run says what the run's files say: opened in a browser without a window, it is compared with the trace.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pagedraft_workloads::trace::{KvChange, StepRecord};
use serde_json::Value;

use crate::browser;
use crate::program::{Scratch, pagedraft};

/// A name that would be markup, if it were not escaped.
const NASTY: &str = "</script><img src=x onerror=\"document.title='owned'\">&#39;";

/// A run with prefix hits, forks, drafts and, where blocks are few, preemptions.
fn run(scratch: &Scratch, name: &str, flags: &[&str]) -> Vec<StepRecord> {
    let start = "Once upon a time there was a king, and the king said to the queen: once upon a time there was a king";
    let line = |i: usize| {
        let id = if i == 2 { NASTY.to_owned() } else { format!("r{i}") };
        let prompt = format!(
            "{}{}",
            if i.is_multiple_of(3) { &start[..40] } else { start },
            " and then".repeat(i % 5)
        );
        let sampled = if i == 4 { 0.8 } else { 0.0 };
        let n = if i == 4 { 3 } else { 1 };
        serde_json::json!({"request_id": id, "prompt": prompt, "arrival_step": i, "n": n, "max_tokens": 40 + i,
            "temperature": sampled, "seed": i})
        .to_string()
    };
    let prompts = (0..12).map(line).collect::<Vec<_>>().join("\n");
    let prompts = scratch.write("prompts.jsonl", prompts.as_bytes());
    let (dir, out) = (scratch.path(name), scratch.path("out.jsonl"));
    let mut arguments =
        vec!["generate", "--model", "builtin:target", "--prompts", &prompts, "--max-num-seqs", "4"];
    arguments.extend([
        "--max-model-len",
        "160",
        "--ignore-eos",
        "--prefill-chunk",
        "20",
        "--output-json",
        &out,
    ]);
    arguments.extend(["--trace-out", &dir]);
    arguments.extend(flags);
    let done = pagedraft(&arguments);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let lines = scratch.read(&format!("{name}/trace_steps.jsonl"));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a page becomes once its script has run, at an address within it.
fn open(browser: &str, scratch: &Scratch, page: &str, hash: &str) -> String {
    browser::open(browser, scratch, &format!("file://{page}#{hash}"), |dom| {
        dom.contains("data-ready=\"true\"")
    })
}

/// An attribute `data-NAME` of the block view.
fn data(dom: &str, name: &str) -> String {
    let view = dom.split_once("<section id=\"block-view\"").expect("a block view").1;
    let view = view.split_once('>').unwrap().0;
    let value =
        view.split_once(&format!("data-{name}=\"")).unwrap_or_else(|| panic!("data-{name} in {view}")).1;
    value
        .split_once('"')
        .unwrap()
        .0
        .replace("&quot;", "\"")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

fn numbers(text: &str) -> Vec<i64> {
    text.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().unwrap()).collect()
}

/// What the page must say of a step, by the trace alone.
fn compare(dom: &str, record: &StepRecord, what: &str) {
    assert_eq!(data(dom, "ready"), "true", "{what}");
    assert_eq!(data(dom, "step"), record.step.to_string(), "{what}");
    let (pool, status) = (&record.pool, dom.split_once("id=\"block-view-status\"").unwrap().1);
    // Where several groups share the pool, the page shows that of the metadata.
    let group = pool.by_group.as_ref().and_then(|groups| groups.get("kv"));
    let (used, free, cached) = group.map_or((pool.used, pool.free, pool.cached), |group| {
        (group.used, pool.bytes_total.unwrap() / group.block_bytes - group.used, group.cached)
    });
    let counts = format!("step {}: used {used}, free {free}, cached {cached}", record.step);
    assert!(status[..400.min(status.len())].contains(&counts), "{what}: {counts}");
    let mut slots = numbers(&data(dom, "slots"));
    let mut logged = record.metadata.slot_mapping.clone();
    slots.sort_unstable();
    logged.sort_unstable();
    assert_eq!(slots, logged, "{what}: slots written");
    let sum = |of: fn(&pagedraft_workloads::trace::OutcomeRecord) -> u32| {
        record.outcome.iter().map(of).sum::<u32>()
    };
    assert_eq!(data(dom, "drafts"), sum(|o| o.num_drafts).to_string(), "{what}");
    assert_eq!(data(dom, "accepted"), sum(|o| o.num_accepted).to_string(), "{what}");
    let stored =
        record.kv_events.iter().filter(|e| e.kind == KvChange::Stored && e.group.as_deref() != Some("draft"));
    let published: BTreeSet<i64> = stored.filter_map(|event| event.block).map(i64::from).collect();
    assert_eq!(numbers(&data(dom, "published")).into_iter().collect::<BTreeSet<_>>(), published, "{what}");
}

/// What a request's row wrote through, with the reserve behind it left out.
fn table_of(record: &StepRecord, id: &str) -> Vec<i64> {
    let row = record.rows.iter().position(|row| row.request_id == id).unwrap() as u64;
    let owners = record.plan_rows.as_ref().unwrap();
    let tables = owners.iter().zip(&record.metadata.block_tables).filter(|(owner, _)| **owner == row);
    tables.map(|(_, table)| table.clone().unwrap_or_default()).max_by_key(Vec::len).unwrap()
}

#[test]
fn the_block_view_says_what_the_trace_says() {
    let Some(browser) = browser::find() else { return };
    let scratch = Scratch::new("report-blocks");
    let runs: [(&str, &[&str]); 3] = [
        ("tight", &["--num-blocks", "11", "--draft", "ngram", "--num-speculative-tokens", "auto"]),
        (
            "expanded",
            &[
                "--num-blocks",
                "18",
                "--draft",
                "ngram",
                "--num-speculative-tokens",
                "6",
                "--scorer",
                "batch-expansion",
            ],
        ),
        ("plain", &["--num-blocks", "64"]),
    ];
    let (mut preempted, mut accepted, mut copies) = (0, 0, 0);
    for (name, flags) in runs {
        let records = run(&scratch, name, flags);
        preempted += records.iter().map(|r| r.preempted.len()).sum::<usize>();
        accepted += records.iter().flat_map(|r| &r.outcome).map(|o| o.num_accepted).sum::<u32>();
        copies += records.iter().map(|r| r.copies.len()).sum::<usize>();
        let dir = scratch.path(name);
        let done = pagedraft(&["report", &dir]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let page = format!("{dir}/report.html");
        let interesting = [
            records.iter().position(|r| !r.preempted.is_empty()).unwrap_or(1),
            records.iter().position(|r| r.outcome.iter().any(|o| o.num_accepted > 1)).unwrap_or(2),
            records.len() - 1,
        ];
        for i in interesting {
            let record = &records[i];
            let id = &record.rows.last().unwrap().request_id;
            let hash = format!("step={}&request={}", record.step, percent(id));
            let dom = open(&browser, &scratch, &page, &hash);
            let what = format!("{name}, step {}", record.step);
            compare(&dom, record, &what);
            assert_eq!(&data(&dom, "request"), id, "{what}");
            let (shown, logged) = (numbers(&data(&dom, "table")), table_of(record, id));
            assert_eq!(shown.get(..logged.len()), Some(&logged[..]), "{what}: the table of {id}");
        }
    }
    assert!(preempted > 0 && accepted > 0 && copies > 0, "{preempted} {accepted} {copies}");
}

/// A name in an address.
fn percent(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

#[test]
fn names_from_files_are_text_and_the_page_loads_nothing() {
    let scratch = Scratch::new("report-names");
    run(&scratch, "run", &["--num-blocks", "64"]);
    let mut config = scratch.json("run/config.json");
    config["model_id"] = NASTY.into();
    scratch.write("run/config.json", config.to_string().as_bytes());
    let line = serde_json::json!({"request_id": NASTY, "status": "failed", "error": NASTY, "intended_arrival_s": 0.0,
        "sent_s": null, "first_token_s": null, "finish_s": null, "prompt_tokens": 3, "output_tokens": 0,
        "cached_tokens": 0, "ttft_ms": null, "tpot_ms": null, "e2el_ms": null, "queue_ms": null,
        "drafted_by_position": [], "accepted_by_position": [], "finish_reason": null, "num_preemptions": 0,
        "blocks_held": 0});
    scratch.write("run/requests.jsonl", format!("{line}\n{{\"request_id\": \"cut").as_bytes());
    let done = pagedraft(&["report", &scratch.path("run"), "--out", &scratch.path("page.html")]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let page = scratch.read("page.html");
    assert!(!page.contains("<img"), "markup out of a file");
    for outside in ["http://", "https://", "<script src", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    assert!(page.contains("The last line of requests.jsonl (2) is cut"), "it does not say what it left out");
    if let Some(browser) = browser::find() {
        let dom = open(&browser, &scratch, &scratch.path("page.html"), "step=3");
        assert_eq!(data(&dom, "ready"), "true");
        assert!(!dom.contains("<title>owned"), "a script out of a file ran");
        assert!(!dom.contains("<img"), "markup out of a file");
    }
}

#[test]
fn a_part_of_a_trace_is_the_same_as_in_the_whole() {
    let Some(browser) = browser::find() else { return };
    let scratch = Scratch::new("report-part");
    let flags = ["--num-blocks", "16", "--draft", "ngram", "--num-speculative-tokens", "auto"];
    let records = run(&scratch, "run", &flags);
    let (from, to) = (records[records.len() / 3].step, records[records.len() / 2].step);
    let steps = format!("{from}..{to}");
    let done =
        pagedraft(&["report", &scratch.path("run"), "--steps", &steps, "--out", &scratch.path("part.html")]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let by_number: BTreeMap<u64, &StepRecord> = records.iter().map(|r| (r.step, r)).collect();
    for step in [from, from + 3, to - 1] {
        let dom = open(&browser, &scratch, &scratch.path("part.html"), &format!("step={step}"));
        let (_, record) = by_number.range(..=step).next_back().unwrap();
        compare(&dom, record, &format!("step {step} of {steps}"));
    }
}

#[test]
fn what_is_no_run_is_bad_input() {
    let scratch = Scratch::new("report-bad");
    scratch.write("empty/nothing", b"");
    let cases: [(&str, &[u8], &str); 2] =
        [("config.json", b"{", "it is not JSON"), ("other", b"", "is no run directory")];
    for (file, bytes, says) in cases {
        scratch.write(&format!("bad-{file}/{file}"), bytes);
        let done = pagedraft(&["report", &scratch.path(&format!("bad-{file}"))]);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(says), "{}", done.stderr);
    }
    assert!(!Path::new(&scratch.path("bad-other/report.html")).exists());
    let done = pagedraft(&["report", &scratch.path("empty"), "--steps", "5..2"]);
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("A..B"), "{}", done.stderr);
}

#[test]
fn steps_beyond_the_run_and_a_torn_summary_are_told() {
    let scratch = Scratch::new("report-told");
    run(&scratch, "run", &[]);
    scratch.write("run/summary.json", b"{\"completed\": 3, ");
    let done = pagedraft(&["report", &scratch.path("run"), "--steps", "900000..900010"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("--steps 900000..900010: the run has none of these"), "{}", done.stderr);
    let page = scratch.read("run/report.html");
    assert!(page.contains("the run has none of these") && page.contains("The summary is left out"));
}

/// A simulated run, and its summary.
fn simulated(scratch: &Scratch, name: &str, flags: &[&str]) -> Value {
    let dir = scratch.path(name);
    let mut arguments = vec!["replay", "--workload", "random", "--executor", "sim", "--out", &dir];
    arguments.extend([
        "--num-requests",
        "100",
        "--input-len",
        "80",
        "--output-len",
        "12",
        "--slo",
        "ttft=40",
    ]);
    arguments.extend(["--random-range-ratio", "0.5", "--prefix-share", "0.3", "--request-rate", "400"]);
    arguments.extend(flags);
    let done = pagedraft(&arguments);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    scratch.json(&format!("{name}/summary.json"))
}

/// A number as the page writes it.
fn written(cell: &str) -> f64 {
    let text = cell.split_once(" <small>").map_or(cell, |(value, _)| value).replace(',', "");
    text.parse().unwrap_or_else(|_| panic!("{cell:?} is no number"))
}

/// The tables of the steady window: rows by their names, tiles as rows of one cell.
fn steady_rows(page: &str) -> BTreeMap<String, Vec<String>> {
    let section = page.split_once("<section id=\"steady\">").expect("a steady window").1;
    let section = section.split_once("</section>").unwrap().0;
    let between = |text: &str, tag: &str| text.split_once(&format!("</{tag}>")).unwrap().0.to_owned();
    let rows = section.split("<tr><th>").skip(1).map(|row| {
        (between(row, "th"), row.split("<td>").skip(1).map(|cell| between(cell, "td")).collect::<Vec<_>>())
    });
    let tiles = section
        .split("<div class=\"tile\"><b>")
        .skip(1)
        .map(|tile| (between(tile.split_once("<span>").unwrap().1, "span"), vec![between(tile, "b")]));
    rows.chain(tiles).collect()
}

fn assert_written(cell: &str, value: &Value, what: &str) {
    let (shown, value) = (written(cell), value.as_f64().unwrap_or_else(|| panic!("{what}: {value}")));
    assert!((shown - value).abs() <= 5.1e-4_f64.max(value.abs() * 5e-3), "{what}: {shown}, and not {value}");
}

#[test]
fn the_steady_window_of_a_run_and_of_several_is_what_the_summaries_say() {
    let scratch = Scratch::new("report-steady");
    let few: &[&str] = &["--max-num-seqs", "4", "--draft", "ngram", "--num-speculative-tokens", "3"];
    let summaries = [simulated(&scratch, "many", &[]), simulated(&scratch, "few", few)];
    let latencies = ["TTFT", "TPOT", "ITL", "E2EL", "Queue"].map(|name| (name, name.to_lowercase()));
    let columns = ["mean", "median", "p90", "p95", "p99", "p99.9", "max"];
    let figures = [
        ("Requests finished", "", "/completed", 1.0),
        ("Requests", ", /s", "/request_throughput", 1.0),
        ("Output tokens", ", /s", "/output_throughput", 1.0),
        ("Tokens, prompts too", ", /s", "/total_token_throughput", 1.0),
        ("Goodput", ", requests/s", "/goodput/request_goodput", 1.0),
        ("Prompt tokens out of the cache", ", %", "/prefix_cache/hit_rate", 100.0),
    ];
    let by = |value: &Value, factor: f64| Value::from(value.as_f64().unwrap() * factor);

    for (name, summary) in ["many", "few"].into_iter().zip(&summaries) {
        let steady = &summary["steady"];
        assert_eq!((&steady["from_request"], &steady["to_request"]), (&10.into(), &90.into()));
        assert_ne!(steady["mean_ttft_ms"], summary["mean_ttft_ms"], "the ramp makes a difference");
        let page = scratch.read(&format!("{name}/report.html"));
        assert!(page.contains("requests 10 to 89 of the workload; throughput from "), "{name}");
        let rows = steady_rows(&page);
        for (latency, stem) in &latencies {
            assert_eq!(rows[*latency].len(), columns.len());
            for (cell, column) in rows[*latency].iter().zip(columns) {
                assert_written(
                    cell,
                    &steady[format!("{column}_{stem}_ms")],
                    &format!("{name}: {latency} {column}"),
                );
            }
        }
        for (figure, _, place, factor) in figures {
            assert_written(&rows[figure][0], &by(steady.pointer(place).unwrap(), factor), figure);
        }
        assert_eq!(rows.contains_key("Drafts accepted"), name == "few");
    }

    let both = scratch.path("both.html");
    let done = pagedraft(&["report", &scratch.path("many"), &scratch.path("few"), "--out", &both]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let page = scratch.read("both.html");
    assert!(page.contains("many: requests 10 to 89") && page.contains("few: requests 10 to 89"));
    let rows = steady_rows(&page);
    for (run, summary) in summaries.iter().enumerate() {
        for (latency, stem) in &latencies {
            for column in columns {
                let name = format!("{latency} {column}, ms");
                assert_written(&rows[&name][run], &summary["steady"][format!("{column}_{stem}_ms")], &name);
            }
        }
        for (figure, unit, place, factor) in figures {
            let value = by(summary["steady"].pointer(place).unwrap(), factor);
            assert_written(&rows[&format!("{figure}{unit}")][run], &value, figure);
        }
    }
    let ratio = written(&rows["TTFT mean, ms"][1]) / written(&rows["TTFT mean, ms"][0]);
    let said = rows["TTFT mean, ms"][1].split_once('×').unwrap().1.split_once('<').unwrap().0.to_owned();
    assert!((said.parse::<f64>().unwrap() / ratio - 1.0).abs() < 0.01, "{said}, and not {ratio}");

    // A run that was stopped has no summary, and its requests alone no window.
    std::fs::remove_file(scratch.path("many/summary.json")).unwrap();
    let done = pagedraft(&["report", &scratch.path("many")]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(!scratch.read("many/report.html").contains("id=\"steady\""));
}
