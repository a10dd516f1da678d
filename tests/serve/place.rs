//! A server within the test's process.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagedraft::engine::handle::{EngineHandle, EngineThread, Limits as EngineLimits, Stats};
use pagedraft::serve::{ChatTemplate, Limits, ServeOptions, Server};
use pagedraft::session::{EngineOptions, ModelRef, Request, RequestOutput, Session, SpeculationOptions};
use tokio::sync::oneshot;

pub const NAME: &str = "builtin:target";

pub struct Place {
    pub address: SocketAddr,
    pub engine: EngineHandle,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
    thread: Option<EngineThread>,
}

/// What differs from a usual server.
#[derive(Default)]
pub struct Setup {
    pub limits: Limits,
    pub keys: Vec<String>,
    pub max_queue: Option<usize>,
    /// The embedded model, if it is not the target.
    pub model: Option<&'static str>,
    pub max_model_len: Option<u32>,
    pub speculation: SpeculationOptions,
}

pub fn options() -> EngineOptions {
    EngineOptions {
        num_blocks: Some(512),
        max_model_len: Some(2048),
        threads: 1,
        ..EngineOptions::new(ModelRef::Builtin("target".into()))
    }
}

/// What the engine gives without a server.
pub fn generate(requests: Vec<Request>) -> Vec<Vec<RequestOutput>> {
    let mut session = Session::open(&options()).unwrap();
    let ids: Vec<_> = requests.into_iter().map(|request| session.submit(request).unwrap()).collect();
    while session.has_unfinished() {
        session.step().unwrap();
    }
    ids.into_iter().map(|ids| ids.into_iter().map(|id| session.take_output(id).unwrap()).collect()).collect()
}

impl Place {
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        let usual = options();
        let session = Session::open(&EngineOptions {
            model: setup.model.map_or(usual.model, |model| ModelRef::Builtin(model.into())),
            max_model_len: setup.max_model_len.or(usual.max_model_len),
            speculation: setup.speculation,
            ..options()
        });
        let session = session.unwrap();
        let served = ServeOptions {
            names: vec![NAME.to_owned()],
            keys: setup.keys,
            template: Some(ChatTemplate::builtin().unwrap()),
            capacity: session.capacity() + 1,
            limits: setup.limits,
        };
        let limits = EngineLimits::default();
        let limits = EngineLimits { max_queue: setup.max_queue.unwrap_or(limits.max_queue), ..limits };
        let (engine, thread) = EngineHandle::start(session, limits).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stops) = oneshot::channel();
        let server = Server::new(engine.clone(), served);
        let server = std::thread::spawn(move || {
            let stops = async move {
                let _ = stops.await;
            };
            server.run(listener, stops).unwrap();
        });
        Self { address, engine, stop: Some(stop), server: Some(server), thread: Some(thread) }
    }

    /// Waits until the engine's figures are as they should be.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Stats) -> bool) -> Stats {
        let start = Instant::now();
        loop {
            let stats = self.engine.stats();
            if holds(&stats) {
                return stats;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "never: {what}: {stats:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Tells the server to end, and waits until it has. Returns the engine's session.
    pub fn end(mut self) -> Session {
        drop(self.stop.take());
        self.server.take().unwrap().join().unwrap();
        let thread = self.thread.take().unwrap();
        drop(self);
        thread.join().unwrap()
    }
}
