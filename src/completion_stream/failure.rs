//! Why a request got no whole answer.

use std::borrow::Cow;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

use hyper::StatusCode;

/// What a server, or the way to it, did to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind, under which `summary.json` counts it.
    pub kind: Cow<'static, str>,
    /// For people.
    pub error: String,
    /// Whether it may be sent again, because the server has not begun to run it.
    pub again: bool,
    /// How long the server asks to wait before that.
    pub wait: Option<Duration>,
}

impl Failure {
    /// A failure after which a request is not sent again.
    pub fn new(kind: &'static str, error: String) -> Self {
        Self { kind: Cow::Borrowed(kind), error, again: false, wait: None }
    }

    /// There was no way to the server, or it went away before it answered.
    pub fn connection(error: &dyn Error) -> Self {
        Self { again: true, ..Self::new("connection", chain(error)) }
    }

    /// The server was silent for too long.
    pub fn timeout(silence: Duration) -> Self {
        let seconds = silence.as_secs_f64();
        Self::new("timeout", format!("nothing came from the server for {seconds} s (--endpoint-timeout)"))
    }

    /// The body of an answer broke off.
    pub fn body(error: &hyper::Error) -> Self {
        let io = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
        // A body that ends too early, or is none, is the server's doing. Everything else is the connection's.
        let kind = match io {
            Some(ErrorKind::UnexpectedEof) => "cut_stream",
            Some(ErrorKind::InvalidData | ErrorKind::InvalidInput) => "malformed",
            _ if error.is_incomplete_message() => "cut_stream",
            _ => "connection",
        };
        Self::new(kind, format!("the answer broke off: {}", chain(error)))
    }

    /// The server refused it.
    pub fn status(status: StatusCode, body: &str, wait: Option<Duration>) -> Self {
        let again = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let kind = Cow::Owned(status.as_u16().to_string());
        let what = if body.trim().is_empty() { "no reason given" } else { body.trim() };
        Self { kind, error: format!("HTTP {status}: {what}"), again, wait }
    }
}

/// An error and its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
