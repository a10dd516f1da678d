//! Reads the bodies of requests as a server does, and stops where its engine would begin.

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use pagedraft_engine::session::Request;

use super::error::ApiError;
use super::{Server, chat, completions, generation, tokenize};

/// What a client is sent whose body is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the response.
    pub status: u16,
    /// Its body: an error object, as OpenAI's servers send it.
    pub json: String,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { status: error.status().as_u16(), json: error.json() }
    }
}

impl Server {
    /// What the engine would be asked for a body that is posted to `path`: one request for each prompt. `/tokenize` and
    /// `/detokenize` ask nothing of the engine; they are answered, and the list is empty. Nothing is submitted. It is public so that
    /// `fuzz/` can have many bodies read without a socket and without a model that runs.
    ///
    /// It waits on a clock, so that it must be awaited within a runtime of tokio whose time is enabled.
    ///
    /// # Errors
    ///
    /// The body is refused, or nothing can be posted to this path.
    pub async fn requests(&self, path: &str, body: Vec<u8>) -> Result<Vec<Request>, Refusal> {
        let (app, posted) = (&self.app, HttpRequest::new(Body::from(body)));
        let teller = match path {
            "/v1/completions" => completions::read(app, posted).await?,
            "/v1/chat/completions" => chat::read(app, posted).await?,
            "/tokenize" => {
                tokenize::tokenize(State(app.clone()), posted).await?;
                return Ok(Vec::new());
            }
            "/detokenize" => {
                tokenize::detokenize(State(app.clone()), posted).await?;
                return Ok(Vec::new());
            }
            _ => return Err(ApiError::no_such_path(path).into()),
        };
        Ok(generation::requests(app, &teller)?)
    }
}
