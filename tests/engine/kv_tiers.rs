//! KV tiers: wherever the latents of a model with sparse attention lie, and whatever becomes of a tier, the tokens and the bits of the
//! logits are those of a model whose latents all lie in memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pagedraft::attention::isa::Isa;
use pagedraft::model::Dtype;
use pagedraft::model::tiers::{LocalPool, Policy, TierCounts};
use pagedraft::session::{DraftRef, DsaTraceOptions, EngineOptions, KvTiers, Request, Session, TraceOptions};
use pagedraft::spec_decode::Scorer;
use pagedraft_workloads::trace::{DsaRecords, DsaRows, TraceTables, check_dir};
use serde_json::{Value, json};

use crate::models::{deepseek, directory, glm};
use crate::requests::{Random, options, requests, speculation};
use crate::schedule::{Output, alone, check, repetitive, run, schedules};

fn in_memory(hbm_blocks: u32, bytes: u64) -> KvTiers {
    KvTiers {
        hbm_blocks: Some(hbm_blocks),
        local_pool: Some(LocalPool { bytes, file: None }),
        ..KvTiers::default()
    }
}

/// Runs requests that arrive one by one, and lets `between` do what it likes between two steps.
fn serve(
    options: &EngineOptions,
    requests: &[Request],
    mut between: impl FnMut(u64),
) -> (Vec<Output>, TierCounts, u32) {
    let mut session = Session::open(options).unwrap();
    session.keep_logits();
    let (mut ids, mut steps) = (Vec::new(), 0);
    for request in requests {
        ids.extend(session.submit(request.clone()).unwrap());
        session.step().unwrap();
        steps += 1;
        between(steps);
    }
    while session.has_unfinished() {
        session.step().unwrap();
        steps += 1;
        between(steps);
        assert!(steps < 100_000, "no progress: {:?}", session.tier_counts());
    }
    let mut preempted = 0;
    let outputs = ids.into_iter().map(|id| {
        let logits = session.take_logits(id);
        let output = session.take_output(id).unwrap();
        preempted += output.num_preemptions;
        let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
        let chosen = output.indexer_topk;
        Output { tokens: output.token_ids, logits: logits.into_iter().map(bits).collect(), chosen }
    });
    let outputs = outputs.collect();
    let counts = session.tier_counts().unwrap();
    session.close(&json!({})).unwrap();
    (outputs, counts, preempted)
}

#[test]
fn every_schedule_has_its_bits_with_a_few_frames_and_a_pool_below() {
    for (model, dtype, seed) in
        [(deepseek("tiers-deepseek"), Dtype::F32, 3), (glm("tiers-glm"), Dtype::Bf16, 6)]
    {
        println!("seed {seed}, {model}, {dtype:?}");
        let base = options(&model, dtype, Isa::detect());
        let requests = requests(seed, 10, 300, 120);
        let alone = alone(&base, &requests);
        let (mut fetched, mut passes, mut gathered) = (0, 0, 0);
        for (at, (schedule, apart, options)) in schedules(&base, 14).into_iter().enumerate() {
            let frames = [1, 3, 9, 30][at % 4];
            let policy = [Policy::Frequency, Policy::Lru][at % 2];
            let tiers = KvTiers { policy, ..in_memory(frames, 64 << 20) };
            let options = EngineOptions { kv_tiers: tiers, ..options };
            let name = format!("{model}, seed {seed}, {dtype:?}: {schedule}, {frames} frames");
            if apart == 1 {
                let (found, counts, _) = serve(&options, &requests, |_| ());
                check(&name, &requests, &alone, &found);
                fetched += counts.local_pool.cells;
                passes += counts.extra_passes;
                gathered += counts.gathered_rows;
                assert_eq!((counts.lost_cells, counts.refuge.cells), (0, 0), "{name}: {counts:?}");
            } else {
                check(&name, &requests, &alone, &run(&options, &requests, apart).0);
            }
        }
        assert!(fetched > 0 && passes > 0 && gathered > 0, "{fetched} fetched, {passes}, {gathered}");
    }
}

#[test]
fn drafts_scorers_and_graphs_change_no_bit_of_a_model_in_tiers() {
    let model = glm("tiers-drafts");
    let base = options(&model, Dtype::F32, Isa::detect());
    let requests = repetitive(9, 6, 20);
    let alone = alone(&EngineOptions { enforce_eager: true, ..base.clone() }, &requests);
    for (draft, scorer, enforce_eager) in [
        (DraftRef::Ngram, Scorer::Mqa, false),
        (DraftRef::Ngram, Scorer::BatchExpansion, true),
        (DraftRef::Model(model.clone()), Scorer::Mqa, true),
        (DraftRef::Model(model.clone()), Scorer::BatchExpansion, false),
    ] {
        let options = EngineOptions {
            speculation: speculation(draft.clone(), 3, scorer),
            enforce_eager,
            num_blocks: Some(40),
            kv_tiers: in_memory(4, 64 << 20),
            enable_prefix_caching: true,
            ..base.clone()
        };
        let (found, counts, _) = serve(&options, &requests, |_| ());
        check(&format!("{draft}, {scorer}, eager {enforce_eager}"), &requests, &alone, &found);
        assert!(counts.local_pool.cells > 0);
    }
}

/// Prompts of which each third begins like the first one, with others between that push its blocks out of the prefix cache.
fn returning(count: usize) -> Vec<Request> {
    let mut random = Random(41);
    let mut draw = |n: usize| -> Vec<u32> { (0..n).map(|_| random.below(300) as u32).collect() };
    let shared = draw(80);
    (0..count)
        .map(|i| {
            let own = draw(if i % 3 == 0 { 20 } else { 100 });
            let prompt = if i % 3 == 0 { [&shared[..], &own].concat() } else { own };
            Request { ignore_eos: true, ..Request::new(i.to_string(), prompt, 4) }
        })
        .collect()
}

#[test]
fn blocks_that_the_prefix_cache_forgot_come_back_from_a_pool_with_their_indexer_keys() {
    let model = deepseek("tiers-prefix");
    let base = EngineOptions { max_num_seqs: 1, ..options(&model, Dtype::F32, Isa::detect()) };
    let requests = returning(7);
    let alone = alone(&base, &requests);
    let remote = format!("file://{}", directory("tiers-prefix-remote").display());
    for (name, tiers) in [
        ("memory", KvTiers { hbm_blocks: None, ..in_memory(1, 4 << 20) }),
        ("few frames", in_memory(3, 4 << 20)),
        ("directory", KvTiers { remote_pool: Some(remote), ..KvTiers::default() }),
    ] {
        let dir = directory(&format!("tiers-prefix-trace-{name}"));
        let trace =
            TraceOptions { dir: dir.join("run"), tables: TraceTables::Full, format: Default::default() };
        let options = EngineOptions {
            num_blocks: Some(12),
            enable_prefix_caching: true,
            kv_tiers: tiers,
            trace: Some(trace),
            trace_dsa: DsaTraceOptions { rows: DsaRows::All, ..Default::default() },
            ..base.clone()
        };
        let (found, counts, _) = serve(&options, &requests, |_| ());
        check(name, &requests, &alone, &found);
        assert!(counts.prefixes_saved > 10 && counts.prefixes_restored >= 10, "{name}: {counts:?}");
        let report = check_dir(&dir.join("run")).unwrap();
        println!("{name}: {report:?}");
    }
}

/// Damages a file of a pool. The pool's thread may have removed the file since it was listed. Then nothing is written: a file that
/// the pool does not know would stay when the pool ends.
fn damage(path: &Path, kind: u64) {
    let Ok(mut bytes) = std::fs::read(path) else { return };
    match kind {
        0 => return drop(std::fs::remove_file(path)),
        1 => bytes.truncate(bytes.len() / 2),
        2 => bytes.push(0),
        _ => {
            let at = bytes.len() / 3;
            bytes[at] ^= 4;
        }
    }
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).truncate(true).open(path) {
        file.write_all(&bytes).unwrap();
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries(dir).filter(|path| path.is_dir()).flat_map(|pool| entries(&pool).collect::<Vec<_>>()).collect()
}

#[test]
fn a_damaged_pool_costs_preemptions_and_no_token_and_the_trace_stays_true() {
    let model = glm("tiers-damaged");
    let base = options(&model, Dtype::F32, Isa::detect());
    let requests = requests(23, 6, 300, 150);
    let alone = alone(&base, &requests);
    for kind in 0..4 {
        let (dir, remote) =
            (directory(&format!("tiers-damaged-{kind}")), directory(&format!("tiers-remote-{kind}")));
        let trace =
            TraceOptions { dir: dir.join("run"), tables: TraceTables::Full, format: Default::default() };
        let tiers = KvTiers {
            hbm_blocks: Some(5),
            remote_pool: Some(format!("file://{}", remote.display())),
            ..KvTiers::default()
        };
        let options = EngineOptions {
            enable_prefix_caching: true,
            kv_tiers: tiers,
            trace: Some(trace),
            trace_dsa: DsaTraceOptions { rows: DsaRows::All, ..Default::default() },
            ..base.clone()
        };
        let mut random = Random(kind);
        let (found, counts, preempted) = serve(&options, &requests, |step| {
            if step % 4 == 0 {
                let mut files = files(&remote);
                files.sort();
                let hit = |_: &PathBuf| random.below(3) == 0;
                files.into_iter().filter(hit).for_each(|path| damage(&path, kind));
            }
        });
        check(&format!("damage {kind}"), &requests, &alone, &found);
        assert!(counts.lost_rows > 0 && counts.lost_cells > 0 && preempted > 0, "damage {kind}: {counts:?}");
        assert!(counts.remote_pool.cells > 0, "damage {kind}: {counts:?}");
        assert_eq!(check_dir(&dir.join("run")).unwrap().violation, None);
        let summary: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.join("run/summary.json")).unwrap()).unwrap();
        assert_eq!(summary["kv_tiers"]["lost_rows"], counts.lost_rows);
        let mut records = DsaRecords::open(&dir.join("run")).unwrap().unwrap();
        let mut from_remote = 0;
        while let Some(record) = records.next_record().unwrap() {
            from_remote += record.kv_fetch.remote_pool.read_ops;
        }
        assert!(from_remote > 0, "no record was read from the remote pool");
        assert!(files(&remote).is_empty(), "a pool leaves nothing behind");
    }
}

#[test]
#[cfg(unix)]
fn a_pool_that_hangs_is_given_up_and_no_token_changes() {
    let model = deepseek("tiers-hang");
    let base = options(&model, Dtype::F32, Isa::detect());
    let requests = requests(29, 4, 300, 150);
    let alone = alone(&base, &requests);
    let remote = directory("tiers-hang-remote");
    let tiers = KvTiers {
        hbm_blocks: Some(4),
        remote_pool: Some(format!("file://{}", remote.display())),
        patience: Duration::from_millis(300),
        ..KvTiers::default()
    };
    let options = EngineOptions { kv_tiers: tiers, ..base };
    let mut hung = false;
    let (found, counts, preempted) = serve(&options, &requests, |step| {
        // Whoever opens a pipe that nobody writes waits for ever.
        if step == 5 {
            for path in files(&remote) {
                std::fs::remove_file(&path).unwrap();
                hung |= std::process::Command::new("mkfifo").arg(&path).status().unwrap().success();
            }
        }
    });
    check("hang", &requests, &alone, &found);
    assert!(hung && counts.below.timeouts > 0 && preempted > 0, "{counts:?}");
    assert!(counts.below.refuge_peak > 0, "what goes down later stays in memory");
}

#[test]
fn a_pool_too_small_for_the_load_costs_preemptions_and_no_token() {
    let model = glm("tiers-small");
    let base = options(&model, Dtype::F32, Isa::detect());
    let requests = requests(31, 8, 300, 120);
    let alone = alone(&base, &requests);
    // Ten blocks of three layers, and six frames: the pool has sixteen of the 256 blocks.
    let options = EngineOptions { kv_tiers: in_memory(6, 10 * 3 * 16 * 48 * 4), ..base };
    let session = Session::open(&options).unwrap();
    assert_eq!(session.info().num_blocks, 16);
    drop(session);
    let (found, counts, preempted) = serve(&options, &requests, |_| ());
    check("small", &requests, &alone, &found);
    // A cell that goes down before the one that takes its frame is read needs a place for that moment.
    assert!(preempted > 0 && counts.local_pool.cells > 0 && counts.below.refuge_peak <= 6 * 3, "{counts:?}");
}

#[test]
fn flags_that_cannot_be_are_refused_with_the_reason() {
    let model = glm("tiers-refused");
    let dense = pagedraft::session::ModelRef::Builtin("target".into());
    let remote = |url: &str| KvTiers { remote_pool: Some(url.to_owned()), ..KvTiers::default() };
    for (model, tiers, words) in [
        (&dense, in_memory(4, 1 << 20), "--kv-hbm-blocks 4: builtin:target has no sparse attention"),
        (&model, in_memory(4, 100), "takes 3072 bytes"),
        (
            &model,
            remote("ftp://host"),
            "known are file:///DIRECTORY, redis://HOST:PORT and s3://BUCKET/DIRECTORY",
        ),
        (&model, remote("file://relative"), "from the root on"),
        (&model, remote("file:///proc/nobody/writes/here"), "the directory cannot be written"),
    ] {
        let options = EngineOptions { kv_tiers: tiers, ..options(model, Dtype::F32, Isa::detect()) };
        let error = Session::open(&options).err().map(|error| format!("{error:#}")).unwrap();
        assert!(error.contains(words), "{words}: {error}");
    }
}
