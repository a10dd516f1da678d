//! Reads the JSON body of a request.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use pagedraft_workloads::json_fault;
use serde::de::DeserializeOwned;

use super::app::App;
use super::error::ApiError;

/// The JSON body of a request as a `T`, whatever content type it says it has. The limit of its size is the router's.
pub async fn read<T: DeserializeOwned>(app: &App, request: Request) -> Result<T, ApiError> {
    let read = tokio::time::timeout(app.limits.body_time, Bytes::from_request(request, &()));
    let bytes = match read.await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(refused)) if refused.status().as_u16() == 413 => {
            return Err(ApiError::too_large(app.limits.body_bytes));
        }
        Ok(Err(refused)) => return Err(ApiError::bad(format!("the body can't be read: {refused}"))),
        Err(_) => return Err(ApiError::too_slow(too_slow(app.limits.body_time))),
    };
    json_fault::parse(&bytes).map_err(|fault| ApiError::bad(format!("line {}: {fault}", fault.line)))
}

fn too_slow(time: Duration) -> String {
    format!("the body did not come within {} seconds", time.as_secs_f64())
}
