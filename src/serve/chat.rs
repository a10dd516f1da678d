//! `POST /v1/chat/completions`: a chat is continued, after the model's template has made one prompt of it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;

use super::app::App;
use super::ask::Ask;
use super::body;
use super::error::ApiError;
use super::generation;
use super::parameters::Encoded;
use super::teller::{Kind, Teller};
use super::template::{Asked, Message};

pub async fn answer(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let teller = read(&app, request).await?;
    generation::answer(app, teller).await
}

/// What a client asks for, its messages as a prompt in tokens.
///
/// # Errors
///
/// The body is not well formed, or asks for what can't be done.
pub async fn read(app: &Arc<App>, request: Request) -> Result<Teller, ApiError> {
    let mut ask: Ask = body::read(app, request).await?;
    app.check_model(ask.model.as_deref())?;
    ask.check()?;
    if ask.echo() {
        return Err(ApiError::unsupported(
            "echo",
            "echo is not supported in chats: the prompt is the template's",
        ));
    }
    let ids = prompt(app, &mut ask).await?;
    let prompt = Encoded { ids, text: String::new(), default_tokens: None };
    Ok(Teller::new(Arc::clone(app), Kind::Chat, ask, vec![prompt]))
}

/// The tokens of the prompt that the template makes of the messages.
pub async fn prompt(app: &App, ask: &mut Ask) -> Result<Vec<u32>, ApiError> {
    let Some(mut messages) = ask.messages.take().filter(|messages| !messages.is_empty()) else {
        return Err(ApiError::bad("`messages` is missing, or has no message").at("messages"));
    };
    messages.iter_mut().enumerate().try_for_each(|(i, message)| only_text(i, message))?;
    let Some(template) = &app.template else {
        let name = app.name();
        let message = format!(
            "{name} has no chat template: start the server with --chat-template FILE, or use /v1/completions"
        );
        return Err(ApiError::bad(message));
    };
    let goes_on = ask.continue_final_message.unwrap_or(false);
    let add_generation_prompt = ask.add_generation_prompt.unwrap_or(!goes_on);
    if goes_on && add_generation_prompt {
        let message = "continue_final_message goes on in the last message, and add_generation_prompt begins a new one: ask for one of them";
        return Err(ApiError::bad(message).at("continue_final_message"));
    }
    let variables = ask.chat_template_kwargs.as_ref();
    let mut text =
        template.render(Asked { messages: &messages, add_generation_prompt, variables }).map_err(|why| {
            ApiError::bad(format!("the chat template refuses the messages: {why}")).at("messages")
        })?;
    if goes_on {
        // As `transformers` does it: what the template sets behind the last message is cut off.
        let last = messages.last().and_then(|message| message.get("content")).and_then(Value::as_str);
        let last = last.unwrap_or_default().trim();
        let end = text.rfind(last).map(|at| at + last.len());
        let Some(end) = end.filter(|_| !last.is_empty()) else {
            let message =
                "the last message does not stand in the prompt as it is, so that it can't be gone on with";
            return Err(ApiError::bad(message).at("continue_final_message"));
        };
        text.truncate(end);
    }
    let ids = app.encode(&text, ask.add_special_tokens.unwrap_or(false)).await?;
    if ids.is_empty() {
        return Err(ApiError::bad("the chat template made an empty prompt of the messages").at("messages"));
    }
    Ok(ids)
}

/// Makes one text of a message's content, which may be a list of parts.
fn only_text(index: usize, message: &mut Message) -> Result<(), ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let bad = |field: &str, why: &str| {
        let place = at(field);
        ApiError::bad(format!("`{place}` {why}")).at(&place)
    };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(bad("role", "is missing, or is no text"));
    }
    let parts = match message.get("content") {
        Some(Value::String(_)) => return Ok(()),
        Some(Value::Array(parts)) => parts,
        Some(Value::Null) | None if message.get("role").is_some_and(|role| role == "assistant") => {
            return Ok(());
        }
        _ => return Err(bad("content", "is missing, or is neither a text nor a list of parts")),
    };
    let mut texts = Vec::new();
    for part in parts {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text" | "input_text") | None, Some(text)) => texts.push(text),
            (Some(kind), _) if kind != "text" => {
                let why = format!(
                    "messages have a part of type {kind:?}, which is not supported: these models read text alone"
                );
                return Err(ApiError::unsupported(&at("content"), why));
            }
            _ => return Err(bad("content", "has a part without a text")),
        }
    }
    let text = texts.join("\n");
    message.insert("content".to_owned(), Value::String(text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(message: Value) -> Result<Value, (u16, String)> {
        let mut message = message.as_object().unwrap().clone();
        only_text(2, &mut message).map_err(|error| (error.status().as_u16(), error.json()))?;
        Ok(message["content"].clone())
    }

    #[test]
    fn parts_of_text_become_one_text_and_others_are_refused() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        assert_eq!(read(json!({"role": "user", "content": parts})).unwrap(), "a\nb");
        assert_eq!(read(json!({"role": "assistant", "content": null})).unwrap(), Value::Null);
        let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
        for (message, status, told) in [
            (json!({"role": "user", "content": image}), 422, "image_url"),
            (json!({"role": "user", "content": [{"type": "text"}]}), 400, "messages[2].content"),
            (json!({"role": "user", "content": null}), 400, "messages[2].content"),
            (json!({"role": "user", "content": 5}), 400, "messages[2].content"),
            (json!({"content": "a"}), 400, "messages[2].role"),
        ] {
            let (found, json) = read(message).unwrap_err();
            assert_eq!(found, status, "{json}");
            assert!(json.contains(told), "{json}");
        }
    }
}
