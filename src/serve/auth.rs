//! Who may ask: requests carry one of the server's keys, if it has any.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::app::App;
use super::error::ApiError;

/// What is given to everybody: whether the server lives, which it is, and a page without data.
const OPEN: [&str; 4] = ["/", "/health", "/ping", "/version"];

/// The keys of a server. Only hashes are kept and compared, so that the time of a comparison says nothing about a key.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// These keys; none lets everybody in.
    pub fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key).into()).collect())
    }

    fn has(&self, key: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(key).into();
        self.0.contains(&hash)
    }
}

/// Lets a request through if it has a key, or needs none.
pub async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, ApiError> {
    if app.keys.0.is_empty() || OPEN.contains(&request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let value = request.headers().get(header::AUTHORIZATION);
    let Some(value) = value.and_then(|value| value.to_str().ok()) else {
        return Err(ApiError::unauthorized("no API key: send it as \"Authorization: Bearer KEY\""));
    };
    let (scheme, key) = value.split_once(' ').unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(ApiError::unauthorized("the API key is not sent as \"Authorization: Bearer KEY\""));
    }
    if !app.keys.has(key.trim()) {
        return Err(ApiError::unauthorized("the API key is not one of this server's"));
    }
    Ok(next.run(request).await)
}
