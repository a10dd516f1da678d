//! The page of a run says what the run's files say: opened in a browser without a window, it is compared with the trace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagedraft_workloads::trace::StepRecord;
use program::{Scratch, pagedraft};

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

/// A browser, if there is one.
fn browser() -> Option<String> {
    let named = std::env::var("CHROME").ok();
    let known = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"].map(str::to_owned);
    let starts = |name: &String| {
        let version = Command::new(name).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
        version.is_ok_and(|output| output.status.success())
    };
    let found = named.into_iter().chain(known).find(starts);
    if found.is_none() {
        eprintln!("skipped: no Chromium found (chromium, chromium-browser, google-chrome, or $CHROME)");
    }
    found
}

/// What a page becomes once its script has run, at an address within it.
fn open(browser: &str, scratch: &Scratch, page: &str, hash: &str) -> String {
    let profile = scratch.path("profile");
    let dom = scratch.path("dom.html");
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg("--disable-dev-shm-usage")
        .arg(format!("--user-data-dir={profile}"))
        .args(["--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("file://{page}#{hash}"))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&dom).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("the browser did not come back within two minutes");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::read_to_string(dom).unwrap()
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
    let (pool, status) = (record.pool, dom.split_once("id=\"block-view-status\"").unwrap().1);
    let counts =
        format!("step {}: used {}, free {}, cached {}", record.step, pool.used, pool.free, pool.cached);
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
    let published: BTreeSet<i64> =
        record.outcome.iter().flat_map(|o| &o.published).map(|b| i64::from(*b)).collect();
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
    let Some(browser) = browser() else { return };
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
    if let Some(browser) = browser() {
        let dom = open(&browser, &scratch, &scratch.path("page.html"), "step=3");
        assert_eq!(data(&dom, "ready"), "true");
        assert!(!dom.contains("<title>owned"), "a script out of a file ran");
        assert!(!dom.contains("<img"), "markup out of a file");
    }
}

#[test]
fn a_part_of_a_trace_is_the_same_as_in_the_whole() {
    let Some(browser) = browser() else { return };
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
        [("config.json", b"{", "is no JSON"), ("other", b"", "is no run directory")];
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
