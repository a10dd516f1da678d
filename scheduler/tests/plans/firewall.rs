//! Neither this crate nor the block manager knows a model, a device, a clock, the environment, a lock or a runtime.

use std::fs;
use std::path::{Path, PathBuf};

const FORBIDDEN: [&str; 23] = [
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
    "tracing",
    "tokenizers",
    "candle",
    "cudarc",
    "pagedraft_model",
    "RandomState",
    "unsafe",
];

/// All files below `folder`, those in sub-folders too.
fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[test]
fn the_sources_know_no_model_device_clock_environment_lock_or_runtime() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for sources in [here.join("src"), here.join("../block_manager/src")] {
        files_below(&sources, &mut files);
    }
    for path in &files {
        let text = fs::read_to_string(path).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            for word in FORBIDDEN {
                let found = code.contains(word);
                assert!(!found, "{}:{number} says `{word}`: {line}", path.display());
            }
        }
    }
    assert!(files.len() > 15, "only {} files were found", files.len());
    assert!(files.iter().any(|path| path.ends_with("drafting/search.rs")), "sub-folders are not looked into");
}
