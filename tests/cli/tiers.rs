//! The flags of the KV tiers, from outside: what is refused, and the tokens of a program whose pools are in a store that fails.

use serde_json::Value;

use crate::models::with_tokenizer;
use crate::program::{Run, Scratch, command, pagedraft};

const PROMPT: &str = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, \
    it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of darkness, it was \
    the spring of hope, it was the winter of despair.";

/// The arguments of a run.
fn arguments<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let own = ["generate", "--model", model, "--load-format", "dummy", "--threads", "1", "--enforce-eager"];
    [&own[..], &["--prompt", PROMPT, "--ignore-eos"], more].concat()
}

fn tokens(run: &Run, scratch: &Scratch, out: &str) -> Value {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    scratch.json(out)["token_ids"].clone()
}

#[test]
fn sizes_and_places_that_cannot_be_are_refused_with_the_flag_and_the_reason() {
    let scratch = Scratch::new("tiers-bad");
    let model = with_tokenizer("cli-tiers-bad");
    let foreign = scratch.write("notes.txt", b"not a pool, and not to be lost");
    let in_foreign = format!("1M:{foreign}");
    let in_directory = format!("1M:{}", scratch.path(""));
    let under_file = format!("file://{foreign}/pool");
    for (arguments, words) in [
        (["--kv-hbm-blocks", "0"], "--kv-hbm-blocks"),
        (["--kv-hbm-blocks", "-3"], "-3"),
        (["--kv-hbm-blocks", "many"], "--kv-hbm-blocks"),
        (["--kv-hbm-blocks", "4294967296"], "--kv-hbm-blocks"),
        (["--kv-local-pool", "0"], "not a possible amount of memory"),
        (["--kv-local-pool", "-4G"], "-4"),
        (["--kv-local-pool", "4X"], "unknown unit X"),
        (["--kv-local-pool", "4G:"], "the name of the file behind the colon is missing"),
        (["--kv-local-pool", ":pool"], "not a number of bytes"),
        (["--kv-local-pool", "100"], "a layer's part of a KV block takes"),
        (["--kv-local-pool", "8000000G"], "--kv-local-pool"),
        (["--kv-local-pool", &in_foreign], "is no pool of an earlier run"),
        (["--kv-local-pool", &in_directory], "the file cannot be used"),
        (["--kv-remote-pool", "pool"], "known are file:///DIRECTORY"),
        (["--kv-remote-pool", "http://127.0.0.1:1/pool"], "known are file:///DIRECTORY"),
        (["--kv-remote-pool", "file://pool"], "from the root on"),
        (["--kv-remote-pool", &under_file], "the directory cannot be written"),
        (["--kv-remote-pool", "redis://127.0.0.1:1"], "--kv-remote-pool redis://127.0.0.1:1"),
        (["--kv-remote-pool", "s3://"], "--kv-remote-pool s3://"),
    ] {
        let run = pagedraft(&self::arguments(&model, &arguments));
        assert_eq!(run.code, Some(2), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(words) && !run.stderr.contains("panicked"), "{arguments:?}: {run:?}");
    }
    assert_eq!(scratch.read("notes.txt"), "not a pool, and not to be lost");
    let dense = ["generate", "--prompt", "The", "--kv-hbm-blocks", "4"];
    let run = pagedraft(&dense);
    assert!(run.code == Some(2) && run.stderr.contains("has no sparse attention"), "{run:?}");
    let simulated = ["replay", "--workload", "random", "--num-requests", "1", "--executor", "sim"];
    let out = scratch.path("sim");
    let run = pagedraft(&[&simulated[..], &["--out", &out, "--kv-local-pool", "1M"]].concat());
    assert!(run.code == Some(2) && run.stderr.contains("--kv-local-pool"), "{run:?}");
}

#[test]
fn the_tokens_are_the_same_in_any_place_and_a_tier_0_larger_than_the_pool_is_as_large_as_it() {
    let scratch = Scratch::new("tiers-places");
    let model = with_tokenizer("cli-tiers-places");
    let run = |name: &str, more: &[&str]| {
        let out = scratch.path(name);
        let own = ["--num-blocks", "64", "--max-tokens", "40", "--output-json", &out];
        let run = pagedraft(&arguments(&model, &[&own[..], more].concat()));
        (tokens(&run, &scratch, name), run.stderr)
    };
    let (alone, said) = run("alone.json", &[]);
    assert!(!said.contains("KV tiers"), "{said}");
    let file = format!("1M:{}", scratch.path("pool"));
    let remote = format!("file://{}", scratch.path("remote"));
    for (name, more) in [
        ("larger.json", &["--kv-hbm-blocks", "100000"][..]),
        ("memory.json", &["--kv-hbm-blocks", "2", "--kv-local-pool", "1M"]),
        ("file.json", &["--kv-hbm-blocks", "2", "--kv-local-pool", &file]),
        ("remote.json", &["--kv-hbm-blocks", "2", "--kv-remote-pool", &remote]),
        ("nowhere.json", &["--kv-hbm-blocks", "2", "--kv-local-pool", "8K", "--kv-remote-pool", &remote]),
    ] {
        let (found, said) = run(name, more);
        assert_eq!(found, alone, "{name}");
        assert!(said.contains("KV tiers: ") && said.contains("; 0 were lost"), "{name}: {said}");
        assert_eq!(said.contains("of 0 reads"), name == "larger.json", "{name}: {said}");
    }
}

/// The counts of a run that keeps its latents in a remote pool, which must give the tokens of one that keeps them all in tier 0.
fn survives(scratch: &Scratch, model: &str, name: &str, url: &str, variables: &[(&str, String)]) -> Value {
    let run = |name: &str, more: &[&str]| {
        let (out, trace) = (scratch.path(&format!("{name}.json")), scratch.path(name));
        let files =
            ["--num-blocks", "64", "--max-tokens", "160", "--output-json", &out, "--trace-out", &trace];
        let mut command = command(&arguments(model, &[&files[..], more].concat()));
        let output = command.envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
        scratch.json(&format!("{name}.json"))["token_ids"].clone()
    };
    let alone = run(&format!("{name}-alone"), &[]);
    assert_eq!(run(name, &["--kv-hbm-blocks", "3", "--kv-remote-pool", url]), alone, "{name}");
    let check = pagedraft(&["trace", "check", &scratch.path(name)]);
    assert_eq!(check.code, Some(0), "{name}: {}", check.stderr);
    scratch.json(&format!("{name}/summary.json"))["kv_tiers"].clone()
}

fn below(tiers: &Value, count: &str) -> u64 {
    tiers["below"][count].as_u64().unwrap()
}

#[test]
#[cfg(feature = "redis-pool")]
fn a_redis_server_is_a_pool_and_what_becomes_of_it_costs_no_token() {
    use crate::redis_server::RedisServer;
    use std::time::Duration;
    let scratch = Scratch::new("tiers-redis");
    let model = with_tokenizer("cli-tiers-redis");
    let Some(server) = RedisServer::start(&scratch, &[]) else { return };
    let tiers = survives(&scratch, &model, "well", &server.url(), &[]);
    assert!(tiers["remote_pool"]["cells"].as_u64().unwrap() > 0 && tiers["lost_cells"] == 0, "{tiers}");
    assert_eq!(server.ask("DBSIZE").unwrap(), ":1", "a pool leaves nothing behind but the number of pools");

    let server = RedisServer::start(&scratch, &["--maxmemory", "1mb"]).unwrap();
    let tiers = survives(&scratch, &model, "full", &server.url(), &[]);
    assert!(below(&tiers, "full") > 0, "{tiers}");

    for (fault, count) in [("FLUSHALL", "missing"), ("-KILL", "failures"), ("-STOP", "timeouts")] {
        let server = RedisServer::start(&scratch, &[]).unwrap();
        let tiers = std::thread::scope(|scope| {
            let run = scope.spawn(|| survives(&scratch, &model, fault, &server.url(), &[]));
            while !run.is_finished() {
                match (server.cells() > 3, fault.starts_with('-')) {
                    (false, _) => std::thread::sleep(Duration::from_millis(1)),
                    (true, false) => assert_eq!(server.ask(fault).unwrap(), "+OK"),
                    (true, true) => {
                        server.signal(fault);
                        break;
                    }
                }
            }
            run.join().unwrap()
        });
        assert!(below(&tiers, count) > 0, "{fault}: {tiers}");
    }
}

#[test]
#[cfg(feature = "s3-pool")]
fn an_object_store_is_a_pool_and_whatever_it_does_costs_no_token() {
    use crate::object_store::{Fault, ObjectStore};
    let scratch = Scratch::new("tiers-s3");
    let model = with_tokenizer("cli-tiers-s3");
    for (fault, count) in [
        (None, None),
        (Some(Fault::Refuses), Some("failures")),
        (Some(Fault::Loses), Some("missing")),
        (Some(Fault::CutsShort), Some("wrong_length")),
        (Some(Fault::Damages), Some("wrong_checksum")),
        (Some(Fault::IsFull), Some("full")),
        (Some(Fault::Hangs), Some("timeouts")),
    ] {
        let server = ObjectStore::start(fault);
        let variables = [
            ("AWS_ENDPOINT_URL", server.url()),
            ("AWS_ACCESS_KEY_ID", "one".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "two".to_owned()),
            ("no_proxy", "127.0.0.1".to_owned()),
        ];
        let tiers = survives(&scratch, &model, &format!("{fault:?}"), "s3://bucket/some/pool", &variables);
        match count {
            Some(count) => assert!(below(&tiers, count) > 0, "{fault:?}: {tiers}"),
            None => {
                assert!(tiers["remote_pool"]["cells"].as_u64().unwrap() > 0, "{tiers}");
                assert_eq!(tiers["lost_cells"], 0, "{tiers}");
                assert!(server.requests() > 10 && server.signed(), "requests are signed");
                assert_eq!(server.objects(), 0, "a pool leaves nothing behind");
            }
        }
    }
}
