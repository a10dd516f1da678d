//! A server that answers as it is told to: one thread for each connection, and no library.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// A completion request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// How many came before it.
    pub number: usize,
    pub authorization: Option<String>,
    pub body: Value,
}

/// The server. Its threads end with the process.
pub struct Mock {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// The connection that a request came on.
pub struct Talk {
    stream: TcpStream,
    /// Whether the connection can be used again.
    pub keep: bool,
}

/// A chunk of a completion.
pub fn piece(text: &str, finish_reason: Option<&str>) -> Value {
    json!({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})
}

/// A chunk with counts of tokens.
pub fn counted(mut chunk: Value, prompt: u32, output: u32) -> Value {
    chunk["usage"] = json!({"prompt_tokens": prompt, "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": 16}});
    chunk
}

impl Mock {
    /// Answers each completion request by `answer`, and lists one model, `mock`.
    pub fn start(answer: impl Fn(&Asked, &mut Talk) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mock = Self { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let asked = mock.asked.clone();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, answer) = (asked.clone(), answer.clone());
                std::thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut talk = Talk { stream, keep: true };
                    while let Some((path, authorization, body)) = read(&mut reader).filter(|_| talk.keep) {
                        if path == "/v1/models" {
                            talk.whole("200 OK", "", &json!({"data": [{"id": "mock"}]}).to_string());
                            continue;
                        }
                        let body = serde_json::from_slice(&body).unwrap();
                        let one = {
                            let mut all = asked.lock().unwrap();
                            let number = all.len();
                            all.push(Asked { number, authorization, body });
                            all.last().unwrap().clone()
                        };
                        answer(&one, &mut talk);
                    }
                });
            }
        });
        mock
    }

    /// Its address, as `--endpoint` takes it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All completion requests that came.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Reads a request: its path, its key and its body. `None` at the end of the connection.
fn read(reader: &mut BufReader<TcpStream>) -> Option<(String, Option<String>, Vec<u8>)> {
    let (mut first, mut length, mut key) = (String::new(), 0, None);
    reader.read_line(&mut first).ok().filter(|&read| read > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => key = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first.split(' ').nth(1)?.to_owned(), key, body))
}

impl Talk {
    /// Sends bytes as they are. The client may be gone.
    pub fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends an answer that is not a stream.
    pub fn whole(&mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        self.raw(
            format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
            )
            .as_bytes(),
        );
    }

    /// Closes the connection.
    pub fn hang_up(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Begins a stream.
    pub fn begin(&mut self) {
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    }

    /// Sends a piece of the stream's body.
    pub fn chunk(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.raw(&chunk);
    }

    /// Sends an event.
    pub fn event(&mut self, data: &Value) {
        self.chunk(format!("data: {data}\n\n").as_bytes());
    }

    /// Ends the stream in order.
    pub fn done(&mut self) {
        self.chunk(b"data: [DONE]\n\n");
        self.raw(b"0\r\n\r\n");
    }
}
