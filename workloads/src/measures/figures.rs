use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The statistics of one latency, in milliseconds. Each is `None` (`null`) if there is no value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// The mean. It is exact.
    pub mean: Option<f64>,
    /// The median: half of the values are not above it. This and the other percentiles are those of
    /// `numpy.percentile`, as in `vllm bench serve`. They are interpolated between two values, so that the
    /// median of an even number of values is the mean of the middle two. They are exact up to 32,768
    /// values; with more values they come from a histogram, and are at most 0.1 % too high.
    pub median: Option<f64>,
    /// The standard deviation, as in `numpy.std`. It is exact.
    pub std: Option<f64>,
    /// 90 % of the values are not above it.
    pub p90: Option<f64>,
    /// 95 % of the values are not above it.
    pub p95: Option<f64>,
    /// 99 % of the values are not above it.
    pub p99: Option<f64>,
    /// 99.9 % of the values are not above it.
    #[serde(rename = "p99.9")]
    pub p99_9: Option<f64>,
    /// The greatest value. It is exact.
    pub max: Option<f64>,
}

/// The latencies of a set of requests. In JSON each figure is a key of its own, as in the results of `vllm bench serve`:
/// `mean_M_ms, median_M_ms, std_M_ms, p90_M_ms, p95_M_ms, p99_M_ms, p99.9_M_ms, max_M_ms` for M of `ttft, tpot, itl, e2el, queue`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latencies {
    /// The time from the intended arrival to the first token.
    pub ttft: Figures,
    /// The time from the first token to the last, divided by the number of tokens after the first. Requests
    /// with one token have none.
    pub tpot: Figures,
    /// The time between two steps that gave a request tokens. There is one value per step, however many
    /// tokens the step gave.
    pub itl: Figures,
    /// The time from the intended arrival to the last token.
    pub e2el: Figures,
    /// The time from the intended arrival to the beginning of the first step that ran the request.
    pub queue: Figures,
}

/// The names of the metrics in keys.
pub(super) const METRICS: [&str; 5] = ["ttft", "tpot", "itl", "e2el", "queue"];
const FIGURES: [&str; 8] = ["mean", "median", "std", "p90", "p95", "p99", "p99.9", "max"];

impl Figures {
    fn all(&mut self) -> [&mut Option<f64>; 8] {
        let Self { mean, median, std, p90, p95, p99, p99_9, max } = self;
        [mean, median, std, p90, p95, p99, p99_9, max]
    }
}

impl Latencies {
    fn all(&mut self) -> [&mut Figures; 5] {
        let Self { ttft, tpot, itl, e2el, queue } = self;
        [ttft, tpot, itl, e2el, queue]
    }
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(METRICS.len() * FIGURES.len()))?;
        for (metric, figures) in METRICS.iter().zip({ *self }.all()) {
            for (figure, value) in FIGURES.iter().zip(figures.all()) {
                map.serialize_entry(&format!("{figure}_{metric}_ms"), value)?;
            }
        }
        map.end()
    }
}

impl schemars::JsonSchema for Latencies {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Latencies".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let keys = METRICS.iter().flat_map(|metric| FIGURES.map(|figure| format!("{figure}_{metric}_ms")));
        let value = serde_json::json!({"type": ["number", "null"]});
        let properties: serde_json::Map<_, _> = keys.map(|key| (key, value.clone())).collect();
        let required: Vec<&String> = properties.keys().collect();
        schemars::json_schema!({"type": "object", "required": required, "properties": properties})
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys)
    }
}

/// Reads the keys that are figures, and ignores the others.
struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Latencies;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object with keys such as mean_ttft_ms")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Latencies, A::Error> {
        let mut latencies = Latencies::default();
        while let Some(key) = map.next_key::<String>()? {
            let mut parts = key.strip_suffix("_ms").unwrap_or_default().splitn(2, '_');
            let (figure, metric) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let place =
                (METRICS.iter().position(|m| *m == metric)).zip(FIGURES.iter().position(|f| *f == figure));
            if let Some((metric, figure)) = place {
                *latencies.all()[metric].all()[figure] = map.next_value()?;
            } else {
                map.next_value::<serde::de::IgnoredAny>()?;
            }
        }
        Ok(latencies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_keys_of_their_own_and_are_read_back() {
        let mut latencies = Latencies::default();
        for (i, figures) in latencies.all().into_iter().enumerate() {
            for (j, value) in figures.all().into_iter().enumerate() {
                *value = Some((10 * i + j) as f64);
            }
        }
        latencies.queue.max = None;
        let json = serde_json::to_value(latencies).unwrap();
        assert_eq!(json["mean_ttft_ms"], 0.0);
        assert_eq!(json["p99.9_e2el_ms"], 36.0);
        assert_eq!(json["max_queue_ms"], serde_json::Value::Null);
        assert_eq!(json.as_object().unwrap().len(), 40);
        assert_eq!(serde_json::from_value::<Latencies>(json).unwrap(), latencies);
    }
}
