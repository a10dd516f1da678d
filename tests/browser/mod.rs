//! A browser without a window, that opens pages for tests.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::Scratch;

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

/// What a page becomes. `until` is the flag that says when to look at it.
pub fn open(browser: &str, scratch: &Scratch, address: &str, until: &str) -> String {
    let profile = scratch.path("profile");
    let dom = scratch.path("dom.html");
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg("--disable-dev-shm-usage")
        .arg(format!("--user-data-dir={profile}"))
        .args([until, "--dump-dom"])
        .arg(address)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&dom).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("the browser did not come back within two minutes");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::read_to_string(dom).unwrap()
}
