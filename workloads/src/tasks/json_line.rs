use crate::dataset::{Expectation, OutputLength, Prompt, Sample};
use serde_json::{Value, json};

/// A sample as a line of RULER's JSON lines: `index`, `input` (the whole prompt), `outputs` (the answers),
/// and `length`, which is the number of the prompt's `tokens` and of those that may be generated. If the
/// prompt is not a text, `input` is empty, and if no strings are expected, there is no `outputs`.
#[must_use]
pub fn ruler_json_line(index: u64, sample: &Sample, tokens: u32) -> Value {
    let input = match &sample.prompt {
        Prompt::Text(text) => text.as_str(),
        _ => "",
    };
    let outputs: &[String] = match &sample.expect {
        Some(Expectation::Contains { answers, .. }) => answers,
        _ => &[],
    };
    let generated = match sample.output {
        OutputLength::UntilStop(Some(tokens)) | OutputLength::Tokens(tokens) => tokens,
        OutputLength::UntilStop(None) | OutputLength::AsText(_) => 0,
    };
    json!({
        "index": index,
        "input": input,
        "outputs": outputs,
        "length": u64::from(tokens) + u64::from(generated),
    })
}
