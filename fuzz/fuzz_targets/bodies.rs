//! Any bytes as the body of a request to each path: what comes of them is a request to the engine, or an error object with the right
//! status. No engine runs.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pagedraft::engine::handle::{EngineHandle, EngineThread, Limits as EngineLimits};
use pagedraft::serve::{ChatTemplate, Refusal, ServeOptions, Server};
use pagedraft::session::{EngineOptions, ModelRef, Session};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];
const NAME: &str = "builtin:target";

/// What reads bodies.
struct Reader {
    runtime: Runtime,
    server: Server,
    /// It sleeps all the time, because nothing is submitted.
    _engine: EngineThread,
}

static READER: LazyLock<Reader> = LazyLock::new(|| {
    let options = EngineOptions {
        num_blocks: Some(16),
        max_model_len: Some(128),
        threads: 1,
        ..EngineOptions::new(ModelRef::Builtin("target".to_owned()))
    };
    let session = Session::open(&options).expect("the embedded model opens");
    let served = ServeOptions {
        names: vec![NAME.to_owned()],
        template: Some(ChatTemplate::builtin().expect("the embedded model has a chat template")),
        capacity: session.capacity() + 1,
        ..ServeOptions::default()
    };
    let (handle, engine) =
        EngineHandle::start(session, EngineLimits::default()).expect("the system has a thread");
    let runtime = Builder::new_current_thread().enable_time().build().expect("the system gives a runtime");
    Reader { runtime, server: Server::new(handle, served), _engine: engine }
});

fuzz_target!(|body: &[u8]| {
    for path in PATHS {
        let read = READER.runtime.block_on(READER.server.requests(path, body.to_vec()));
        match read {
            Ok(requests) => {
                assert_eq!(requests.is_empty(), path.ends_with("tokenize"), "{path}");
                assert!(
                    requests.iter().all(|request| !request.prompt.is_empty() && request.max_tokens > 0),
                    "{path}"
                );
            }
            Err(refusal) => check(path, &refusal),
        }
    }
});

/// A refusal names the client's fault, in the form that clients of OpenAI's servers read.
fn check(path: &str, refusal: &Refusal) {
    assert!(matches!(refusal.status, 400 | 404 | 422), "{path}: {refusal:?}");
    let told: Value = serde_json::from_str(&refusal.json).expect("an error object is JSON");
    let error = &told["error"];
    assert_eq!(error["type"], "invalid_request_error", "{path}: {refusal:?}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{path}: {refusal:?}");
    assert!(error["param"].is_null() || error["param"].is_string(), "{path}: {refusal:?}");
}
