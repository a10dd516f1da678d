//! Sends spans to a collector of OpenTelemetry (builds with `--features otel`).

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use pagedraft::exit::usage_hint;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

/// The environment variables that name a collector, as OpenTelemetry has it. The library reads what they say.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Sends what is left when it is dropped.
pub struct Exporting(SdkTracerProvider);

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(target: "pagedraft", "the last spans were not sent to the collector: {error}");
        }
    }
}

/// Sends the spans that it is given to the collector that the environment names, if it names one. They are gathered, and sent by a thread of
/// their own.
///
/// # Errors
///
/// What the environment says of the collector is wrong.
pub fn layer<S>() -> anyhow::Result<Option<(impl Layer<S>, Exporting)>>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let named = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !VARIABLES.iter().any(named) {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpJson).build();
    let exporter = exporter.context("spans can't be sent to a collector").map_err(|error| {
        let [all, traces] = VARIABLES;
        usage_hint(error, format!("set {all} or {traces} to http://HOST:4318, or unset both"))
    })?;
    let resource = Resource::builder().with_service_name("pagedraft").build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let tracer = provider.tracer("pagedraft");
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);
    Ok(Some((layer, Exporting(provider))))
}
