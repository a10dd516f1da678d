//! Accepts connections, and ends in order when the server is told to.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::app::App;
use super::patient::Patient;

/// How long to wait after the system had no connection to give, because too many files are open for example.
const PAUSE: Duration = Duration::from_millis(100);
/// How long requests that were cut have to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a server tells its requests when it ends.
pub struct Signals {
    pub draining: watch::Sender<bool>,
    pub cut: watch::Sender<bool>,
}

/// Serves connections until `stop` comes. Then new requests are refused, and those that run have their time of grace.
pub async fn serve(
    app: Arc<App>,
    router: Router,
    listener: TcpListener,
    signals: Signals,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let grace = app.limits.grace;
    let mut until = Instant::now() + grace;
    let drained = async {
        stop.await;
        until = Instant::now() + grace;
        signals.draining.send_replace(true);
        // Who comes now is told to go elsewhere, so that the door stays open.
        let _ = timeout(grace, app.engine.drain()).await;
    };
    tokio::select! {
        () = drained => {}
        () = accept(&app, &router, &listener, &graceful) => {}
    }
    drop(listener);
    let ended = graceful.shutdown();
    tokio::pin!(ended);
    if timeout_at(until, &mut ended).await.is_err() {
        signals.cut.send_replace(true);
        let _ = timeout(LAST_WORDS, ended).await;
    }
}

/// Accepts connections for ever.
async fn accept(app: &App, router: &Router, listener: &TcpListener, graceful: &GracefulShutdown) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connect(app, router.clone(), stream, graceful),
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                tracing::warn!(target: "pagedraft", "no connection could be accepted: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn connect(app: &App, router: Router, stream: TcpStream, graceful: &GracefulShutdown) {
    // Otherwise a token may wait until the one before it was acknowledged. A system that does not know the option serves all the same.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(Patient::new(stream, app.limits.stalled_time));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.limits.idle_time)
        .serve_connection(stream, TowerToHyperService::new(router));
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(target: "pagedraft", "a connection ended: {error}");
        }
    });
}
