//! The figures of `bench prune` in the form of SDTP's Table 2 (2504.04514), as Markdown.

use std::fmt::Write;

use anyhow::Context;
use serde_json::{Map, Value};

const HEAD: &str = "\
| tokens | pruned | prefill TFLOP | prefill s | speed-up (the FLOPs allow) | total s | speed-up | KV MiB | less |
|---:|---|---:|---:|---:|---:|---:|---:|---:|
";

/// The table of what `bench prune --output-json` wrote.
///
/// # Errors
///
/// A field is missing, or is no number.
pub fn markdown(figures: &Value) -> anyhow::Result<String> {
    let results = object(figures, "results")?;
    let mut lengths: Vec<(u64, &Value)> = Vec::new();
    for (length, here) in results {
        lengths.push((length.parse().with_context(|| format!("results has the length {length:?}"))?, here));
    }
    lengths.sort_by_key(|(length, _)| *length);
    let mut table = HEAD.to_owned();
    for (length, here) in lengths {
        for (name, speedup) in object(here, "speedup")? {
            let both = |field: &str, scale: f64| -> anyhow::Result<(f64, f64)> {
                let of =
                    |way: &str| -> anyhow::Result<f64> { Ok(number(member(here, way)?, field)? * scale) };
                Ok((of("baseline")?, of(name)?))
            };
            let (flops, prefill) = (both("prefill_flops", 1e-12)?, both("prefill_latency_seconds", 1.0)?);
            let (total, kv) =
                (both("total_latency_seconds", 1.0)?, both("kv_bytes", 1.0 / (1 << 20) as f64)?);
            let _ = writeln!(
                table,
                "| {length} | {name} | {:.3} → {:.3} | {:.3} → {:.3} | {:.2}x ({:.2}x) | {:.3} → {:.3} | {:.2}x | {:.2} → {:.2} | {:.1} % |",
                flops.0,
                flops.1,
                prefill.0,
                prefill.1,
                number(speedup, "prefill")?,
                number(speedup, "flops_ceiling")?,
                total.0,
                total.1,
                number(speedup, "total")?,
                kv.0,
                kv.1,
                100.0 * number(member(here, "kv_reduction")?, name)?
            );
        }
    }
    Ok(table)
}

fn member<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a Value> {
    value.get(field).with_context(|| format!("it has no {field}: it is not what bench prune wrote"))
}

fn object<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a Map<String, Value>> {
    member(value, field)?.as_object().with_context(|| format!("its {field} is no object"))
}

fn number(value: &Value, field: &str) -> anyhow::Result<f64> {
    member(value, field)?.as_f64().with_context(|| format!("its {field} is no number"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn there_is_a_row_for_each_length_and_way_shortest_first() {
        let way = |seconds: f64| json!({"prefill_flops": seconds * 1e12, "prefill_latency_seconds": seconds, "total_latency_seconds": seconds + 1.0, "kv_bytes": 1048576});
        let here = json!({
            "baseline": way(2.0), "keep07": way(1.0), "kv_reduction": {"keep07": 0.25},
            "speedup": {"keep07": {"prefill": 2.0, "total": 1.5, "flops_ceiling": 2.1}},
        });
        let table = markdown(&json!({"results": {"8192": here, "512": here}})).unwrap();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            rows[0],
            "| 512 | keep07 | 2.000 → 1.000 | 2.000 → 1.000 | 2.00x (2.10x) | 3.000 → 2.000 | 1.50x | 1.00 → 1.00 | 25.0 % |"
        );
        assert!(rows[1].starts_with("| 8192 |"));
        let error = markdown(&json!({"results": {"512": {}}})).unwrap_err();
        assert!(error.to_string().contains("speedup"));
    }
}
