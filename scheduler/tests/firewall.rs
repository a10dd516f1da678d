//! Neither this crate nor the block manager knows a model, a device, a clock, the environment, a lock or a runtime.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

const FORBIDDEN: [&str; 22] = [
    "std::time",
    "Instant",
    "SystemTime",
    "std::env",
    "env!",
    "std::fs",
    "std::net",
    "std::thread::spawn",
    "thread_local",
    "Mutex",
    "RwLock",
    "Atomic",
    "RefCell",
    "static mut",
    "async ",
    "tokio",
    "tokenizers",
    "candle",
    "cudarc",
    "pagedraft_model",
    "RandomState",
    "unsafe",
];

#[test]
fn the_sources_know_no_model_device_clock_environment_lock_or_runtime() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = 0;
    for sources in [here.join("src"), here.join("../block_manager/src")] {
        for entry in fs::read_dir(&sources).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.is_file(), "{} is not looked into", path.display());
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in (1..).zip(text.lines()) {
                let code = line.split("//").next().unwrap_or_default();
                for word in FORBIDDEN {
                    let found = code.contains(word);
                    assert!(!found, "{}:{number} says `{word}`: {line}", path.display());
                }
            }
            files += 1;
        }
    }
    assert!(files > 15, "only {files} files were found");
}
