//! A client of one server: its connections, and requests on them.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use pagedraft::completion_stream::{Failure, shortened};
use pagedraft::exit::usage_hint;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Address;

/// A connection without a request on it is not used again after this time. Servers close idle ones after 5 s or more, and a
/// request that crosses such an end would be lost.
const IDLE: Duration = Duration::from_secs(3);
/// The most that is read of an answer which is not a stream, in bytes.
const MOST_READ: usize = 64 << 10;
/// How long the rest of a body may take whose end has been told.
const REST: Duration = Duration::from_secs(1);

/// A connection on which a request can be sent.
pub type Connection = SendRequest<Full<Bytes>>;

/// A client of one server. It is shared by all requests in flight.
pub struct Client {
    address: Address,
    /// The addresses of the host. Each new connection tries them in this order.
    resolved: Vec<SocketAddr>,
    host: HeaderValue,
    completions: String,
    key: Option<HeaderValue>,
    /// How long the server may be silent.
    pub silence: Duration,
    /// Open connections without a request, and since when. The one that was used last is used first.
    idle: Mutex<Vec<(Connection, Instant)>>,
}

/// The answer of `/v1/models`.
#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

impl Client {
    /// A client of the server at `address`, to which it does not connect yet.
    pub fn new(address: &Address, key: Option<HeaderValue>, silence: Duration) -> anyhow::Result<Self> {
        let resolved = (address.host.as_str(), address.port).to_socket_addrs();
        let resolved = resolved.map_err(|error| {
            let error = anyhow!("--endpoint: the host {} is not known: {error}", address.host);
            usage_hint(error, "is it spelt right?")
        })?;
        Ok(Self {
            address: address.clone(),
            resolved: resolved.collect(),
            host: HeaderValue::from_str(&address.authority).context("the host's name is no header")?,
            completions: address.path("completions"),
            key,
            silence,
            idle: Mutex::default(),
        })
    }

    /// Makes sure that there is a server. Returns the name of the model to ask for: `model`, or the first that the server lists.
    pub async fn greet(&self, model: Option<&str>) -> anyhow::Result<String> {
        let told = |failure: Failure| {
            let error = anyhow!("--endpoint: no server answers at {}: {}", self.address, failure.error);
            usage_hint(error, "is it running there? `pagedraft serve` starts one")
        };
        if let Some(model) = model {
            let connection = self.patiently(self.connect()).await.and_then(|done| done).map_err(told)?;
            self.keep(connection);
            return Ok(model.to_owned());
        }
        let path = self.address.path("models");
        let request = self.request(Method::GET, &path, Bytes::new()).map_err(told)?;
        let sent = self.patiently(self.send(request)).await.and_then(|done| done);
        let (response, _) = sent.map_err(told)?;
        let status = response.status();
        let text = self.text(response.into_body()).await.map_err(told)?;
        let models: Option<Models> = serde_json::from_str(&text).ok().filter(|_| status.is_success());
        match models.and_then(|models| models.data.into_iter().next()) {
            Some(model) => Ok(model.id),
            None => Err(usage_hint(
                anyhow!("--endpoint: {path} does not list a model: HTTP {status}: {}", shortened(&text)),
                match status.as_u16() {
                    401 | 403 => "give the server's key with --endpoint-api-key",
                    _ => "name the model with --endpoint-model",
                },
            )),
        }
    }

    /// Posts a completion request. The answer's status is 200, and it is a stream as far as its head says. The connection is
    /// free again when the body has been read.
    pub async fn complete(&self, body: Bytes) -> Result<(Incoming, Connection), Failure> {
        let request = self.request(Method::POST, &self.completions, body)?;
        let (response, connection) = self.patiently(self.send(request)).await??;
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let wait = header(RETRY_AFTER).and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        let is_json = header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
        if status == 200 && !is_json {
            return Ok((response.into_body(), connection));
        }
        let text = self.text(response.into_body()).await?;
        self.keep(connection);
        Err(match status.as_u16() {
            200 => Failure::new("no_stream", format!("the answer is no stream: {}", shortened(&text))),
            _ => Failure::status(status, &shortened(&text), wait),
        })
    }

    /// Reads what is left of a body whose end has been told, and keeps the connection for another request.
    pub async fn finish(&self, mut body: Incoming, connection: Connection) {
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        if timeout(REST, rest).await.is_ok() {
            self.keep(connection);
        }
    }

    /// Waits for something that the server does.
    pub async fn patiently<T>(&self, what: impl Future<Output = T>) -> Result<T, Failure> {
        timeout(self.silence, what).await.map_err(|_| Failure::timeout(self.silence))
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.host);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        let request = request.body(Full::new(body));
        request
            .map_err(|error| Failure::new("connection", format!("no request can be made of this: {error}")))
    }

    /// Sends a request, on a connection that is open or on a new one.
    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        loop {
            let kept = self.take();
            let reused = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            if connection.ready().await.is_err() && reused {
                continue;
            }
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => match error.take_message().filter(|_| reused) {
                    // The connection had been closed before anything was sent on it.
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::connection(error.error())),
                },
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(self.resolved.as_slice()).await;
        let stream = stream.map_err(|error| Failure::connection(&error))?;
        // Otherwise a request that takes two packets waits up to 40 ms for the first one's acknowledgement.
        stream.set_nodelay(true).map_err(|error| Failure::connection(&error))?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| Failure::connection(&error))?;
        // Its faults come back with the request that is on it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn keep(&self, connection: Connection) {
        self.idle.lock().push((connection, Instant::now()));
    }

    /// A connection that was used a short time ago.
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        loop {
            let (connection, since) = idle.pop()?;
            if since.elapsed() > IDLE {
                // Those below it have been idle even longer.
                idle.clear();
                return None;
            }
            if !connection.is_closed() {
                return Some(connection);
            }
        }
    }

    /// Reads an answer that is not a stream, as far as it is needed.
    async fn text(&self, mut body: Incoming) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        while let Some(frame) = self.patiently(body.frame()).await? {
            let frame = frame.map_err(|error| Failure::body(&error))?;
            if let Some(data) = frame.data_ref().filter(|_| bytes.len() < MOST_READ) {
                bytes.extend_from_slice(data);
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
