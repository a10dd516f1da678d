//! `POST /tokenize` and `POST /detokenize`: between text and token ids, as the model's own prompts are read.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::app::App;
use super::ask::Ask;
use super::error::ApiError;
use super::prompt::Prompt;
use super::routes::json;
use super::{body, chat};

#[derive(Serialize)]
struct Tokens {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct Ids {
    model: Option<String>,
    tokens: Vec<u32>,
}

#[derive(Serialize)]
struct Text {
    prompt: String,
}

/// The token ids of a prompt, or of a chat's messages.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut ask: Ask = body::read(&app, request).await?;
    app.check_model(ask.model.as_deref())?;
    let prompt = ask.prompt.take().map(|prompts| prompts.0);
    let tokens = match prompt.as_deref() {
        Some([Prompt::Text(text)]) => app.encode(text, ask.add_special_tokens.unwrap_or(true)).await?,
        Some(_) => return Err(ApiError::bad("`prompt` should be one text").at("prompt")),
        None => chat::prompt(&app, &mut ask).await?,
    };
    let max_model_len = app.engine.info().max_model_len;
    Ok(json(&Tokens { count: tokens.len(), max_model_len, tokens }))
}

/// The text of token ids, special tokens by their names.
pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let ids: Ids = body::read(&app, request).await?;
    app.check_model(ids.model.as_deref())?;
    let Some(tokenizer) = app.engine.tokenizer() else {
        return Err(ApiError::bad(format!("{} has no tokenizer, so that tokens have no text", app.name())));
    };
    let text = tokenizer.decode(&ids.tokens, false);
    let prompt = text.map_err(|error| ApiError::bad(error.to_string()).at("tokens"))?;
    Ok(json(&Text { prompt }).into_response())
}
