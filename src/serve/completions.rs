//! `POST /v1/completions`: prompts are continued.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::app::App;
use super::ask::Ask;
use super::body;
use super::error::ApiError;
use super::generation;
use super::parameters::{COMPLETION_TOKENS, Encoded};
use super::prompt::Prompt;
use super::teller::{Kind, Teller};

pub async fn answer(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let teller = read(&app, request).await?;
    generation::answer(app, teller).await
}

/// What a client asks for, its prompts in tokens.
///
/// # Errors
///
/// The body is not well formed, or asks for what can't be done.
pub async fn read(app: &Arc<App>, request: Request) -> Result<Teller, ApiError> {
    let mut ask: Ask = body::read(app, request).await?;
    app.check_model(ask.model.as_deref())?;
    ask.check()?;
    let Some(prompts) = ask.prompt.take() else {
        return Err(ApiError::bad("`prompt` is missing").at("prompt"));
    };
    let (samples, most) = (prompts.0.len().saturating_mul(ask.n() as usize), app.limits.samples);
    if samples > most {
        let message = format!(
            "the request asks for {samples} samples, prompts times n, and at most {most} are taken at a time: send the prompts in several requests"
        );
        return Err(ApiError::bad(message).at("prompt"));
    }
    let mut encoded = Vec::with_capacity(prompts.0.len());
    for prompt in prompts.0 {
        encoded.push(encode(app, &ask, prompt).await?);
    }
    Ok(Teller::new(Arc::clone(app), Kind::Completion, ask, encoded))
}

async fn encode(app: &App, ask: &Ask, prompt: Prompt) -> Result<Encoded, ApiError> {
    let (ids, text) = match prompt {
        Prompt::Text(text) => (app.encode(&text, ask.add_special_tokens.unwrap_or(true)).await?, text),
        Prompt::Ids(ids) => {
            let text = app.engine.tokenizer().filter(|_| ask.echo()).map(|to| to.decode(&ids, true));
            let text = text.transpose().map_err(|error| ApiError::bad(error.to_string()).at("prompt"))?;
            (ids, text.unwrap_or_default())
        }
    };
    if ids.is_empty() {
        return Err(ApiError::bad("the prompt is empty").at("prompt"));
    }
    Ok(Encoded { ids, text, default_tokens: Some(COMPLETION_TOKENS) })
}
