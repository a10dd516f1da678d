//! What a client is told when it gets no answer: an error object as OpenAI's servers send it.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Why a request has no answer. As a response it is `{"error": {"message", "type", "param", "code"}}` with its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// The seconds after which the request may succeed.
    retry_after: Option<u32>,
}

/// The object inside `{"error": ..}`.
#[derive(Serialize)]
struct Fault<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Fault<'a>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into(), retry_after: None }
    }

    fn invalid(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// 400: the request is not well formed, or a value is out of its range.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::invalid(StatusCode::BAD_REQUEST, message)
    }

    /// 400: prompt and answer together are longer than the model can take.
    pub fn too_long(message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::bad(message) }
    }

    /// 401: the key is missing or wrong.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self { code: Some("invalid_api_key"), ..Self::invalid(StatusCode::UNAUTHORIZED, message) }
    }

    /// 404: there is no such path.
    pub fn no_such_path(path: &str) -> Self {
        Self::invalid(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
    }

    /// 404: no model has this name.
    pub fn no_such_model(asked: &str, served: &[String]) -> Self {
        let message = format!("the model {asked:?} does not exist here; served is {}", served.join(", "));
        Self { code: Some("model_not_found"), ..Self::invalid(StatusCode::NOT_FOUND, message) }.at("model")
    }

    /// 405: the path is there, but not for this method.
    pub fn wrong_method(method: &str, path: &str) -> Self {
        Self::invalid(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}"))
    }

    /// 408: the body did not come in time.
    pub fn too_slow(message: impl Into<String>) -> Self {
        Self::invalid(StatusCode::REQUEST_TIMEOUT, message)
    }

    /// 413: the body has more than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes, which is the most that is taken");
        Self::invalid(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 422: the request is well formed and asks for what this engine can't do.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self {
            code: Some("unsupported_parameter"),
            ..Self::invalid(StatusCode::UNPROCESSABLE_ENTITY, message)
        }
        .at(param)
    }

    /// 429: as many requests wait as may wait.
    pub fn queue_full(message: impl Into<String>) -> Self {
        Self {
            code: Some("queue_full"),
            retry_after: Some(1),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    /// 500: the engine failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// 503: the server is ending, or its engine has ended.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            code: Some("unavailable"),
            retry_after: Some(5),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
        }
    }

    /// The same, naming the field that is at fault.
    #[must_use]
    pub fn at(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The JSON text of the error object. It also stands in streams that had begun when the error came.
    pub fn json(&self) -> String {
        let error = Fault {
            message: &self.message,
            r#type: self.kind,
            param: self.param.as_deref(),
            code: self.code,
        };
        serde_json::to_string(&Body { error }).unwrap_or_default()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (self.status, json, self.json()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
