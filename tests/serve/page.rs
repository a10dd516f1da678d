//! The page in a real browser.

use crate::browser;
use crate::client::get;
use crate::place::{Place, Setup};
use crate::program::Scratch;

/// How long the browser shows the page before it says what is on it.
const SHOWN: &str = "--timeout=5000";

#[test]
fn the_page_shows_what_runs_and_the_blocks_that_it_holds() {
    let Some(browser) = browser::find() else { return };
    let place = Place::new();
    let address = place.address;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let dom = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let body = serde_json::json!({"prompt": [5, 6, 7], "max_tokens": 1900, "ignore_eos": true});
                crate::client::post(address, "/v1/completions", &body);
            }
        });
        let dom = browser::open(&browser, &Scratch::new("page"), &format!("http://{address}/"), SHOWN);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        dom
    });
    assert!(dom.contains("<span id=\"model\">builtin:target</span>"), "{dom}");
    assert!(dom.contains(" of 512 blocks of 16 tokens are held"), "{dom}");
    assert!(dom.contains("class=\"blocks\""), "no request is shown: {dom}");
    assert!(dom.contains("tokens/s</b>"), "no rate is shown: {dom}");
}

#[test]
fn the_page_asks_for_a_key_and_shows_nothing_without_one() {
    let place = Place::with(Setup { keys: vec!["secret".to_owned()], ..Setup::default() });
    let live = get(place.address, "/live");
    assert_eq!(live.status, 401);
    assert_eq!(get(place.address, "/").status, 200);
    let Some(browser) = browser::find() else { return };
    let address = format!("http://{}/", place.address);
    let dom = browser::open(&browser, &Scratch::new("page_key"), &address, SHOWN);
    assert!(dom.contains("an API key is needed") && dom.contains("<form id=\"key\">"), "{dom}");
    assert!(dom.contains("<main id=\"data\" hidden"), "{dom}");
}
