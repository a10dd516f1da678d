//! The requests of production traces, which have lengths and times but no text.

use super::records::Record;
use super::{Item, OutputLength, Prompt, Sample, SkipReason, Skipped};

/// What a row of a trace says about a request.
pub(super) struct TraceRequest {
    pub(super) line: u64,
    pub(super) time_ns: Option<i64>,
    pub(super) category: Option<String>,
    pub(super) prompt: Prompt,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
}

impl TraceRequest {
    /// In a trace, requests without output are failed ones. If they are kept, they have one token of
    /// output, and one of prompt if the trace failed before it counted the prompt.
    pub(super) fn into_record(self, keep_failed: bool) -> Record {
        let Self { line, time_ns, category, mut prompt, prompt_tokens, output_tokens } = self;
        if output_tokens == 0 && !keep_failed {
            let reason = SkipReason::FailedInTrace;
            let prompt_tokens = Some(prompt_tokens);
            let skipped = Skipped { source_id: None, line, arrival_s: None, prompt_tokens, reason };
            return Record { time_ns, item: Item::Skipped(skipped) };
        }
        if output_tokens == 0 && prompt_tokens == 0 {
            prompt = Prompt::Length(1);
        }
        let sample = Sample {
            source_id: None,
            line,
            arrival_s: None,
            prompt,
            output: OutputLength::Tokens(output_tokens.max(1)),
            expect: None,
            category,
        };
        Record { time_ns, item: Item::Sample(sample) }
    }
}
