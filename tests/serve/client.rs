//! A client on a real socket, which sees what a server sends as it is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// The head of a response, and its body as far as it is not read yet.
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    /// What of the body's current chunk was read and not handed out.
    events: String,
}

/// A response that was read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

/// Sends a request as it is given, and reads the head of the response.
pub fn send(address: SocketAddr, request: &[u8]) -> Response {
    let mut stream = connect(address);
    // A server may answer, and close, before it has read all of it.
    let _ = stream.write_all(request);
    Response::read(BufReader::new(stream))
}

/// A connection that is used again and again, as long as the server keeps it.
pub struct Connection {
    address: SocketAddr,
    reader: Option<BufReader<TcpStream>>,
}

impl Connection {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, reader: None }
    }

    /// Posts a body, of which it is not known whether it is text, and reads the whole answer.
    pub fn post(&mut self, path: &str, body: &[u8]) -> Reply {
        let mut reader = self.reader.take().unwrap_or_else(|| BufReader::new(connect(self.address)));
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        reader.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut response = Response::read(reader);
        let reply = response.rest();
        if response.header("connection") != Some("close") {
            self.reader = Some(response.reader);
        }
        reply
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// The bytes of a request with a body.
pub fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
        .into_bytes()
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    send(address, &request("POST", path, "", &body.to_string())).whole()
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, &request("GET", path, "", "")).whole()
}

/// Begins a stream: the body with `"stream": true`.
pub fn stream(address: SocketAddr, path: &str, body: &Value) -> Response {
    let mut body = body.clone();
    body["stream"] = true.into();
    let response = send(address, &request("POST", path, "", &body.to_string()));
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    response
}

impl Response {
    fn read(mut reader: BufReader<TcpStream>) -> Self {
        let line = |reader: &mut BufReader<TcpStream>| {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let status = line(&mut reader);
        let status =
            status.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {status:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            match line(&mut reader).split_once(": ") {
                Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
                None => return Self { status, headers, reader, events: String::new() },
            }
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The next chunk of a chunked body; `None` at its end.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        self.reader.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let mut chunk = vec![0; size + 2];
        // A server that gives up closes the connection without a last chunk.
        self.reader.read_exact(&mut chunk).ok()?;
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    pub fn whole(mut self) -> Reply {
        self.rest()
    }

    fn rest(&mut self) -> Reply {
        let mut body = Vec::new();
        if self.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else {
            let length = self.header("content-length").map_or(0, |length| length.parse().unwrap());
            body.resize(length, 0);
            self.reader.read_exact(&mut body).unwrap();
        }
        Reply { status: self.status, headers: self.headers.clone(), text: String::from_utf8(body).unwrap() }
    }

    /// The data of the next event; `None` at the end of the stream.
    pub fn event(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.events.split_once("\n\n") {
                let data = event.strip_prefix("data: ").unwrap().to_owned();
                self.events = rest.to_owned();
                return Some(data);
            }
            // Every event is sent whole, so that a chunk is text.
            let chunk = self.chunk()?;
            self.events.push_str(&String::from_utf8(chunk).unwrap());
        }
    }

    /// All events that are left. The last one must be `[DONE]`.
    pub fn events(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.event() {
            if event == "[DONE]" {
                assert_eq!(self.event(), None, "nothing comes behind the end");
                return events;
            }
            events.push(serde_json::from_str(&event).unwrap());
        }
        panic!("the stream has no end: {events:?}");
    }

    /// The socket, for clients that read it in their own way.
    pub fn socket(&self) -> &TcpStream {
        self.reader.get_ref()
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The JSON of an answer.
    pub fn answer(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }
}
