//! Who is let in.

use crate::client::{request, send};
use crate::place::{Place, Setup};

#[test]
fn without_a_key_nobody_gets_past_the_health_the_version_and_the_empty_page() {
    let keys = vec!["sesame".to_owned(), "second".to_owned()];
    let place = Place::with(Setup { keys, ..Setup::default() });
    let ask = |method: &str, path: &str, headers: &str| {
        let body = if method == "GET" { "" } else { "{\"prompt\": \"a\", \"max_tokens\": 1}" };
        send(place.address, &request(method, path, headers, body)).status
    };
    for path in ["/health", "/ping", "/version", "/"] {
        assert_eq!(ask("GET", path, ""), 200, "{path}");
    }
    for (method, path) in [
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/reset_prefix_cache"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/builtin:target"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
        ("OPTIONS", "/v1/models"),
        ("HEAD", "/metrics"),
        ("GET", "//health"),
        ("GET", "/health/"),
        ("GET", "/%68ealth"),
        ("GET", "/health/../metrics"),
    ] {
        for headers in [
            "",
            "Authorization: Bearer wrong\r\n",
            "Authorization: Bearer \r\n",
            "Authorization: Bearer\r\n",
            "Authorization: sesame\r\n",
            "Authorization: Basic sesame\r\n",
            "Authorization: Bearer \u{ff}\r\n",
            "X-Api-Key: sesame\r\n",
        ] {
            assert_eq!(ask(method, path, headers), 401, "{method} {path} {headers:?}");
        }
    }
    for headers in ["Authorization: Bearer sesame\r\n", "authorization: bearer second\r\n"] {
        assert_eq!(ask("POST", "/v1/completions", headers), 200);
        assert_eq!(ask("GET", "/metrics", headers), 200);
    }
}
