//! Sends a request, and tells what comes of it.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use pagedraft::completion_stream::{Answer, Failure};
use pagedraft_workloads::replay::{StreamEnd, StreamFailure};

use super::client::{Client, Connection};
use crate::cli::replay::stream::{Teller, What};

/// How long to wait before a request is sent again for the first time; then twice as long each time.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest such wait, whatever the server asks for.
const LONGEST: Duration = Duration::from_secs(60);

/// A request in flight.
pub struct Post {
    pub client: Arc<Client>,
    pub body: Bytes,
    /// How often it may be sent again.
    pub retries: u32,
    pub teller: Teller,
}

impl Post {
    /// Sends the request until it is answered or may not be sent again.
    pub async fn run(self) {
        let mut retries = 0;
        loop {
            match self.attempt().await {
                Err(failure) if failure.again && retries < self.retries => {
                    let longer = AGAIN.saturating_mul(1 << retries.min(16));
                    retries += 1;
                    tokio::time::sleep(failure.wait.unwrap_or(longer).min(LONGEST)).await;
                }
                Err(Failure { kind, error, .. }) => {
                    let at_ns = self.teller.clock.now_ns();
                    let failure = StreamFailure { at_ns, kind: kind.into_owned(), error };
                    return self.teller.tell(What::Ended { end: Err(failure), retries });
                }
                Ok((end, left)) => {
                    self.teller.tell(What::Ended { end: Ok(end), retries });
                    if let Some((body, connection)) = left {
                        self.client.finish(body, connection).await;
                    }
                    return;
                }
            }
        }
    }

    /// Sends the request once and reads the answer. Returns what is left of its body, if that may have an end.
    async fn attempt(&self) -> Result<(StreamEnd, Option<(Incoming, Connection)>), Failure> {
        let (mut body, connection) = self.client.complete(self.body.clone()).await?;
        let mut answer = Answer::default();
        while let Some(frame) = self.client.patiently(body.frame()).await? {
            let at_ns = self.teller.clock.now_ns();
            let bytes = match frame {
                Ok(frame) => frame.into_data().unwrap_or_default(),
                // All of the output has come before the connection broke.
                Err(_) if answer.is_whole() => return Ok((answer.end(at_ns)?, None)),
                Err(error) => return Err(Failure::body(&error)),
            };
            let tokens = answer.feed(&bytes)?;
            if tokens > 0 {
                self.teller.tell(What::Tokens { at_ns, tokens });
            }
            if answer.is_done() {
                return Ok((answer.end(at_ns)?, Some((body, connection))));
            }
        }
        Ok((answer.end(self.teller.clock.now_ns())?, Some((body, connection))))
    }
}
