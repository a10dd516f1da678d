//! Prints the table at the end of a replay.

use pagedraft_workloads::measures::{Figures, Summary};
use pagedraft_workloads::replay::TokenCount;

/// The figures for people. Times are in milliseconds from intended arrivals.
pub fn text(summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: String| text.push_str(&format!("{name:<16} {what}\n"));
    line("requests", requests(summary));
    line(
        "duration",
        format!(
            "{:.3} s; {:.2} requests/s, {:.1} output tokens/s, {:.1} tokens/s",
            summary.duration,
            summary.request_throughput,
            summary.output_throughput,
            summary.total_token_throughput
        ),
    );
    if let Some(sent) = summary.rate_sent {
        let asked =
            summary.rate_asked.map_or_else(String::new, |asked| format!("{asked:.3} requests/s asked, "));
        let late = &summary.send_lateness_ms;
        let late = match (late.mean, late.max) {
            (Some(mean), Some(max)) => format!("; late by {mean:.3} ms, {max:.3} ms at most"),
            _ => String::new(),
        };
        line("rate", format!("{asked}{sent:.3} taken in{late}"));
    }
    if let Some(goodput) = &summary.goodput {
        let (share, rate) = (goodput.share * 100.0, goodput.request_goodput);
        line("goodput", format!("{rate:.2} requests/s; {} met all goals ({share:.1} %)", goodput.met_all));
    }
    line("", ["mean", "p50", "p90", "p99", "max"].map(|name| format!("{name:>12}")).concat());
    let latencies = &summary.latencies;
    for (name, figures) in [
        ("TTFT ms", &latencies.ttft),
        ("TPOT ms", &latencies.tpot),
        ("ITL ms", &latencies.itl),
        ("E2EL ms", &latencies.e2el),
        ("queue ms", &latencies.queue),
    ] {
        line(name, row(figures));
    }
    if let Some(blocks) = &summary.block_latency {
        line("first block ms", row(&blocks.ttfb));
        line("next block ms", row(&blocks.ibl));
    }
    if let Some(drafts) = &summary.speculation {
        line(
            "drafts",
            format!(
                "{} of {} accepted ({:.1} %), {:.2} tokens a verify row",
                drafts.spec_decode_accepted_tokens,
                drafts.spec_decode_draft_tokens,
                drafts.spec_decode_acceptance_rate,
                drafts.spec_decode_acceptance_length
            ),
        );
    }
    if let Some(prefix) = &summary.prefix_cache {
        let blocks = prefix.cached_blocks.map_or_else(String::new, |blocks| format!(", {blocks} blocks"));
        line(
            "prefix hits",
            format!(
                "{} of {} prompt tokens ({:.1} %){blocks}",
                prefix.cached_tokens,
                prefix.prompt_tokens,
                prefix.hit_rate * 100.0
            ),
        );
    }
    if let Some(engine) = &summary.engine {
        let kv = &engine.kv;
        // If there is no pool, nothing ran.
        if kv.num_blocks > 0 {
            // Blocks of several KV groups differ in size, so that their number says little.
            let most = match (kv.peak_bytes_used, kv.bytes_total) {
                (Some(used), Some(total)) => format!("{:.2} of {:.2} MiB", mib(used), mib(total)),
                _ => format!("{} of {} blocks", kv.peak_used, kv.num_blocks),
            };
            let (peak, mean) = (kv.peak_share * 100.0, kv.mean_share * 100.0);
            line("KV pool", format!("{most} at most ({peak:.1} %), {mean:.1} % on average"));
        }
        line("preemptions", engine.preemptions.to_string());
        line("steps", format!("{}, {} replayed", engine.steps, engine.graph_replays));
    }
    let counts = |counts: Vec<String>| counts.join(", ");
    if !summary.errors.is_empty() {
        line("errors", counts(summary.errors.iter().map(|(kind, n)| format!("{n} {kind}")).collect()));
    }
    if let Some(retries) = summary.retries.filter(|&retries| retries > 0) {
        line("retries", retries.to_string());
    }
    let how = |how: &TokenCount| match how {
        TokenCount::ContinuousUsage => "by the server chunk by chunk",
        TokenCount::Usage => "by the server at the end",
        TokenCount::Chunks => "as one a chunk, because the server does not tell",
    };
    // Engines of our own tell of each token, and nothing has to be said.
    if !summary.counted_by.is_empty() && summary.facts.endpoint.is_some() {
        let each = summary.counted_by.iter().map(|(by, n)| format!("{} (of {n} requests)", how(by)));
        line("tokens counted", counts(each.collect()));
    }
    for (category, score) in &summary.score {
        line("score", format!("{:.4} of {} requests ({category})", score.mean, score.count));
    }
    text
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn requests(summary: &Summary) -> String {
    let mut text = format!("{} of {} completed", summary.completed, summary.num_prompts);
    if summary.failed > 0 {
        text.push_str(&format!(", {} failed", summary.failed));
    }
    for (reason, count) in &summary.skipped {
        let name = serde_json::to_value(reason).ok();
        let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or("skipped").replace('_', " ");
        text.push_str(&format!(", {count} skipped: {name}"));
    }
    if summary.restored > 0 {
        text.push_str(&format!("; {} of them before the run was stopped", summary.restored));
    }
    text
}

fn row(figures: &Figures) -> String {
    let values = [figures.mean, figures.median, figures.p90, figures.p99, figures.max];
    // Fewer decimals keep even hours of queueing within the column.
    let digits = |ms: f64| if ms < 1e6 { 3 } else { 0 };
    let told = |value: Option<f64>| {
        value.map_or_else(|| format!("{:>12}", "-"), |ms| format!("{ms:>12.*}", digits(ms)))
    };
    values.map(told).concat()
}
