//! Which path does what.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::{Value, json};

use super::app::App;
use super::error::ApiError;
use super::{auth, chat, completions, metrics, tokenize};

/// The page for people who open the server in a browser. It has no data.
const PAGE: &str = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Pagedraft</title>\n\
                    <p>A Pagedraft server runs here. Its API is OpenAI's, below <code>/v1</code>.</p></html>\n";

/// The routes of a server.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/ping", get(health).post(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics::text))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/chat/completions", post(chat::answer))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/reset_prefix_cache", post(reset_prefix_cache))
        .fallback(nothing_there)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(app.limits.body_bytes))
        .layer(from_fn_with_state(Arc::clone(&app), auth::check))
        .with_state(app)
}

/// A response with the JSON of a value.
pub fn json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => {
            ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response()
        }
        Err(error) => ApiError::failed(error.to_string()).into_response(),
    }
}

async fn page() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))], PAGE).into_response()
}

/// Whether new requests should come here.
async fn health(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    if *app.draining.borrow() {
        return Err(ApiError::unavailable("the server is shutting down"));
    }
    if app.engine.has_stopped() {
        return Err(ApiError::unavailable("the engine has stopped"));
    }
    Ok(StatusCode::OK)
}

async fn version() -> Response {
    json(&json!({"version": env!("CARGO_PKG_VERSION"), "revision": crate::REVISION}))
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let data: Vec<_> = app.names.iter().map(|name| described(&app, name)).collect();
    json(&json!({"object": "list", "data": data}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    app.check_model(Some(&name))?;
    Ok(json(&described(&app, &name)))
}

fn described(app: &App, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.started,
        "owned_by": "pagedraft",
        "root": app.engine.info().model_id,
        "parent": null,
        "max_model_len": app.engine.info().max_model_len,
    })
}

async fn reset_prefix_cache(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.engine.reset_prefix_cache().await?;
    Ok(json(&json!({})))
}

async fn nothing_there(request: Request) -> ApiError {
    ApiError::no_such_path(request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}
