//! Reads the JSON body of a request.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use pagedraft_workloads::json_fault;
use serde::de::DeserializeOwned;

use super::app::App;
use super::error::ApiError;

/// Bodies of more bytes than this are parsed on another thread, so that the answers of others do not wait.
const SMALL: usize = 64 << 10;

/// The JSON body of a request as a `T`, whatever content type it says it has. The limit of its size is the router's.
pub async fn read<T: DeserializeOwned + Send + 'static>(app: &App, request: Request) -> Result<T, ApiError> {
    let read = tokio::time::timeout(app.limits.body_time, Bytes::from_request(request, &()));
    let bytes = match read.await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(refused)) if refused.status().as_u16() == 413 => {
            return Err(ApiError::too_large(app.limits.body_bytes));
        }
        Ok(Err(refused)) => return Err(ApiError::bad(format!("the body can't be read: {refused}"))),
        Err(_) => return Err(ApiError::too_slow(too_slow(app.limits.body_time))),
    };
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::bad("the body is no JSON object: it should begin with {"));
    }
    let size = bytes.len();
    let parse = move || json_fault::parse(&bytes);
    let parsed = if size <= SMALL {
        parse()
    } else {
        tokio::task::spawn_blocking(parse).await.map_err(|error| ApiError::failed(error.to_string()))?
    };
    parsed.map_err(|fault| ApiError::bad(format!("line {}: {fault}", fault.line)))
}

fn too_slow(time: Duration) -> String {
    format!("the body did not come within {} seconds", time.as_secs_f64())
}
