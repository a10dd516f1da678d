//! Takes requests to the engine, and tells what comes back, whole or in pieces.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use futures_util::stream::{self, SelectAll, select_all};
use futures_util::{FutureExt, Stream, StreamExt};
use pagedraft_engine::handle::{Delta, Output, SubmitError};
use pagedraft_engine::session::Request;

use super::app::App;
use super::error::ApiError;
use super::parameters;
use super::teller::Teller;

/// A stream hands on what has gathered when it is longer than this many bytes.
const PACKET: usize = 16 << 10;

/// What a request got, with the index of its prompt.
type News = (usize, Delta);

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Bad(_) => Self::bad(message),
            SubmitError::QueueFull { .. } => Self::queue_full(message),
            SubmitError::Draining | SubmitError::Stopped => Self::unavailable(message),
        }
    }
}

/// The requests to the engine, one for each prompt.
///
/// # Errors
///
/// A parameter is out of its range, or a prompt leaves no room.
pub fn requests(app: &App, teller: &Teller) -> Result<Vec<Request>, ApiError> {
    let requests = teller.prompts().iter().enumerate().map(|(i, prompt)| {
        let id = format!("{}-{i}", teller.id());
        parameters::request(app, teller.ask(), id, prompt)
    });
    requests.collect()
}

/// Has the prompts continued, and answers as was asked for.
///
/// # Errors
///
/// The engine refuses a prompt (then none runs), or fails before anything was told.
pub async fn answer(app: Arc<App>, teller: Teller) -> Result<Response, ApiError> {
    let requests = requests(&app, &teller)?;
    let outputs = try_join_all(requests.into_iter().map(|request| app.engine.submit(request))).await?;
    let news = news(&app, outputs);
    if teller.ask().stream() { Ok(in_pieces(teller, news)) } else { whole(teller, news).await }
}

/// What comes for all prompts, in the order in which it comes. It ends when all have ended, or when the server does.
fn news(app: &App, outputs: Vec<Output>) -> impl Stream<Item = News> + Send + Unpin + use<> {
    let mut cut = app.cut.clone();
    let cut = async move { cut.wait_for(|cut| *cut).await.map(drop).is_ok() };
    let numbered = outputs.into_iter().enumerate().map(|(i, output)| output.map(move |delta| (i, delta)));
    let all: SelectAll<_> = select_all(numbered);
    all.take_until(cut.boxed())
}

async fn whole(mut teller: Teller, mut news: impl Stream<Item = News> + Unpin) -> Result<Response, ApiError> {
    let mut deltas: Vec<Delta> = Vec::new();
    deltas.resize_with(teller.choices(), Delta::default);
    while let Some((prompt, delta)) = news.next().await {
        let index = teller.index(prompt, delta.sample);
        if let Some(sum) = deltas.get_mut(index as usize) {
            add(sum, delta);
        }
    }
    let json = teller.whole(&deltas)?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}

/// Puts what came later behind what came before.
fn add(sum: &mut Delta, later: Delta) {
    sum.sample = later.sample;
    sum.text.push_str(&later.text);
    sum.token_ids.extend(later.token_ids);
    sum.logprobs.extend(later.logprobs);
    sum.prompt = sum.prompt.take().or(later.prompt);
    sum.end = later.end;
}

fn in_pieces(teller: Teller, news: impl Stream<Item = News> + Send + Unpin + 'static) -> Response {
    let events = stream::unfold((teller, news), |(mut teller, mut news)| async move {
        if teller.is_done() {
            return None;
        }
        let mut packet = Vec::new();
        match news.next().await {
            Some((prompt, delta)) => teller.piece(prompt, &delta, &mut packet),
            None => teller.end(&mut packet),
        }
        // What is there already goes with it: the reader was slower than the engine.
        while packet.len() < PACKET && !teller.is_done() {
            match news.next().now_or_never() {
                Some(Some((prompt, delta))) => teller.piece(prompt, &delta, &mut packet),
                Some(None) => teller.end(&mut packet),
                None => break,
            }
        }
        Some((Ok::<_, Infallible>(Bytes::from(packet)), (teller, news)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies such as nginx would gather the events otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(events)).into_response()
}
