//! A browser without a window, that opens pages for tests.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::Scratch;

/// How long a page may take to show what a test waits for, and the browser to answer a question.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser, if there is one.
pub fn find() -> Option<String> {
    let named = std::env::var("CHROME").ok();
    let known = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"].map(str::to_owned);
    let starts = |name: &String| {
        let version = Command::new(name).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
        version.is_ok_and(|output| output.status.success())
    };
    let found = named.into_iter().chain(known).find(starts);
    if found.is_none() {
        eprintln!("skipped: no Chromium found (chromium, chromium-browser, google-chrome, or $CHROME)");
    }
    found
}

/// What the page at `address` is as soon as `shown` says that it is what the test waits for; or what it is after a minute.
pub fn open(browser: &str, scratch: &Scratch, address: &str, shown: impl Fn(&str) -> bool) -> String {
    let mut browser = Browser::start(browser, scratch);
    let target = browser.ask(json!({"method": "Target.createTarget", "params": {"url": address}}));
    let attach = json!({"targetId": target["targetId"], "flatten": true});
    let session = browser.ask(json!({"method": "Target.attachToTarget", "params": attach}));
    let began = Instant::now();
    loop {
        let look = json!({"expression": "document.documentElement?.outerHTML ?? ''"});
        let question =
            json!({"sessionId": session["sessionId"], "method": "Runtime.evaluate", "params": look});
        let dom = browser.ask(question)["result"]["value"].as_str().unwrap_or_default().to_owned();
        if shown(&dom) || began.elapsed() > PATIENCE {
            return dom;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running browser, which is asked in the words of the Chrome DevTools Protocol; it ends when this is dropped.
struct Browser {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<Value>,
    asked: u64,
}

impl Browser {
    fn start(browser: &str, scratch: &Scratch) -> Self {
        // The browser reads questions from descriptor 3 and writes answers to 4, each with a zero byte behind it.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null", browser])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", scratch.path("profile")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let questions = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (send, answers) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|bytes| bytes > 0) {
                message.pop();
                if send.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
                message.clear();
            }
        });
        Self { child, questions, answers, asked: 0 }
    }

    /// The result of a question; events that come meanwhile are not looked at.
    fn ask(&mut self, mut question: Value) -> Value {
        self.asked += 1;
        question["id"] = self.asked.into();
        self.questions.write_all(format!("{question}\0").as_bytes()).unwrap();
        loop {
            let answer = self.answers.recv_timeout(PATIENCE).unwrap();
            if answer["id"] == self.asked {
                assert!(answer["error"].is_null(), "{question}: {answer}");
                return answer["result"].clone();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
