//! The page that shows the engine live in a browser, and the stream that feeds it.
//!
//! The page is one file without data of its own, so that everybody may have it. Its data come from `/live`, which needs a key as all
//! else does: twice a second an event with the engine's counters, and with the block tables of what runs.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use pagedraft_engine::handle::Stats;
use pagedraft_engine::session::LiveTable;
use serde_json::{Value, json};

use super::app::App;

/// The time between two events.
const EVERY: Duration = Duration::from_millis(500);
/// The most tables of an event. The page says how many it does not show.
const MOST_TABLES: usize = 64;

/// The page.
pub async fn page() -> Response {
    const PAGE: &str = concat!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n",
        "<meta name=\"viewport\" content=\"width=device-width\">\n<title>Pagedraft</title>\n<style>\n",
        include_str!("page.css"),
        "</style>\n",
        include_str!("page.html"),
        "<script>\n",
        include_str!("history.js"),
        include_str!("draw.js"),
        include_str!("chat.js"),
        include_str!("live.js"),
        "</script>\n</html>\n"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        // Nothing but this page and this server is ever asked.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'",
        ),
    ];
    (headers, PAGE).into_response()
}

/// The stream of events. It ends when the server is told to end.
pub async fn live(State(app): State<Arc<App>>) -> Response {
    let events = futures_util::stream::unfold((app, true), |(app, first)| async move {
        if !first {
            tokio::time::sleep(EVERY).await;
        }
        if *app.draining.borrow() {
            return None;
        }
        let tables = app.engine.tables().await.ok()?;
        let event = format!("data: {}\n\n", event(&app, &app.engine.stats(), tables));
        Some((Ok::<_, Infallible>(Bytes::from(event)), (app, false)))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(events)).into_response()
}

fn event(app: &App, stats: &Stats, mut tables: Vec<LiveTable>) -> Value {
    let hidden = tables.len().saturating_sub(MOST_TABLES);
    tables.truncate(MOST_TABLES);
    let time = |histogram: &pagedraft_engine::handle::Histogram| json!([histogram.count(), histogram.sum()]);
    json!({
        "model": app.name(),
        "block_size": app.engine.info().block_size,
        "running": stats.running,
        "waiting": stats.waiting,
        "pool": stats.pool,
        "prompt_tokens": stats.prompt_tokens,
        "prompt_tokens_cached": stats.prompt_tokens_cached,
        "generation_tokens": stats.generation_tokens,
        "steps": stats.steps,
        "preemptions": stats.preemptions,
        "time_to_first_token": time(&stats.time_to_first_token),
        "inter_token_latency": time(&stats.inter_token_latency),
        "step_time": time(&stats.step_time),
        "drafts": [stats.speculation.num_draft_tokens, stats.speculation.num_accepted_tokens],
        "drafting": stats.drafting.is_some(),
        "propose_us": stats.stages.propose,
        "stages_us": stats.stages.propose + stats.stages.execute + stats.stages.sample + stats.stages.metadata,
        "tables": tables,
        "tables_hidden": hidden,
    })
}
