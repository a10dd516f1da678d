//! The page in a real browser.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::browser;
use crate::client::{get, post};
use crate::place::{NAME, Place, Setup};
use crate::program::Scratch;

#[test]
fn the_page_shows_what_runs_and_the_blocks_that_it_holds() {
    let Some(browser) = browser::find() else { return };
    let place = Place::new();
    let address = place.address;
    let stop = AtomicBool::new(false);
    let dom = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                post(
                    address,
                    "/v1/completions",
                    &json!({"prompt": [5, 6, 7], "max_tokens": 1900, "ignore_eos": true}),
                );
            }
        });
        place.wait_for("a request runs", |stats| stats.running == 1);
        let dom = browser::open(&browser, &Scratch::new("page"), &format!("http://{address}/"), |dom| {
            dom.contains("class=\"blocks\"")
        });
        stop.store(true, Ordering::Relaxed);
        dom
    });
    assert!(dom.contains(&format!("<span id=\"model\">{NAME}</span>")), "{dom}");
    assert!(dom.contains(" of 512 blocks of 16 tokens are held"), "{dom}");
    assert!(dom.contains("class=\"blocks\""), "no request is shown: {dom}");
}

#[test]
fn the_page_asks_for_a_key_and_shows_nothing_without_one() {
    let place = Place::with(Setup { keys: vec!["secret".to_owned()], ..Setup::default() });
    assert_eq!(get(place.address, "/live").status, 401);
    assert_eq!(get(place.address, "/").status, 200);
    let Some(browser) = browser::find() else { return };
    let address = format!("http://{}/", place.address);
    let dom = browser::open(&browser, &Scratch::new("page_key"), &address, |dom| {
        dom.contains(">an API key is needed<")
    });
    assert!(dom.contains("an API key is needed") && dom.contains("<form id=\"key\">"), "{dom}");
    assert!(dom.contains("<main id=\"data\" hidden"), "{dom}");
}

#[test]
fn rates_and_means_are_those_between_two_events() {
    let Some(browser) = browser::find() else { return };
    let scratch = Scratch::new("page_history");
    let script = r#"
        const h = new History(3);
        const event = (tokens, count, sum, drafts) => ({ tokens, time: [count, sum], drafts });
        h.push(event(7, 0, 0, [0, 0]), 0);
        h.push(event(10, 1, 0.5, [0, 0]), 1);
        h.push(event(30, 3, 2.5, [10, 4]), 3);
        h.push(event(30, 3, 2.5, [10, 4]), 4);
        document.body.textContent = JSON.stringify([h.rate("tokens"), h.mean("time", 1000),
          h.share((e) => e.drafts[1], (e) => e.drafts[0]), h.values("tokens")]);"#;
    let history = include_str!("../../src/serve/page/history.js");
    let page = scratch.path("page.html");
    std::fs::write(&page, format!("<body></body><script>{history}{script}</script>")).unwrap();
    let dom = browser::open(&browser, &scratch, &format!("file://{page}"), |dom| dom.contains("[["));
    assert!(dom.contains("[[10,0],[1000,null],[0.4,null],[10,30,30]]"), "{dom}");
}
