//! Spans that are sent to a collector of OpenTelemetry (builds with `--features otel`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::Sender;

use serde_json::{Value, json};

use crate::client::post;
use crate::process::Process;

/// A collector that hands on the bodies of what is posted to it.
fn collect(listener: TcpListener, bodies: Sender<Value>) {
    for stream in listener.incoming() {
        let mut reader = BufReader::new(stream.unwrap());
        loop {
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            if length == 0 {
                break;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let _ = bodies.send(serde_json::from_slice(&body).unwrap());
            let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    }
}

#[test]
fn the_span_of_each_request_is_sent_with_what_became_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    let (sender, bodies) = std::sync::mpsc::channel();
    std::thread::spawn(move || collect(listener, sender));
    let server = Process::start_with(&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector)]);
    let body = json!({"prompt": "The king", "max_tokens": 7, "ignore_eos": true, "n": 2});
    post(server.address, "/v1/completions", &body).answer();
    server.terminate();
    let (code, told) = server.wait();
    assert_eq!(code, Some(0), "{told}");
    let bodies: Vec<Value> = bodies.try_iter().collect();
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let scopes =
        bodies.iter().flat_map(|body| list(body, "resourceSpans")).flat_map(|of| list(&of, "scopeSpans"));
    let spans: Vec<Value> = scopes.flat_map(|scope| list(&scope, "spans")).collect();
    assert_eq!(spans.len(), 2, "{bodies:?}");
    for span in &spans {
        assert_eq!(span["name"], "request");
        let value = |name: &str| {
            let found = list(span, "attributes").into_iter().find(|attribute| attribute["key"] == name);
            found.unwrap_or_else(|| panic!("no {name}: {span}"))["value"].clone()
        };
        // Whole numbers are texts in OTLP's JSON.
        assert_eq!(value("tokens")["intValue"], "7", "{span}");
        assert_eq!(value("finish_reason")["stringValue"], "Length");
        assert!(value("prefill_seconds")["doubleValue"].as_f64().unwrap() > 0.0);
    }
}
