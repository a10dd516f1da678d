//! The flags that say which tensors a trace records.

use std::ops::RangeInclusive;

use clap::{Args, ValueEnum};
use pagedraft::exit::usage_hint;
use pagedraft::session::Session;
use pagedraft_spec_decode::tensors::{TensorLevel, TensorTracing};

use super::engine_flags::note;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    /// Which tensors there were, and their shapes
    Summary,
    /// And the least and the greatest value, the mean and the standard deviation of each
    Stats,
    /// And the tensors themselves, in `trace_tensors/` (safetensors)
    Full,
}

/// Which tensors a trace records.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Traces of tensors")]
pub struct TensorFlags {
    /// Have the trace record the tensors of each layer, in `trace_tensors.jsonl`. Traced steps run eagerly, with the same bits; a draft
    /// model is not traced
    #[arg(long, value_enum, value_name = "LEVEL")]
    trace_tensors: Option<Level>,
    /// Layers whose tensors are recorded, as 4-7 [default: all]
    #[arg(long, value_name = "A-B", value_parser = range::<u16>, requires = "trace_tensors")]
    trace_tensor_layers: Option<RangeInclusive<u16>>,
    /// Steps whose tensors are recorded, as 0-15 [default: all]
    #[arg(long, value_name = "A-B", value_parser = range::<u64>, requires = "trace_tensors")]
    trace_tensor_steps: Option<RangeInclusive<u64>>,
    /// Most events of tensors. Those behind them are counted, and the last line says how many they were
    #[arg(long, value_name = "N", default_value_t = 100_000, requires = "trace_tensors")]
    trace_max_entries: u64,
}

/// Reads `A-B`, both included, or `A` alone.
fn range<N: std::str::FromStr + PartialOrd + Copy>(text: &str) -> Result<RangeInclusive<N>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<N>().map_err(|_| "write A-B, two whole numbers".to_owned());
    let (first, last) = (number(first)?, number(last)?);
    if first <= last { Ok(first..=last) } else { Err("the first number is the greater one".to_owned()) }
}

impl TensorFlags {
    /// Which tensors are traced; `None` for none.
    pub fn tracing(&self) -> Option<TensorTracing> {
        let level = match self.trace_tensors? {
            Level::Summary => TensorLevel::Summary,
            Level::Stats => TensorLevel::Stats,
            Level::Full => TensorLevel::Full,
        };
        Some(TensorTracing {
            level,
            layers: self.trace_tensor_layers.clone().unwrap_or(0..=u16::MAX),
            steps: self.trace_tensor_steps.clone().unwrap_or(0..=u64::MAX),
            most: self.trace_max_entries,
        })
    }

    /// Refuses them where the run writes none, because of `why`.
    pub fn refuse(&self, why: &str) -> anyhow::Result<()> {
        match self.trace_tensors {
            None => Ok(()),
            Some(_) => Err(usage_hint(
                anyhow::anyhow!("--trace-tensors: {why}"),
                "leave it out, or run the model and let it write a trace",
            )),
        }
    }

    /// Writes to standard error how many events were left out, if any were.
    pub fn tell_what_is_left_out(&self, session: &Session) {
        if let Some((kept, left_out)) = session.tensor_counts().filter(|(_, left_out)| *left_out > 0) {
            note(&format!(
                "the trace has {kept} events of tensors, and {left_out} were left out: raise --trace-max-entries, or name fewer \
                 layers (--trace-tensor-layers) or steps (--trace-tensor-steps)"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_two_numbers_or_one() {
        assert_eq!(range::<u16>("4-7"), Ok(4..=7));
        assert_eq!(range::<u64>("4"), Ok(4..=4));
        for bad in ["", "-", "7-4", "a-b", "1-2-3", "-1", "0-70000"] {
            assert!(range::<u16>(bad).is_err(), "{bad}");
        }
    }
}
