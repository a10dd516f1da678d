use crate::dataset::{Expectation, OutputLength, Prompt, Sample};
use serde_json::{Value, json};

/// A sample as a line of RULER's JSON lines: `index`, `input` (the whole prompt), `outputs` (the answers) and `length`: the
/// prompt's `tokens` and those that may be generated. A prompt that is no text is an empty `input`, and a sample without expected
/// strings has no `outputs`.
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
