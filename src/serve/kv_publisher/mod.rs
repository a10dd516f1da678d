//! Tells routers what enters and leaves the prefix cache, as vLLM does: over ZeroMQ.
//!
//! Each batch is a message of three frames: the topic, which is empty; the number of the batch, from 0, in 8 bytes, big-endian; and the
//! batch ([`payload`]). Who subscribes late, or misses a batch, asks the second socket: a message with the number of the first batch that
//! is wanted is answered by these batches, as far as the last 10,000 are kept, and by one with the number -1 behind them. A subscriber
//! that is too slow loses batches, and sees it by their numbers.

mod payload;

use std::collections::VecDeque;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use pagedraft_engine::session::CacheEvent;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqError, ZmqMessage};

/// The batches that are kept for those who missed them.
const KEPT: usize = 10_000;
/// The number behind the last batch of an answer: -1.
const END: [u8; 8] = [0xff; 8];

/// Why events can't be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The endpoint can't be listened at.
    #[error("can't publish at {endpoint}: {source}")]
    Bind {
        /// The endpoint.
        endpoint: String,
        /// What the system says.
        source: Box<ZmqError>,
    },
    /// The system has no thread to give.
    #[error("no thread to publish events: {0}")]
    Thread(#[from] io::Error),
}

/// Publishes what is sent into the channel that it returns, on a thread of its own, until the channel is dropped. `block_size` is the number of
/// tokens of a block. `replay` is the endpoint for those who missed something.
///
/// # Errors
///
/// An endpoint can't be listened at, or there is no thread.
pub fn publish(
    endpoint: &str,
    replay: Option<&str>,
    block_size: u32,
) -> Result<UnboundedSender<Vec<CacheEvent>>, PublishError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (events, inbox) = unbounded_channel();
    // A socket has a task of its own, so it is made within the runtime.
    let (publisher, router) = runtime.block_on(async {
        let (mut publisher, mut router) = (PubSocket::new(), RouterSocket::new());
        bind(&mut publisher, endpoint).await?;
        if let Some(replay) = replay {
            bind(&mut router, replay).await?;
        }
        Ok::<_, PublishError>((publisher, router))
    })?;
    let log = Log { block_size, next: 0, kept: VecDeque::new() };
    let run = move || runtime.block_on(run(inbox, publisher, router, log));
    std::thread::Builder::new().name("kv-events".to_owned()).spawn(run)?;
    Ok(events)
}

async fn bind(socket: &mut impl Socket, endpoint: &str) -> Result<(), PublishError> {
    // `*` stands for all addresses, as in vLLM's configurations.
    let bound = socket.bind(&endpoint.replace("://*", "://0.0.0.0")).await;
    let cant = |source| PublishError::Bind { endpoint: endpoint.to_owned(), source: Box::new(source) };
    bound.map(drop).map_err(cant)
}

/// The batches that were published.
struct Log {
    block_size: u32,
    next: u64,
    kept: VecDeque<(u64, Bytes)>,
}

impl Log {
    /// The next batch, with its number.
    fn push(&mut self, events: &[CacheEvent]) -> (u64, Bytes) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let batch = (self.next, Bytes::from(payload::batch(time, events, self.block_size)));
        self.next += 1;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(batch.clone());
        batch
    }

    /// The answer to a request for all batches from some number on; none if the request is not understood.
    fn answer(&self, request: &ZmqMessage) -> Vec<ZmqMessage> {
        let (Some(client), Some(start)) = (request.get(0), request.iter().skip(1).next_back()) else {
            return Vec::new();
        };
        let Ok(start) = <[u8; 8]>::try_from(&start[..]).map(u64::from_be_bytes) else { return Vec::new() };
        let message = |number: [u8; 8], batch: Bytes| {
            let frames = [client.clone(), Bytes::new(), Bytes::new(), Bytes::copy_from_slice(&number), batch];
            ZmqMessage::try_from(frames.to_vec()).ok()
        };
        let wanted = self.kept.iter().filter(|(number, _)| *number >= start);
        let batches = wanted.map(|(number, batch)| message(number.to_be_bytes(), batch.clone()));
        batches.chain([message(END, Bytes::new())]).flatten().collect()
    }
}

async fn run(
    mut inbox: UnboundedReceiver<Vec<CacheEvent>>,
    mut publisher: PubSocket,
    mut router: RouterSocket,
    mut log: Log,
) {
    loop {
        tokio::select! {
            events = inbox.recv() => {
                let Some(events) = events else { return };
                let (number, batch) = log.push(&events);
                let frames = vec![Bytes::new(), Bytes::copy_from_slice(&number.to_be_bytes()), batch];
                if let Ok(message) = ZmqMessage::try_from(frames) && let Err(error) = publisher.send(message).await {
                    tracing::warn!(target: "pagedraft", "batch {number} of KV events was not published: {error}");
                }
            }
            request = router.recv() => {
                let Ok(request) = request else { continue };
                for message in log.answer(&request) {
                    // A client that is gone needs no answer.
                    if router.send(message).await.is_err() {
                        break;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use zeromq::{DealerSocket, SubSocket};

    use super::*;

    /// A port that nobody listens at.
    fn free_endpoint() -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("tcp://{}", listener.local_addr().unwrap())
    }

    #[test]
    fn a_subscriber_gets_the_batches_in_order_and_who_missed_them_can_ask() {
        let (endpoint, replay) = (free_endpoint(), free_endpoint());
        let events = publish(&endpoint, Some(&replay), 16).unwrap();
        let taken = publish(&endpoint, None, 16).unwrap_err().to_string();
        assert!(taken.contains(&endpoint), "{taken}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let number = |message: &ZmqMessage, frame| {
            i64::from_be_bytes(message.get(frame).unwrap()[..].try_into().unwrap())
        };
        runtime.block_on(async {
            let mut subscriber = SubSocket::new();
            subscriber.connect(&endpoint).await.unwrap();
            subscriber.subscribe("").await.unwrap();
            // A subscription takes effect some time after it was asked for. Batches before that are lost to it.
            let first = loop {
                events.send(vec![CacheEvent::Cleared]).unwrap();
                let patience = std::time::Duration::from_millis(50);
                if let Ok(message) = tokio::time::timeout(patience, subscriber.recv()).await {
                    break message.unwrap();
                }
            };
            let missed = number(&first, 1);
            events.send(vec![CacheEvent::Removed(3)]).unwrap();
            assert_eq!(number(&subscriber.recv().await.unwrap(), 1), missed + 1);
            let mut asks = DealerSocket::new();
            asks.connect(&replay).await.unwrap();
            let frames = [Bytes::new(), Bytes::copy_from_slice(&0u64.to_be_bytes())];
            asks.send(ZmqMessage::try_from(frames.to_vec()).unwrap()).await.unwrap();
            for expected in (0..=missed + 1).chain([-1]) {
                assert_eq!(number(&asks.recv().await.unwrap(), 2), expected);
            }
        });
    }

    #[test]
    fn who_missed_batches_gets_those_that_are_kept_and_a_last_one_with_the_number_minus_one() {
        let mut log = Log { block_size: 16, next: 0, kept: VecDeque::new() };
        for i in 0..KEPT as u64 + 3 {
            assert_eq!(log.push(&[CacheEvent::Removed(i)]).0, i);
        }
        let ask = |from: u64| {
            let frames = [&b"me"[..], b"", &from.to_be_bytes()].map(Bytes::copy_from_slice);
            ZmqMessage::try_from(frames.to_vec()).unwrap()
        };
        let numbers = |request: &ZmqMessage| -> Vec<i64> {
            let number = |message: &ZmqMessage| {
                assert_eq!((&message.get(0).unwrap()[..], message.len()), (&b"me"[..], 5));
                i64::from_be_bytes(message.get(3).unwrap()[..].try_into().unwrap())
            };
            log.answer(request).iter().map(number).collect()
        };
        let last = KEPT as i64 + 2;
        assert_eq!(numbers(&ask(last as u64 - 1)), [last - 1, last, -1]);
        assert_eq!(numbers(&ask(0)).first(), Some(&3));
        assert_eq!(numbers(&ask(u64::MAX)), [-1]);
        assert_eq!(numbers(&ZmqMessage::from("nonsense")), [0i64; 0]);
    }
}
