//! Says what an error means to whoever started the program.
//!
//! Exit codes: 0 means done; 1 that the run failed, or a check found a difference; 2 bad usage or input;
//! 130 stopped by Ctrl-C.

use std::fmt;

use pagedraft_engine::error::EngineError;

/// The run failed, or a check found a difference.
pub const FAILED: u8 = 1;
/// Bad usage or input.
pub const USAGE: u8 = 2;
/// Stopped by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Marks an error that the user can correct.
struct Usage {
    error: anyhow::Error,
    hint: Option<String>,
}

impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for Usage {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Marks `error` as bad usage or input: exit code 2. Context put around it later keeps the mark.
pub fn usage(error: anyhow::Error) -> anyhow::Error {
    anyhow::Error::new(Usage { error, hint: None })
}

/// Does what [`usage`] does, and adds what to do about the error.
pub fn usage_hint(error: anyhow::Error, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage { error, hint: Some(hint.into()) })
}

/// Whether the user can correct an error, and what it says to do about it.
fn mark(error: &anyhow::Error) -> Option<Option<&str>> {
    error.chain().find_map(|cause| match cause.downcast_ref::<EngineError>() {
        Some(EngineError::Input(report)) => Some(report.hint()),
        _ => cause.downcast_ref::<Usage>().map(|usage| usage.hint.as_deref()),
    })
}

/// Whether a step of an engine failed only because it was interrupted.
#[must_use]
pub fn is_interrupt(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(EngineError::is_interrupt)
}

/// The exit code for an error.
#[must_use]
pub fn code(error: &anyhow::Error) -> u8 {
    if mark(error).is_some() { USAGE } else { FAILED }
}

/// The text of an error: `error: what`, the causes indented below it, and the hint.
#[must_use]
pub fn report(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some errors print their source themselves, and would otherwise show it twice.
        if !last.contains(&cause) {
            text.push_str(&format!("  {}\n", cause.replace('\n', "\n  ")));
            last = cause;
        }
    }
    if let Some(hint) = mark(error).flatten() {
        text.push_str(&format!("  hint: {hint}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn an_error_is_a_failure_unless_it_is_marked_at_any_depth() {
        assert_eq!(code(&anyhow!("disk")), FAILED);
        assert_eq!(code(&usage(anyhow!("flag"))), USAGE);
        let inside: anyhow::Error =
            Err::<(), _>(usage(anyhow!("flag"))).context("while reading").unwrap_err();
        assert_eq!(code(&inside), USAGE);
    }

    #[test]
    fn causes_are_shown_once_and_the_hint_last() {
        let cause = std::io::Error::other("no such thing");
        let error = usage_hint(anyhow::Error::from(cause).context("can't read x"), "make one");
        assert_eq!(report(&error), "error: can't read x\n  no such thing\n  hint: make one\n");
        let twice = anyhow!("deep").context("can't read x: deep");
        assert_eq!(report(&twice), "error: can't read x: deep\n");
    }
}
