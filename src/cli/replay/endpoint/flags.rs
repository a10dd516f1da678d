//! The flags that name a server and say how it is asked.

use clap::Args;
use hyper::header::HeaderValue;
use serde_json::{Map, Value};

use super::Address;
use crate::cli::replay::numbers::positive;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Endpoint")]
pub struct EndpointFlags {
    /// Send the workload to this OpenAI-compatible server, as http://HOST:PORT, and run no engine
    #[arg(long, value_name = "URL", value_parser = str::parse::<Address>,
        conflicts_with_all = ["executor", "cost_model", "replicas", "router", "no_trace", "trace_steps"])]
    pub endpoint: Option<Address>,
    /// The model's name in requests (default: the first one that the server lists)
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    pub endpoint_model: Option<String>,
    /// The key that requests have (default: the environment variable OPENAI_API_KEY)
    #[arg(long, value_name = "KEY", requires = "endpoint", value_parser = key)]
    endpoint_api_key: Option<HeaderValue>,
    /// A request fails when nothing has come from the server for so long
    #[arg(long, value_name = "SECONDS", requires = "endpoint", default_value = "600", value_parser = positive)]
    pub endpoint_timeout: f64,
    /// How often a request is sent again that the server did not begin to answer, or answered with 429 or 503
    #[arg(long, value_name = "N", requires = "endpoint", default_value_t = 0)]
    pub endpoint_retries: u32,
    /// Fields that each request has besides, as a JSON object; a null takes one of ours out, as '{"ignore_eos": null}'
    #[arg(long, value_name = "JSON", requires = "endpoint", default_value = "{}", value_parser = object)]
    pub endpoint_body: Map<String, Value>,
}

impl EndpointFlags {
    /// The header that has the key, if there is one.
    pub fn api_key(&self) -> Option<HeaderValue> {
        let environment = || key(&std::env::var("OPENAI_API_KEY").ok()?).ok();
        self.endpoint_api_key.clone().or_else(environment)
    }
}

/// The value of the header `Authorization`.
fn key(text: &str) -> Result<HeaderValue, String> {
    let value = HeaderValue::from_str(&format!("Bearer {text}"));
    let mut value = value.map_err(|_| "a key has visible ASCII characters only".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))
}
