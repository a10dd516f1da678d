//! A server in this process that speaks as much of S3's protocol as a KV pool needs, and fails as it is told. No real server can be had
//! from the registries that tests may use.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a store does to the objects that it is asked for, from the tenth request on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// It answers with an error.
    Refuses,
    /// It has nothing.
    Loses,
    /// It gives a part.
    CutsShort,
    /// It gives other bytes.
    Damages,
    /// It takes nothing more.
    IsFull,
    /// It does not answer.
    Hangs,
}

#[derive(Default)]
struct State {
    objects: HashMap<String, Vec<u8>>,
    requests: usize,
    unsigned: usize,
}

pub struct ObjectStore {
    state: Arc<Mutex<State>>,
    port: u16,
}

impl ObjectStore {
    /// A server on a port of this machine. Its threads end with the process.
    pub fn start(fault: Option<Fault>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // Whoever hangs up has what it wanted.
                std::thread::spawn(move || serve(connection, &state, fault));
            }
        });
        Self { state, port }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn requests(&self) -> usize {
        self.state.lock().unwrap().requests
    }

    /// Whether every request was signed.
    pub fn signed(&self) -> bool {
        self.state.lock().unwrap().unsigned == 0
    }

    pub fn objects(&self) -> usize {
        self.state.lock().unwrap().objects.len()
    }
}

/// Answers the requests of a connection until it ends.
fn serve(mut connection: TcpStream, state: &Mutex<State>, fault: Option<Fault>) -> Option<()> {
    let mut reader = BufReader::new(connection.try_clone().ok()?);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
        let mut words = line.split(' ').map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let (mut length, mut signed) = (0, false);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            signed |= header.starts_with("authorization: aws4-hmac-sha256 credential=one/");
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let answered = answer(&mut state.lock().unwrap(), fault, (&method, &path), body, signed);
        let (status, body) = answered.unwrap_or_else(|| {
            std::thread::sleep(Duration::from_secs(20));
            ("503 Slow Down", Vec::new())
        });
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"1\"\r\nlast-modified: Mon, 30 Nov 2026 06:00:00 GMT\r\n\r\n",
            body.len()
        );
        connection.write_all(&[head.as_bytes(), &body].concat()).ok()?;
    }
}

/// Status and body; `None`: no answer.
fn answer(
    state: &mut State,
    fault: Option<Fault>,
    (method, path): (&str, &str),
    body: Vec<u8>,
    signed: bool,
) -> Option<(&'static str, Vec<u8>)> {
    state.requests += 1;
    state.unsigned += usize::from(!signed);
    let fault = fault.filter(|_| state.requests >= 10);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    match (method, fault) {
        (_, Some(Fault::Hangs)) => None,
        ("PUT", Some(Fault::IsFull)) => Some(("507 Insufficient Storage", b"<Error/>".to_vec())),
        ("PUT", _) => {
            state.objects.insert(path.to_owned(), body);
            Some(("200 OK", Vec::new()))
        }
        ("GET", Some(Fault::Refuses)) => Some(("403 Forbidden", b"<Error/>".to_vec())),
        ("GET", _) => {
            let found = state.objects.get(path).filter(|_| fault != Some(Fault::Loses));
            let Some(mut found) = found.cloned() else {
                return Some(("404 Not Found", b"<Error/>".to_vec()));
            };
            match fault {
                Some(Fault::CutsShort) => found.truncate(found.len() / 2),
                Some(Fault::Damages) => found[3] ^= 8,
                _ => {}
            }
            Some(("200 OK", found))
        }
        ("POST", _) if query.starts_with("delete") => {
            let text = String::from_utf8(body).ok()?;
            let bucket = path.trim_end_matches('/');
            let mut deleted = String::new();
            for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
                state.objects.remove(&format!("{bucket}/{key}"));
                deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            Some(("200 OK", format!("<DeleteResult>{deleted}</DeleteResult>").into_bytes()))
        }
        ("DELETE", _) => {
            state.objects.remove(path);
            Some(("204 No Content", Vec::new()))
        }
        _ => Some(("400 Bad Request", Vec::new())),
    }
}
