//! Samples whose lengths are drawn at random.

use super::quantity::MAX_TOKENS;
use super::records::{Record, Records};
use super::{DatasetError, Item, OutputLength, Prompt, RandomOptions, Sample};
use crate::prompt::{Draws, Purpose};

/// The numbers that are drawn for a request: first for its prompt, then for its output.
const INPUT: u64 = 0;
const OUTPUT: u64 = 1;

pub(super) fn generate(options: &RandomOptions, seed: u64) -> Result<Records, DatasetError> {
    let options = options.clone();
    check(&options).map_err(DatasetError::Options)?;
    Ok(Box::new((0..options.num_requests).map(move |index| {
        // A request's lengths are a function of its own index, whatever comes before it.
        let draws = Draws::new(seed, Purpose::Lengths, index);
        let length = between(options.input_len, options.range_ratio, draws.bits(INPUT));
        let prefix = (f64::from(length) * options.prefix_share).round() as u32;
        let prompt = match prefix.min(length) {
            0 => Prompt::Length(length),
            prefix => Prompt::SharedPrefix { length, prefix, group: 0 },
        };
        let output = between(options.output_len, options.range_ratio, draws.bits(OUTPUT));
        let sample = Sample {
            source_id: None,
            line: 0,
            arrival_s: None,
            prompt,
            output: OutputLength::Tokens(output),
            expect: None,
            category: None,
        };
        Ok(Record { time_ns: None, item: Item::Sample(sample) })
    })))
}

fn check(options: &RandomOptions) -> Result<(), String> {
    let share = |name: &str, value: f64| {
        let valid = (0.0..=1.0).contains(&value);
        if valid { Ok(()) } else { Err(format!("{name} is {value}; expected 0 to 1")) }
    };
    let length = |name: &str, value: u32| match value {
        0 => Err(format!("{name} is 0; expected at least 1 token")),
        _ if value > MAX_TOKENS => Err(format!("{name} is {value}; expected at most {MAX_TOKENS} tokens")),
        _ => Ok(()),
    };
    if options.num_requests == 0 {
        return Err("the number of requests is 0; expected at least 1 (--num-requests)".into());
    }
    length("--input-len", options.input_len)?;
    length("--output-len", options.output_len)?;
    share("the range of lengths (--random-range-ratio)", options.range_ratio)?;
    share("the share of a common prefix (--prefix-share)", options.prefix_share)
}

/// A whole number from `len * (1 - ratio) ..= len * (1 + ratio)`, at least 1, chosen by 64 random bits. All
/// numbers are equally likely.
fn between(len: u32, ratio: f64, bits: u64) -> u32 {
    let low = (f64::from(len) * (1.0 - ratio)).ceil().max(1.0) as u64;
    let high = ((f64::from(len) * (1.0 + ratio)).floor() as u64).max(low);
    let offset = (u128::from(bits) * u128::from(high - low + 1)) >> 64;
    (low + offset as u64) as u32
}
