//! What ended a sample that came to a stop.

use pagedraft_model::tokenizer::Tokenizer;

use super::answer::StopReason;

/// Which of the stops of a request ended a sample that generated these tokens; `None` where it was the model's own end.
pub fn reason<'a>(
    tokenizer: Option<&Tokenizer>,
    stops: &'a [String],
    stop_token_ids: &[u32],
    generated: &[u32],
) -> Option<StopReason<'a>> {
    if let Some(last) = generated.last().filter(|last| stop_token_ids.contains(last)) {
        return Some(StopReason::Token(*last));
    }
    if stops.is_empty() {
        return None;
    }
    // A stop string may name a special token, or have one in its middle that is not shown.
    [false, true].into_iter().find_map(|skip_special| {
        let text = tokenizer?.decode(generated, skip_special).ok()?;
        let found = stops.iter().filter_map(|stop| Some((text.find(stop.as_str())?, stop.as_str())));
        found.min_by_key(|(at, _)| *at).map(|(_, stop)| StopReason::Text(stop))
    })
}
